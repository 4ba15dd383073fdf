"""The loop that trains the zoo's networks: warm-up, cosine, moving average, checkpointed and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gas.errors import UserError
from gas.io import load_state, save_state

__all__ = ["Loss", "Pace", "Progress", "finished", "train"]

Loss = Callable[[nn.Module, torch.Generator], Tensor]


class Pace(Protocol):
    """What the loop asks of a recipe; whose ``repr`` says which training a checkpoint is of."""

    @property
    def steps(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def ema_images(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Progress:
    """One report of a training: mean loss since the last, and seconds of work so far, over all runs."""

    step: int
    steps: int
    loss: float
    seconds: float


def train(
    pace: Pace, model: nn.Module, loss: Loss, checkpoint: Path, *, every: int = 100, device: str = "cpu"
) -> Iterator[Progress]:
    """Minimise a loss by Adam in place; continue from ``checkpoint`` if it exists.

    The generator of step ``k`` depends on the seed and ``k`` alone, so an interrupted run ends with the weights of an
    uninterrupted one.

    Args:
        pace: optimiser settings.
        model: what to train.
        loss: ``loss(model, generator)`` of one step, which draws its batch and noise from the generator.
        checkpoint: file of the resumable state; its ``ema`` entry ends as the weights to ship.
        every: steps between reports; the checkpoint is written at each.
        device: where to train.

    Yields:
        Progress: after every ``every`` steps.

    Raises:
        ValueError: when the checkpoint is of another recipe.
    """
    training = _Training(pace, model.to(device), loss, device)
    if checkpoint.exists():
        training.restore(load_state(checkpoint))
    losses, start = 0.0, time.perf_counter()
    while training.step < pace.steps:
        losses += training.advance()
        last = training.step == pace.steps
        if training.step % every == 0 or last:
            training.seconds += time.perf_counter() - start
            start = time.perf_counter()
            save_state(checkpoint, training.state())
            yield Progress(training.step, pace.steps, losses / every, training.seconds)
            losses = 0.0


def finished(checkpoint: Path, pace: Pace) -> dict[str, Any]:
    """Return the state of a training that has ended.

    Raises:
        ValueError: when it has not.
    """
    state: dict[str, Any] = load_state(checkpoint)
    if state["step"] < pace.steps:
        raise UserError(f"{checkpoint} is at step {state['step']} of {pace.steps}: finish the training first")
    return state


class _Training:
    """Model, average and optimiser of one training, and how far it is."""

    def __init__(self, pace: Pace, model: nn.Module, loss: Loss, device: str) -> None:
        self.pace, self.model, self.loss, self.device = pace, model, loss, device
        self.average = AveragedModel(model, avg_fn=_ema_rule(pace))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=pace.learning_rate)
        self.step, self.seconds = 0, 0.0

    def advance(self) -> float:
        """Take one step and return its loss."""
        pace = self.pace
        generator = torch.Generator().manual_seed(pace.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = pace.learning_rate * _ramp(self.step, pace)
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
            "recipe": repr(self.pace),
            "device": self.device,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state.get("recipe") != repr(self.pace):
            raise UserError("the checkpoint is of another recipe: delete it or choose another folder")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def _ramp(step: int, pace: Pace) -> float:
    """Linear warm-up, then half a cosine down to zero at the horizon."""
    warm = min(1.0, (step + 1) / pace.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / (pace.horizon or pace.steps)))


def _ema_rule(pace: Pace) -> Any:
    """Half-life of ``ema_images`` images, but at most a twentieth of those seen (EDM's ramp-up)."""

    def average(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        seen = (int(count) + 1) * pace.batch
        decay: float = 0.5 ** (pace.batch / min(pace.ema_images, 0.05 * seen))
        return torch.lerp(new, mean, decay)

    return average
