"""The recipe behind the shipped weights: train a denoiser by EDM's loss, checkpointed and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gas.files import load_state, save_state
from gas.zoo.data import Images
from gas.zoo.unet import EDMUNet

__all__ = ["RECIPES", "Progress", "Recipe", "train_classifier", "train_denoiser"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a zoo model's weights, given its images.

    ``label_spread`` is applied when the weights are shipped: every class embedding is moved away from the
    *no class* one by this factor. A little above 1 acts like a little guidance, at no cost.
    """

    network: dict[str, Any]
    steps: int
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


@dataclass(frozen=True)
class Progress:
    """One report of a training: mean loss since the last, and seconds of work so far, over all runs."""

    step: int
    steps: int
    loss: float
    seconds: float


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

    Yields:
        Progress: after every ``every`` steps.

    References:
        arXiv 2206.00364, equations 8 and 108 and Table 1.
    """
    training = _Training(recipe, images, device)
    if checkpoint.exists():
        training.restore(load_state(checkpoint))
    losses, start = 0.0, time.perf_counter()
    while training.step < recipe.steps:
        losses += training.advance()
        last = training.step == recipe.steps
        if training.step % every == 0 or last:
            training.seconds += time.perf_counter() - start
            start = time.perf_counter()
            save_state(checkpoint, training.state())
            yield Progress(training.step, recipe.steps, losses / every, training.seconds)
            losses = 0.0


class _Training:
    """Model, average and optimiser of one training, and how far it is."""

    def __init__(self, recipe: Recipe, images: Images, device: str) -> None:
        self.recipe, (self.x, self.label) = recipe, images.train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = EDMUNet(**recipe.network)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.average = AveragedModel(self.model, avg_fn=_ema_rule(recipe))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate)
        self.step, self.seconds = 0, 0.0

    def advance(self) -> float:
        """Take one step and return its loss."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.x), (recipe.batch,), generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _ramp(self.step, recipe)
        x, label = self.x[chosen], self.label[chosen]
        loss = _edm_loss(self.model, x, label, recipe.label_dropout, generator, self.device)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "recipe": repr(self.recipe),
            "device": self.device,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state.get("recipe") != repr(self.recipe):
            raise ValueError("the checkpoint is of another recipe: delete it or choose another folder")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


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


def _ramp(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _ema_rule(recipe: Recipe) -> Any:
    """Half-life of ``ema_images`` images, but at most a twentieth of those seen (EDM's ramp-up)."""

    def average(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        seen = (int(count) + 1) * recipe.batch
        decay: float = 0.5 ** (recipe.batch / min(recipe.ema_images, 0.05 * seen))
        return torch.lerp(new, mean, decay)

    return average


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift the whole batch by up to a sixteenth of its side, filling with background."""
    reach = x.shape[-1] // 16
    if reach == 0:
        return x
    dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, (reach, reach, reach, reach), value=-1.0)
    side = x.shape[-1]
    return padded[..., reach + dy : reach + dy + side, reach + dx : reach + dx + side]
