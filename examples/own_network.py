"""A 4-call solver for your own network, trained on the 1,000 discrete steps of a DDPM.

denoising-diffusion-pytorch and similar code has a network of integer steps and the buffer ``alphas_cumprod``. Here both
are small, and trained in seconds on points of two moons. Run ``python own_network.py``.
"""

import math

import torch
from torch import nn

import gas


class Network(nn.Module):
    """Predicts the noise in points ``(B, 2)`` at steps ``(B,)``, integers from 0 to 999."""

    def __init__(self, width=128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        self.register_buffer("frequencies", torch.exp(-math.log(1000) * torch.arange(16) / 16))

    def forward(self, x, step):
        angles = step[:, None] * self.frequencies
        return x + self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))


def moons(count):
    """Points of two interleaved half circles."""
    angle, side = torch.rand(count) * math.pi, torch.randint(2, (count,)) * 2 - 1
    x = torch.stack([angle.cos() - 0.5 * side, side * (angle.sin() - 0.25)], dim=1)
    return x + 0.03 * torch.randn(count, 2)


# The linear schedule. Of denoising-diffusion-pytorch take diffusion.alphas_cumprod and diffusion.model.
alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def train(steps=500, batch=256):
    """The usual training, with the loss on the noise."""
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        x, noise, step = moons(batch), torch.randn(batch, 2), torch.randint(1000, (batch,))
        signal = alphas_cumprod[step, None].float()
        loss = (network(signal.sqrt() * x + (1 - signal).sqrt() * noise, step) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def main():
    network = train()
    schedule = gas.VPDiscrete(alphas_cumprod)
    steps = gas.denoise.DiscreteTime(network, schedule)  # from times in (0, 1] to steps
    denoise = gas.denoise.NoiseDenoiser(steps, schedule)  # VelocityDenoiser for objective="pred_v"
    model = gas.OwnModel(denoise, schedule, sample_shape=(2,), weights=network, name="moons")
    for problem in gas.check_model(model):
        print("warning:", problem)

    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=40, t_end=model.t_end)
    pairs, unseen = gas.pairs.teach(model, teacher, range(256)).split(128)
    classical = gas.Classical("unipc-3-bh2", "time_uniform", nfe=4, t_end=model.t_end)
    solver = gas.GeneralizedSolver.from_table(schedule, classical.table(schedule), model.t_end)
    for record in gas.fit(solver, model, pairs):
        print(f"iteration {record.iteration}: validation loss {record.validation_loss:.6f}")
    gas.save("moons-4.json", solver, model=model, teacher=pairs.teacher, loss="l2")

    learned = gas.load("moons-4.json").table(nfe=4)
    for name, table in {"unipc": classical, "learned": learned}.items():
        error = gas.evaluate(model, unseen, table, gas.losses.l2).mean()
        print(f"{name}: mean squared error to the teacher {error:.6f}")


if __name__ == "__main__":
    main()
