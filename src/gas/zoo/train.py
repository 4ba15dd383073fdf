"""The recipe behind the shipped weights: train a denoiser by EDM's loss, checkpointed and resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.zoo.data import Images
from gas.zoo.training import Progress, train
from gas.zoo.unet import EDMUNet

__all__ = ["RECIPES", "Progress", "Recipe", "train_classifier", "train_denoiser"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a zoo model's weights, given its images.

    ``label_spread`` is applied when the weights are shipped: every class embedding is moved away from the
    *no class* one by this factor. A little above 1 acts like a little guidance, at no cost. The learning rate falls to
    zero at ``horizon`` steps, by default the last; where training ends before, its average is good enough without.
    """

    network: dict[str, Any]
    steps: int
    horizon: int = 0
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    label_dropout: float = 0.1
    label_spread: float = 1.0
    ema_images: int = 30_000
    seed: int = 0


RECIPES = {
    "digits": Recipe(
        network={"width": 32, "multipliers": [1, 2], "blocks": 1, "patch": 1, "sigma_data": 0.75},
        steps=5_000,
    ),
    "mnist": Recipe(
        network={"width": 32, "multipliers": [1, 2, 4], "blocks": 1, "patch": 2, "sigma_data": 0.55},
        steps=8_000,
        label_spread=1.15,
    ),
}


def train_denoiser(
    recipe: Recipe, images: Images, checkpoint: Path, *, every: int = 100, device: str = "cpu"
) -> Iterator[Progress]:
    """Minimise EDM's weighted denoising error; continue from ``checkpoint`` if it exists.

    ``E |D(x_0 + sigma eps; sigma) - x_0|^2 (sigma^2 + c^2) / (sigma c)^2`` with
    ``log sigma ~ N(-1.2, 1.2^2)`` and ``c = sigma_data``. Noise and order of step ``k`` depend on the
    seed and ``k`` alone, so an interrupted run ends with the weights of an uninterrupted one.

    Args:
        recipe: network sizes and optimiser settings.
        images: what to learn; the held-out part is not touched.
        checkpoint: file of the resumable state; its ``ema`` entry ends as the weights to ship.
        device: where to train.
        every: steps between reports; the checkpoint is written at each.

    Returns:
        The reports, one after every ``every`` steps; the work is done as they are asked for.

    References:
        arXiv 2206.00364, equations 8 and 108 and Table 1.
    """
    x, label = images.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = EDMUNet(**recipe.network)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(x), (recipe.batch,), generator=generator)
        return _edm_loss(network, x[chosen], label[chosen], recipe.label_dropout, generator, device)

    return train(recipe, model, loss, checkpoint, every=every, device=device)


def train_classifier(
    model: nn.Module, images: Images, *, epochs: int = 20, batch: int = 100, seed: int = 0
) -> float:
    """Train a classifier in place by cross-entropy on randomly shifted images; return held-out accuracy."""
    x, label = images.train
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        torch.manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(x), (batch,), generator=generator)
            shifted = _shifted(x[chosen], generator)
            loss = F.cross_entropy(model(shifted), label[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        x, label = images.test
        return float((model(x).argmax(dim=1) == label).double().mean())


def _edm_loss(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    label_dropout: float,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    c = float(model.sigma_data)  # type: ignore[arg-type]
    sigma = torch.exp(torch.randn(len(x), generator=generator) * 1.2 - 1.2)
    noise = torch.randn(x.shape, generator=generator)
    dropped = torch.rand(len(x), generator=generator) < label_dropout
    label = torch.where(dropped, torch.full_like(label, int(model.classes)), label)  # type: ignore[arg-type]
    noisy = (x + sigma[:, None, None, None] * noise).contiguous(memory_format=torch.channels_last)
    noisy, x, sigma, label = (part.to(device) for part in (noisy, x, sigma, label))
    weight = (sigma**2 + c**2) / (sigma * c) ** 2
    error = (model(noisy, sigma, label) - x).square().mean(dim=(1, 2, 3))
    loss: Tensor = (weight * error).mean()
    return loss


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift the whole batch by up to a sixteenth of its side, filling with background."""
    reach = x.shape[-1] // 16
    if reach == 0:
        return x
    dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, (reach, reach, reach, reach), value=-1.0)
    side = x.shape[-1]
    return padded[..., reach + dy : reach + dy + side, reach + dx : reach + dx + side]
