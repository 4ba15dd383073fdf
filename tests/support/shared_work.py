"""What one process and several must do alike: run in the tests, and as the program that torchrun starts."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

import torch

from gas import distributed
from gas.classical.registry import Classical
from gas.learned.generalized import GeneralizedSolver
from gas.losses import FeatureLoss, l1
from gas.pairs import teacher
from gas.paper.presets import PRESETS
from gas.training.adam import Adam
from gas.training.adversarial.losses import Discriminator
from gas.training.gauss_newton import GaussNewton
from gas.training.loop import fit
from support import quick, standins
from support.doubles import MIXTURE, taught


def gas_command(*words):
    """Run ``python -m gas`` in this process; return its exit code and what it printed."""
    printed, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["gas", *map(str, words)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
    ):
        try:
            runpy.run_module("gas", run_name="__main__")
        except SystemExit as end:
            return end.code or 0, printed.getvalue(), errors.getvalue()
    return 0, printed.getvalue(), errors.getvalue()


def learned(folder, name, loss, config, **more):
    """Train on the mixture, resumably, and keep what this process ended with."""
    table = Classical("dpmpp-2m", "time_uniform", 3, MIXTURE.t_end).table(MIXTURE.schedule)
    solver = GeneralizedSolver.from_table(MIXTURE.schedule, table, MIXTURE.t_end)
    data = {"validation": taught(range(500, 600), labelled=True), "checkpoint": folder / f"{name}.state"}
    pairs = taught(range(101), labelled=True)
    *_, last = fit(solver, MIXTURE, pairs, loss=loss, config=config, **data, **more)
    ended = {"solver": solver.state_dict(), "losses": (last.start_loss, last.best_loss, last.evaluations)}
    ended |= {
        "logs": dict(last.logs),
        "critics": [c.network.state_dict() for c in more.get("discriminators", [])],
    }
    torch.save(ended, folder / f"{name}-{distributed.rank()}.pt")


def critic():
    """A discriminator of points that counts from the second step on and is updated twice a step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1), torch.nn.Flatten(0)]
    network = torch.nn.Sequential(*layers)
    return Discriminator("c", network, weight=0.1, warmup=2, steps=2, learning_rate=3e-3)


@quick.few_classical_solvers()
@quick.short_runs()
@quick.quick_gauss_newton()
def work(folder, model):
    """Pairs, training by both optimisers, statistics and an evaluation of a model's file, into a folder."""
    solver = folder / "gs.json"
    commands = [
        f"pairs --seeds 72 --nfe 5 --batch 16 --out {folder / 'pairs'} --json",
        f"train --pairs {folder / 'pairs'} --nfe 1 --validation 12 --iterations 2 --out {solver}",
        f"statistics --pairs {folder / 'pairs'} --out {folder / 'statistics.safetensors'}",
        f"evaluate --solver {solver} --seeds 50000:50016 --json",
    ]
    for line in commands:
        words = line.split()
        code, printed, errors = gas_command(*words, "--model", model)
        if code:
            raise RuntimeError(f"gas {words[0]} ended with {code}: {errors}")
        if distributed.is_first():
            (folder / f"{words[0]}.out").write_text(printed.replace(str(folder), "FOLDER"))
        elif printed or errors:
            raise RuntimeError(f"gas {words[0]} speaks in process {distributed.rank()}: {printed}{errors}")
    preset(folder)
    learned(folder, "features", FeatureLoss(lambda x: x.sin()), GaussNewton(iterations=4))
    learned(folder, "adam", l1, Adam(iterations=16, batch=13, relax=0.1, validate_every=8))
    against = Adam(iterations=16, batch=13, validate_every=8)
    for pairing in ("independent", "paired"):
        learned(folder, pairing, l1, against, discriminators=[critic()], pairing=pairing, keep="last")


def preset(folder):
    """A published setup on its stand-in: pairs, then training as the paper does, by Adam."""
    weights, setup = folder / "weights", PRESETS["cifar10"]
    distributed.broadcast(lambda: str(standins.write_weights(setup, weights)))
    words = [setup.name, "--preset-weights", weights, *standins.small(setup)]
    pairs_folder = folder / "preset-pairs"
    for more in (
        ["pairs", "--out", pairs_folder],
        ["train", "--nfe", 3, "--pairs", pairs_folder, "--out", folder / "preset.json"],
    ):
        code, _, errors = gas_command("paper", more[0], *words, *more[1:])
        if code:
            raise RuntimeError(f"gas paper {more[0]} ended with {code}: {errors}")


def trouble(folder, model):
    """What cannot be shared, and a teacher that fails in the second process alone."""
    few = f"train --objective gas --pairs {folder / 'pairs'} --validation 24 --batch 1 --out {folder / 'few.json'}"
    outcomes = [gas_command(*few.split(), "--model", model), gas_command("zoo")]
    real = teacher._run

    def failing(*args, **kwargs):
        if distributed.rank() == 1:
            raise OSError("the second machine's own trouble")
        return real(*args, **kwargs)

    with mock.patch.object(teacher, "_run", failing):
        words = ["pairs", "--model", model, "--seeds", 48, "--batch", 16]
        outcomes.append(gas_command(*words, "--out", folder / "failed"))
    if distributed.is_first():
        (folder / "trouble.out").write_text(
            "\n\n".join(f"{code} {errors.strip()}" for code, _, errors in outcomes)
        )
    raise SystemExit(outcomes[-1][0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group():
        for part in (work, trouble):
            part(*map(Path, sys.argv[1:]))
