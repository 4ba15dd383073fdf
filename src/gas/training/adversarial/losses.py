"""Adversarial losses, as pure functions of logits, and the settings of a discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.arguments import MAX_ITERATIONS, integer, number, of_type
from gas.errors import UserError
from gas.models.runtime import PRECISIONS
from gas.registry import named

# (logits of fakes (B,), logits of reals (B,)) -> (generator's loss (B,), discriminator's loss (B,))
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def relativistic(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``softplus(D(real) - D(fake))`` for the generator, ``softplus(D(fake) - D(real))`` for the discriminator.

    Args:
        fake: logits of the student's samples ``(B,)``.
        real: logits of the teacher's ``(B,)``; fake k is compared with real k.

    References:
        Jolicoeur-Martineau, arXiv 1807.00734, section 4.2; Huang et al., arXiv 2501.05441, equation 2;
        arXiv 2510.17699, equation 22.
    """
    return F.softplus(real - fake), F.softplus(fake - real)


def classic(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the non-saturating losses ``softplus(-D(fake))`` and ``softplus(-D(real)) + softplus(D(fake))``.

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
        scale: of the gradient within a discriminator of half precision, where small ones would underflow.

    References:
        Mescheder et al., arXiv 1801.04406, equation 9; Roth et al., arXiv 1705.09367.
    """
    (gradient,) = torch.autograd.grad(scale * logits.sum(), x, create_graph=True)
    return (gradient / scale).flatten(1).square().sum(dim=1)


@dataclass(frozen=True)
class Discriminator:
    """One discriminator: its network, input, losses and optimizer.

    Args:
        name: prefix of its logs.
        network: ``(B, *) -> (B,)`` logits, or ``(x, labels) -> (B,)`` when ``conditional``; trained in place.
        weight: w of the generator's loss, at least 0; at 0 the network is neither called nor trained.
        view: differentiable map from samples ``(B, *)`` to its input, such as a decoder of latents or features of a
            frozen network; by default the samples themselves.
        conditional: whether it takes labels.
        objective: a name of :data:`OBJECTIVES`.
        penalty: gamma, weight of ``(R1 + R2) / 2``, at least 0.
        learning_rate: of its Adam; betas (0, 0.99) are ours.
        steps: its updates for one step of the solver, at least 1, each on other reals.
        warmup: iterations in which it learns while the solver trains on the paired loss alone.
        precision: of its network, a name of :data:`gas.models.PRECISIONS`; weights and logits stay float32.

    Raises:
        ValueError: names the setting that is out of range.

    References:
        arXiv 2510.17699, section 4 (penalty 0.2, learning rate 1e-5 for pretrained discriminators).
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
        suffix = f"of discriminator {self.name!r}"
        of_type(f"network {suffix}", self.network, nn.Module, "a torch.nn.Module")
        for name in ("weight", "penalty"):
            number(f"{name} {suffix}", getattr(self, name), "[0, inf)")
        number(f"learning_rate {suffix}", self.learning_rate, "(0, inf)")
        integer(f"warmup {suffix}", self.warmup, 0, MAX_ITERATIONS)
        integer(f"steps {suffix}", self.steps, 1, MAX_ITERATIONS)
        of_type(f"conditional {suffix}", self.conditional, bool, "True or False")
        if self.view is not None:
            of_type(f"view {suffix}", self.view, Callable, "callable as view(x)")
        objective_by_name(self.objective)
        named("precision", self.precision, PRECISIONS)

    def config(self) -> dict[str, Any]:
        """Return everything but the network and the view, in plain JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("network", "view")}

    def logits(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return logits ``(B,)`` of inputs ``(B, *)``, as :meth:`inputs` returns them.

        Raises:
            ValueError: when the network does not return one logit a sample.
        """
        dtype, mixed = PRECISIONS[self.precision], self.precision != "float32"
        with torch.autocast(x.device.type, dtype if mixed else torch.bfloat16, enabled=mixed):
            logits: Tensor = self.network(x, labels) if self.conditional else self.network(x)
        if logits.shape != x.shape[:1]:
            raise UserError(
                f"discriminator {self.name!r} must return one logit a sample, ({len(x)},), got {tuple(logits.shape)}"
            )
        return logits.to(x.dtype) if mixed else logits

    def inputs(self, samples: Tensor) -> Tensor:
        """Return the network's inputs for samples ``(B, *)``."""
        return samples if self.view is None else self.view(samples)


# The public name, ``gas.Critic``.
Critic = Discriminator
