"""Adversarial objectives: what a critic says of students and teachers, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.arguments import MAX_ITERATIONS, callable_, flag, integer, number, of_type
from gas.errors import UserError
from gas.models.runtime import PRECISIONS
from gas.registry import named

__all__ = [
    "OBJECTIVES",
    "Critic",
    "Objective",
    "classic",
    "gradient_penalty",
    "objective_by_name",
    "relativistic",
]

# (logits of fakes (B,), logits of reals (B,)) -> (generator's loss (B,), critic's loss (B,))
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def relativistic(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``softplus(-(D(fake) - D(real)))`` for the generator, ``softplus(-(D(real) - D(fake)))`` for the critic.

    Args:
        fake: the critic's logits of the student's samples ``(B,)``.
        real: its logits of the teacher's ``(B,)``, fake k against real k.

    References:
        Jolicoeur-Martineau, arXiv 1807.00734, section 4.2; Huang et al., arXiv 2501.05441, equation 2;
        arXiv 2510.17699, equation 22.
    """
    return F.softplus(real - fake), F.softplus(fake - real)


def classic(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the non-saturating ``softplus(-D(fake))``, and ``softplus(-D(real)) + softplus(D(fake))``.

    Arguments as in :func:`relativistic`.

    References:
        Goodfellow et al., arXiv 1406.2661, section 3; the ablation of arXiv 2510.17699, Table 6.
    """
    return F.softplus(-fake), F.softplus(-real) + F.softplus(fake)


OBJECTIVES: dict[str, Objective] = {"relativistic": relativistic, "classic": classic}


def objective_by_name(name: str) -> Objective:
    """Return an objective of :data:`OBJECTIVES`.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return named("objective", name, OBJECTIVES)


def gradient_penalty(logits: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    """Return ``|grad_x D(x)|^2``, summed over a sample's dimensions, ``(B,)``: R1 on reals, R2 on fakes.

    Args:
        logits: ``D(x)`` of shape ``(B,)``, with the graph that leads to ``x``.
        x: samples ``(B, *)`` that require gradients.
        scale: of the gradient on its way through a critic of half precision, where small ones would be zero.

    References:
        Mescheder et al., arXiv 1801.04406, equation 9; Roth et al., arXiv 1705.09367.
    """
    (gradient,) = torch.autograd.grad(scale * logits.sum(), x, create_graph=True)
    return (gradient / scale).flatten(1).square().sum(dim=1)


@dataclass(frozen=True)
class Critic:
    """One critic with its place in the training: what it sees and how much it weighs.

    Args:
        name: what its logs are called.
        network: ``(B, *) -> (B,)`` logits, or ``(x, labels) -> (B,)`` when ``conditional``; trained in place.
        weight: w of the generator's loss, at least 0; at 0 it is neither asked nor trained.
        view: what it sees of a sample ``(B, *)``, differentiable: pixels as they are by default, or decoded
            latents, or features of a frozen network.
        conditional: whether it is told the labels.
        objective: a name of :data:`OBJECTIVES`.
        penalty: gamma, weight of ``(R1 + R2) / 2``, at least 0.
        learning_rate: of its Adam; betas (0, 0.99) are ours.
        steps: of it for one step of the solver, at least 1, each against other reals.
        warmup: iterations in which it learns and the solver, on its paired loss, does not hear of it.
        precision: a name of :data:`gas.models.PRECISIONS`, of its network; weights and logits stay float32.

    Raises:
        ValueError: names the setting that is out of range.

    References:
        arXiv 2510.17699, section 4 (penalty 0.2, learning rate 1e-5 for pretrained critics).
    """

    name: str
    network: nn.Module
    weight: float = 1.0
    view: Callable[[Tensor], Tensor] | None = None
    conditional: bool = False
    objective: Literal["relativistic", "classic"] = "relativistic"
    penalty: float = 0.2
    learning_rate: float = 1e-5
    steps: int = 1
    warmup: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        whose = f"of critic {self.name!r}"
        of_type(f"network {whose}", self.network, nn.Module, "a torch.nn.Module")
        for name in ("weight", "penalty"):
            number(f"{name} {whose}", getattr(self, name), "[0, inf)")
        number(f"learning_rate {whose}", self.learning_rate, "(0, inf)")
        integer(f"warmup {whose}", self.warmup, 0, MAX_ITERATIONS)
        integer(f"steps {whose}", self.steps, 1, MAX_ITERATIONS)
        flag(f"conditional {whose}", self.conditional)
        if self.view is not None:
            callable_(f"view {whose}", self.view, "callable as view(x)")
        objective_by_name(self.objective)
        named("precision", self.precision, PRECISIONS)

    def settings(self) -> dict[str, Any]:
        """Return everything but the network and what it sees, in plain JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("network", "view")}

    def logits(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return the critic's logits ``(B,)`` of what it sees of samples ``(B, *)``.

        Raises:
            ValueError: when its answer is not one logit a sample.
        """
        dtype, mixed = PRECISIONS[self.precision], self.precision != "float32"
        with torch.autocast(x.device.type, dtype if mixed else torch.bfloat16, enabled=mixed):
            answer: Tensor = self.network(x, labels) if self.conditional else self.network(x)
        if answer.shape != x.shape[:1]:
            raise UserError(
                f"critic {self.name!r} must answer one logit a sample, ({len(x)},), got {tuple(answer.shape)}"
            )
        return answer.to(x.dtype) if mixed else answer

    def seen(self, x: Tensor) -> Tensor:
        """Return what the critic sees of samples ``(B, *)``."""
        return x if self.view is None else self.view(x)
