"""A 3-call solver for a flow-matching policy that turns an observation into a chunk of actions.

The network follows the convention of most flow-matching code: noise at t = 0, data at t = 1, and it predicts the
velocity ``x_1 - x_0``. It is small and trained in seconds. Run ``python flow_model.py``.
"""

import torch
from torch import nn

import gas

CHUNK = (8, 2)  # eight actions of two numbers


class Policy(nn.Module):
    """Predicts the velocity of actions ``(B, 8, 2)`` at times ``(B,)``, given observations ``(B, 3)``."""

    def __init__(self, width=128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16 + 1 + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 16)
        )

    def forward(self, x, t, observation):
        return self.layers(torch.cat([x.flatten(1), t[:, None], observation], dim=1)).view_as(x)


def demonstrations(count):
    """Observations, and arcs to the left or to the right of the obstacle that they describe."""
    observation, side = torch.rand(count, 3), torch.randint(2, (count, 1)) * 2.0 - 1
    phase = torch.linspace(0, torch.pi, 8)
    forward = observation[:, :1] * phase / torch.pi
    across = side * (0.3 + observation[:, 1:2]) * phase.sin() + 0.2 * observation[:, 2:]
    return torch.stack([forward, across], dim=2) + 0.02 * torch.randn(count, *CHUNK), observation


def train(steps=500, batch=256):
    """Flow matching as usual."""
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    for _ in range(steps):
        (data, observation), noise, t = demonstrations(batch), torch.randn(batch, *CHUNK), torch.rand(batch)
        x = torch.lerp(noise, data, t[:, None, None])
        loss = (policy(x, t, observation) - (data - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval().requires_grad_(False)


def main():
    torch.manual_seed(0)
    policy = train()
    # The library's flows have noise at t = 1 and predict noise minus data.
    denoise = gas.denoise.FlowDenoiser(lambda x, t, observation: -policy(x, 1 - t, observation))
    _, observations = demonstrations(500)
    model = gas.OwnModel(denoise, gas.Flow(), CHUNK, weights=policy, conditions=observations, name="policy")

    teacher = gas.Classical("unipc-2-bh2", "time_uniform", nfe=32, t_end=model.t_end)
    pairs, unseen = gas.pairs.teach(model, teacher, range(256)).split(128)
    solver = gas.GeneralizedSolver(model.schedule, nfe=3, t_end=model.t_end)
    for record in gas.fit(solver, model, pairs, config=gas.GaussNewton(iterations=8)):
        print(f"iteration {record.iteration}: validation loss {record.validation_loss:.6f}")
    gas.save("policy-3.json", solver, model=model, teacher=pairs.teacher, loss="l2")

    table = gas.load("policy-3.json").table(nfe=3)
    euler = gas.Classical("ddim", "time_uniform", nfe=3, t_end=model.t_end)
    for name, candidate in {"euler": euler, "learned": table}.items():
        error = gas.evaluate(model, unseen, candidate, gas.losses.l2).mean()
        print(f"{name}: mean squared error to the teacher {error:.6f}")

    observation = torch.tensor([[0.9, 0.2, 0.5]])  # a new one, as the robot sees it
    actions = gas.sample(model.bind_conditions(observation), torch.randn(1, *CHUNK), table)
    print("next action:", [round(value, 3) for value in actions[0, 0].tolist()])


if __name__ == "__main__":
    main()
