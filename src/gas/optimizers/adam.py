"""First-order learning: Adam with an average of the solver, as the paper trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gas.losses import Loss
from gas.model import Model
from gas.optimizers.order import visited
from gas.pairs import Pairs
from gas.sample import sample
from gas.table import Table

__all__ = ["PAPER", "Adam", "AdamSteps", "Diverged"]


class Diverged(ArithmeticError):
    """Training produced a value that is not finite; the solver holds the best numbers seen before."""


@dataclass(frozen=True)
class Adam:
    """Settings of Adam; the defaults are ours, :data:`PAPER` has the published ones.

    Args:
        iterations: optimiser steps.
        batch: pairs a step.
        learning_rate: of Adam, betas (0.9, 0.999).
        decay: ``"cosine"`` to zero, or ``"constant"``.
        clip: largest norm of the gradient.
        ema: decay of the averaged solver, which is what is validated and kept.
        validate_every: iterations between validations.
        seed: of the batches' order.

    Raises:
        ValueError: names the setting that is out of range.
    """

    iterations: int = 1000
    batch: int = 24
    learning_rate: float = 1e-2
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    ema: float = 0.98
    validate_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "validate_every", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f"decay must be 'cosine' or 'constant', got {self.decay!r}")


PAPER = Adam(iterations=10_000, learning_rate=1e-3, decay="constant", ema=0.999, validate_every=500)


class AdamSteps:
    """Minimises ``E loss(student, teacher)`` by Adam on gradients through the whole run of the solver."""

    def __init__(self, solver: nn.Module, model: Model, pairs: Pairs, loss: Loss, config: Adam) -> None:
        self.solver, self.model, self.pairs, self.loss, self.config = solver, model, pairs, loss, config
        self.average = AveragedModel(solver, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.average.update_parameters(solver)  # the first update copies, so that the start is averaged in
        self.optimizer = torch.optim.Adam(solver.parameters(), lr=config.learning_rate)
        self.iteration, self.evaluations = 0, 0

    def averaged(self) -> nn.Module:
        """Return the averaged solver, which is what is validated."""
        average: nn.Module = self.average.module
        return average

    def step(self) -> float:
        """Take one step; return its batch's loss.

        Raises:
            Diverged: when the loss or its gradient is not finite.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self._decay()
        size = min(config.batch, len(self.pairs))
        chosen = self.pairs.subset(visited(len(self.pairs), self.iteration * size, size, config.seed))
        noise = chosen.noise.to(self.model.device)
        try:
            table: Table = self.solver()
        except ValueError as error:
            raise Diverged(f"iteration {self.iteration}: {error}; lower learning_rate") from error
        made = sample(self.model.bind(chosen.labels, self.pairs.guidance), noise, table.folded())
        loss = self.loss(made, chosen.target.to(made)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.solver.parameters(), config.clip)
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss.detach())):
            raise Diverged(f"iteration {self.iteration}: loss {float(loss.detach()):g}; lower learning_rate")
        self.optimizer.step()
        self.average.update_parameters(self.solver)
        self.iteration += 1
        # A gradient through a call costs about two more calls.
        self.evaluations += 3 * len(chosen) * table.nfe
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs to go on with the same bits."""
        return {
            "solver": self.solver.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "evaluations": self.evaluations,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.solver.load_state_dict(state["solver"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]

    def _decay(self) -> float:
        if self.config.decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))
