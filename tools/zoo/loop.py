"""The training loop of the zoo's networks: Adam, warm-up and cosine, moving average, resumable checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from recipes import Recipe
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.errors import UserError

__all__ = ["Loss", "Progress", "load_finished", "train"]

Loss = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class Progress:
    """A report: mean loss since the last report, and seconds of training over all runs."""

    step: int
    steps: int
    loss: float
    seconds: float


def train(
    recipe: Recipe, model: nn.Module, loss: Loss, checkpoint: Path, *, every: int = 100, device: str = "cpu"
) -> Iterator[Progress]:
    """Minimize a loss by Adam in place; resume from ``checkpoint`` if it exists.

    The generator of step ``k`` depends on the seed and ``k`` alone, so an interrupted run ends with the weights of an
    uninterrupted one.

    Args:
        recipe: optimizer settings.
        model: the network.
        loss: ``loss(model, generator)`` of a step; it draws its batch and noise from the generator.
        checkpoint: file of the resumable state; its final ``ema`` entry has the weights to ship.
        every: steps between reports; each writes the checkpoint.
        device: where to train.

    Yields:
        Progress: after every ``every`` steps.

    Raises:
        ValueError: when the checkpoint belongs to another recipe.
    """
    training = _Training(recipe, model.to(device), loss, device)
    if checkpoint.exists():
        training.restore(read_checkpoint(checkpoint))
    losses, start = 0.0, time.perf_counter()
    while training.step < recipe.steps:
        losses += training.advance()
        if training.step % every == 0 or training.step == recipe.steps:
            training.seconds += time.perf_counter() - start
            start = time.perf_counter()
            write_checkpoint(checkpoint, training.state())
            yield Progress(
                step=training.step, steps=recipe.steps, loss=losses / every, seconds=training.seconds
            )
            losses = 0.0


def load_finished(checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """Return the state of a finished training.

    Raises:
        ValueError: when steps are missing.
    """
    state: dict[str, Any] = read_checkpoint(checkpoint)
    if state["step"] < recipe.steps:
        raise UserError(
            f"{checkpoint} is at step {state['step']} of {recipe.steps}: finish the training first"
        )
    return state


class _Training:
    """Model, moving average, optimizer and step count."""

    def __init__(self, recipe: Recipe, model: nn.Module, loss: Loss, device: str) -> None:
        self.recipe, self.model, self.loss, self.device = recipe, model, loss, device
        self.average = AveragedModel(model, avg_fn=_ema_rule(recipe))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
        self.step, self.seconds = 0, 0.0

    def advance(self) -> float:
        """Take a step and return its loss."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _ramp(self.step, recipe)
        loss = self.loss(self.model, generator)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "recipe": _identity(self.recipe),
            "device": self.device,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state.get("recipe") != _identity(self.recipe):
            raise UserError("the checkpoint belongs to another recipe: delete it or choose another folder")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def _identity(recipe: Recipe) -> str:
    """Name a recipe in its checkpoints; where the learning rate has a horizon, its end decides nothing before."""
    return repr(replace(recipe, steps=0) if recipe.horizon else recipe)


def _ramp(step: int, recipe: Recipe) -> float:
    """Linear warm-up times half a cosine, which reaches zero at the horizon."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / (recipe.horizon or recipe.steps)))


def _ema_rule(recipe: Recipe) -> Any:
    """Half-life of ``ema_images`` images, at most a twentieth of the images so far (EDM's ramp-up)."""

    def average(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        images = (int(count) + 1) * recipe.batch
        decay: float = 0.5 ** (recipe.batch / min(recipe.ema_images, 0.05 * images))
        return torch.lerp(new, mean, decay)

    return average
