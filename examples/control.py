"""A policy in a loop: a diffusion policy decides what a lunar lander does next, with few network calls a decision.

Gymnasium's LunarLander gets a tower above its pad. A scripted pilot passes it on the left or on the right, by chance,
so that an average of its actions is no action. A small flow learns chunks of 8 actions given an observation, solvers
are learned for it, and each flies 1,000 episodes.

    pip install 'gas-solver[control]'
    python control.py --work runs/control --results runs/control/results

Run again, this resumes; when all is measured, it prints the table.
"""

import argparse
import json
import os
import time
from functools import cached_property
from itertools import pairwise
from pathlib import Path

os.environ.setdefault(
    "SDL_VIDEODRIVER", "dummy"
)  # before gymnasium loads pygame, which may look for a screen

import gymnasium
import numpy as np
import torch
from gymnasium.envs.box2d.lunar_lander import heuristic
from safetensors.torch import load_file, save_file
from torch import nn

import gas
from gas.display import markdown_table, with_interval

CHUNK, EXECUTED = 8, 8  # actions in a chunk, and those that are executed before the next decision
HALF_WIDTH, BOTTOM, TOP = 0.1, 0.25, 0.5  # of the tower, in the units of observations; the pad is 0.4 wide
UNSEEN = 3_000_000  # the first seed of the episodes that are flown to measure; demonstrations are from 0 on

# Solvers of each name, on any grid unless one is given; the best on validation pairs by mean squared error is measured.
CLASSICAL = {
    "Euler": ["ddim/time_uniform"],
    "DPM-Solver++": ["dpmpp-2m", "dpmpp-3m"],
    "UniPC": ["unipc-1-bh2", "unipc-2-bh2", "unipc-3-bh2"],
    "best of all classical": list(gas.classical.SOLVERS),
}
SEEDS = 3  # trainings of each solver, from other pairs; the network is one
BLOCK = 100  # episodes that are flown at once
PAIRS, VALIDATION = 768, 256  # of each training, and of them to choose by
ERRORS = 2048  # pairs to measure errors on


class Tower(gymnasium.Wrapper):
    """LunarLander with a tower above the pad: who touches it has crashed."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        if abs(observation[0]) < HALF_WIDTH and BOTTOM < observation[1] < TOP:
            reward, terminated = -100.0, True
        return observation, reward, terminated, truncated, info


def lander():
    return Tower(
        gymnasium.make("LunarLander-v3", continuous=True, max_episode_steps=800, disable_env_checker=True)
    )


def pilot(environment, observation, side):
    """The heuristic of Gymnasium, which flies to the origin; this moves the origin beside the tower until passed."""
    observation = observation.copy()
    if observation[1] > BOTTOM:
        if observation[0] * side < HALF_WIDTH + 0.07:
            observation[1] -= TOP + 0.25  # stay above it until beside it
        observation[0] -= side * (HALF_WIDTH + 0.2)
    return heuristic(environment.unwrapped, observation)


def demonstration(seed):
    """Observations ``(T, 8)`` and chunks ``(T, CHUNK, 2)`` of one flight, and its return."""
    environment, side = lander(), 2 * int(np.random.default_rng(seed).integers(2)) - 1
    observation, _ = environment.reset(seed=seed)
    observations, actions, total, ended = [], [], 0.0, False
    while not ended:
        observations.append(observation)
        actions.append(pilot(environment, observation, side))
        observation, reward, terminated, truncated, _ = environment.step(actions[-1])
        total, ended = total + reward, terminated or truncated
    actions = np.stack(actions + actions[-1:] * (CHUNK - 1)).astype("float32")
    chunks = np.lib.stride_tricks.sliding_window_view(actions, CHUNK, axis=0).swapaxes(1, 2)
    return np.stack(observations), chunks, total


def demonstrations(seeds):
    """Observations and chunks of all flights that solved the task."""
    flights = [flight for flight in map(demonstration, seeds) if flight[2] >= 200]
    return [torch.from_numpy(np.concatenate([flight[i] for flight in flights])) for i in (0, 1)]


class Policy(nn.Module):
    """The velocity ``eps - x_0`` of chunks ``(B, CHUNK, 2)`` at times ``(B,)``, given observations ``(B, 8)``."""

    def __init__(self, width=256):
        super().__init__()
        sizes = [CHUNK * 2 + 9 + 8, width, width, width]
        hidden = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, CHUNK * 2))
        self.register_buffer("center", torch.zeros(8))
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x, t, observation):
        angles = t[:, None] * torch.pi * torch.tensor([0.5, 1, 2, 4])
        observation = (observation - self.center) / self.scale
        y = torch.cat([x.flatten(1), t[:, None], angles.sin(), angles.cos(), observation], dim=1)
        return self.layers(y).view_as(x)


def train(observations, chunks, steps, seed=0, batch=256):
    """Flow matching: regress ``eps - x_0`` at ``x_t = (1 - t) x_0 + t eps``."""
    torch.manual_seed(seed)
    policy = Policy()
    policy.center, policy.scale = observations.mean(0), observations.std(0) + 0.05
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(chunks), (batch,))
        x0, t = chunks[rows], torch.rand(batch)
        noise = torch.randn_like(x0)
        x = torch.lerp(x0, noise, t[:, None, None])
        loss = (policy(x, t, observations[rows]) - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return policy


def model_of(policy, observations):
    """The frozen policy as the library sees it; seed s has row s of the observations as its condition."""
    policy = policy.eval().requires_grad_(False)
    denoise = gas.denoise.FlowDenoiser(policy)
    return gas.OwnModel(
        denoise, gas.Flow(), (CHUNK, 2), weights=policy, conditions=observations, name="lander"
    )


@torch.no_grad()
def decide(model, table, observations, noise):
    """Chunks of actions ``(B, CHUNK, 2)`` for observations ``(B, 8)``."""
    return gas.sample(model.bind_conditions(observations), noise, table)


def fly(model, table, episodes):
    """The return of every episode; all that still fly decide in one batch, with noise of their own."""
    flights = [lander() for _ in episodes]
    states = torch.stack(
        [torch.from_numpy(f.reset(seed=s)[0]) for f, s in zip(flights, episodes, strict=True)]
    )
    # Noise by episode, so that it depends neither on the solver nor on the others that fly.
    generators = [torch.Generator().manual_seed(seed) for seed in episodes]
    returns, flying = [0.0] * len(flights), range(len(flights))
    while flying:
        noise = torch.stack([torch.randn(CHUNK, 2, generator=generators[i]) for i in flying])
        chunks = decide(model, table, states[list(flying)], noise).numpy()
        still = []
        for i, chunk in zip(flying, chunks, strict=True):
            for action in chunk[:EXECUTED]:
                state, reward, terminated, truncated, _ = flights[i].step(action)
                returns[i] += float(reward)
                if ended := terminated or truncated:
                    break
            states[i] = torch.from_numpy(state)
            if not ended:
                still.append(i)
        flying = still
    return returns


# --- what is measured ----------------------------------------------------------------------------------------


def setup(work, demonstrated, steps):
    """Return the model, trained once; its conditions are observations of other flights, the last of others again."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "policy.safetensors").exists():
        other, parts = demonstrated // 5, []
        for first, count in ((demonstrated, PAIRS * SEEDS), (demonstrated + other, ERRORS)):
            observations, _ = demonstrations(range(first, first + other))
            order = torch.randperm(len(observations), generator=torch.Generator().manual_seed(0))
            parts.append(observations[order[torch.arange(count) % len(order)]])
        save_file({"observations": torch.cat(parts)}, work / "observations.safetensors")
        policy = train(*demonstrations(range(demonstrated)), steps)
        save_file(policy.state_dict(), work / "policy.safetensors")
    policy = Policy()
    policy.load_state_dict(load_file(work / "policy.safetensors"))
    return model_of(policy, load_file(work / "observations.safetensors")["observations"])


def latency(model, table, observation, runs=100):
    """The median processor time of one decision in milliseconds."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        decide(model, table, observation, torch.zeros(1, CHUNK, 2))
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


class Measurement:
    """Measures the rows of the table; policy and pairs are made at first use."""

    def __init__(self, options):
        self.options, self.tables = options, {}

    @cached_property
    def model(self):
        return setup(self.options.work, self.options.demonstrations, self.options.steps)

    @cached_property
    def teacher(self):
        return gas.Classical("dpmpp-2m", "time_uniform", nfe=50, t_end=self.model.t_end)

    @cached_property
    def unseen(self):
        return gas.pairs.teach(self.model, self.teacher, range(PAIRS * SEEDS, len(self.model.conditions)))

    def pairs(self, seed):
        """Pairs of one training of a solver: other seeds and other observations for each."""
        return gas.pairs.teach(self.model, self.teacher, range(PAIRS * seed, PAIRS * (seed + 1)))

    def learned(self, nfe, seed):
        """Return a learned solver, learned once."""
        file = self.options.work / f"lander-{nfe}-{seed}.json"
        if not file.exists():
            *_, result = gas.distill(self.model, *self.pairs(seed).split(VALIDATION), nfe=nfe)
            gas.save(file, result, model=self.model)
        return "GS", gas.load(file).table(nfe=nfe)

    def table(self, name, nfe, seed):
        """Return label and table of a solver."""
        if (name, nfe, seed) not in self.tables:
            if name == "GS":
                solver = self.learned(nfe, seed)
            elif name == "teacher":
                solver = self.teacher.label, self.teacher.table(self.model.schedule)
            else:
                validation = self.pairs(0).split(VALIDATION)[1]
                ranked = gas.training.best_classical(self.model, validation, nfe, CLASSICAL[name])
                solver = ranked.classical.label, ranked.table
            self.tables[name, nfe, seed] = solver
        return self.tables[name, nfe, seed]

    def errors(self, name, nfe, seed):
        """Return squared errors of actions to the teacher, with intervals, and the time of a decision."""
        if name == "pilot":
            return {}
        label, table = self.table(name, nfe, seed)
        losses = gas.evaluate(self.model, self.unseen, table, gas.losses.l2)
        mean, half_width = gas.metrics.mean_interval(losses)
        median, interval = gas.metrics.median_interval(losses)
        return {
            "label": label,
            "mse": [mean, mean - half_width, mean + half_width],
            "median": [median, *interval],
            "milliseconds": latency(self.model, table, self.model.conditions[:1]),
        }

    def returns(self, key, episodes):
        """Return the returns of episodes."""
        if key[0] == "pilot":
            return [demonstration(episode)[2] for episode in episodes]
        return fly(self.model, self.table(*key)[1], episodes)

    @cached_property
    def policy(self):
        """What tells this policy from one of another training."""
        return gas.models.protocol.weights_hash(self.model.weights)

    def extend(self, file, key, count):
        """Return a row with so many episodes, those of its file first."""
        row = gas.io.read_json(file) if file.exists() else {}
        if missing := range(UNSEEN + len(row.get("returns", ())), UNSEEN + count):
            row = row or {"policy": self.policy, **self.errors(*key), "returns": []}
            if row["policy"] != self.policy:
                raise SystemExit(f"{file} is of another policy: name another folder of --results")
            row["returns"] += [round(each, 2) for each in self.returns(key, missing)]
            gas.io.write_text(file, json.dumps(row) + "\n")
        return row | {"returns": row["returns"][:count]}


def plan(nfes):
    """Names, NFE and seeds of all rows."""
    for nfe in nfes:
        # At one call all classical solvers are Euler's step.
        yield from ((name, nfe, 0) for name in CLASSICAL if nfe > 1 or name == "Euler")
        yield from (("GS", nfe, seed) for seed in range(SEEDS))
    yield from (("teacher", 50, 0), ("pilot", 0, 0))


def solved(rows):
    """The share of trainings that solve each episode, in percent."""
    return (torch.tensor([row["returns"] for row in rows]) >= 200).double().mean(0) * 100


def percent(values):
    mean, half_width = gas.metrics.mean_interval(values)
    return f"{mean:.1f} ± {half_width:.1f}"


def cells(name, nfe, rows):
    """The cells of one row of the table: episodes and errors are averaged over training seeds."""
    returns = torch.tensor([row["returns"] for row in rows], dtype=torch.float64)
    success = percent(solved(rows))
    if len(rows) > 1:
        success += " (" + ", ".join(f"{float(solved([row]).mean()):.1f}" for row in rows) + ")"
    mean, half_width = gas.metrics.mean_interval(returns.mean(0))
    flown = [success, with_interval(mean, mean - half_width, mean + half_width)]
    if name == "pilot":
        return ["the pilot", "", *flown, "", "", ""]
    errors = [
        with_interval(*(1e3 * np.mean([row[error] for row in rows], axis=0))) for error in ("mse", "median")
    ]
    return [name, nfe, *flown, *errors, f"{np.mean([row['milliseconds'] for row in rows]):.2g}"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default="runs/control", help="folder of the policy and solvers")
    parser.add_argument(
        "--results", type=Path, required=True, help="folder of the table's rows, one file each"
    )
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--episodes", type=int, default=1000, help="flown with each solver")
    parser.add_argument("--demonstrations", type=int, default=1500, help="flights of the pilot")
    parser.add_argument("--steps", type=int, default=20_000, help="of the policy's training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(options)
    # All rows grow together, so that a run that is stopped has as many episodes of each.
    for count in [*range(BLOCK, options.episodes, BLOCK), options.episodes]:
        table = {}
        for key in plan(options.nfe):
            file = options.results / "{}-{}-{}.json".format(*key).lower().replace(" ", "-")
            table.setdefault(key[:2], []).append(measurement.extend(file, key, count))
    head = ["solver", "calls", "solved %", "return", "MSE x 1000", "median x 1000", "ms a decision"]
    print(markdown_table(head, [cells(*key, rows) for key, rows in table.items()]))
    print("\nSolved by GS less solved by the best of all classical solvers, same episodes:")
    for nfe in options.nfe:
        best = table.get(("best of all classical", nfe)) or table["Euler", nfe]
        print(f"{nfe} calls: {percent(solved(table['GS', nfe]) - solved(best))} points")


if __name__ == "__main__":
    main()
