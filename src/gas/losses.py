"""Distances between a student's and its teacher's samples, for tensors of any shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gas.arguments import number
from gas.registry import named

__all__ = [
    "LOSSES",
    "ROUNDING",
    "FeatureLoss",
    "Loss",
    "PseudoHuber",
    "is_sum_of_squares",
    "l1",
    "l2",
    "loss_by_name",
]

# A squared error below which there is nothing to learn: the sample is the teacher's, to float32's rounding.
ROUNDING = 1e-11


class Loss(Protocol):
    """``loss(student, teacher)`` of two tensors ``(B, *)`` -> one value a sample ``(B,)``, differentiable."""

    def __call__(self, student: Tensor, teacher: Tensor, /) -> Tensor: ...


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of each sample ``(B,)``."""
    return _mean((student - teacher).abs())


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each sample ``(B,)``."""
    return _mean((student - teacher).square())


@dataclass(frozen=True)
class PseudoHuber:
    """``mean(sqrt(d^2 + c^2) - c)`` of the difference d: squared when small against c, absolute when large.

    Args:
        c: difference at which one turns into the other, in the units of the data, positive.

    References:
        Charbonnier et al., 1997; as a distillation loss in Song and Dhariwal, arXiv 2310.14189, section 3.3.
    """

    c: float = 0.03

    def __post_init__(self) -> None:
        number("c of the pseudo-Huber loss", self.c, "(0, inf)")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        # d^2 / (sqrt(d^2 + c^2) + c) is sqrt(d^2 + c^2) - c without the cancellation at small d.
        square = (student - teacher).square()
        return _mean(square / ((square + self.c**2).sqrt() + self.c))


@dataclass(frozen=True)
class FeatureLoss:
    """Mean squared difference in a feature space, for LPIPS-like losses.

    Args:
        features: ``(B, *) -> (B, F...)``, differentiable and in evaluation mode.
        recompute: activation checkpointing: compute the features again in the backward pass, as for a large decoder.
    """

    features: Callable[[Tensor], Tensor]
    recompute: bool = False

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        call = partial(checkpoint, self.features, use_reentrant=False) if self.recompute else self.features
        return l2(call(student), self.features(teacher))


LOSSES: dict[str, Loss] = {"l1": l1, "l2": l2, "pseudo_huber": PseudoHuber()}


def _mean(values: Tensor) -> Tensor:
    """Mean over each sample ``(B,)``."""
    return values.reshape(len(values), -1).mean(1)


def is_sum_of_squares(loss: Loss) -> bool:
    """Whether Gauss-Newton can minimize a loss: squared differences of samples or of their features."""
    return loss is l2 or isinstance(loss, FeatureLoss)


def loss_by_name(name: str | Loss) -> Loss:
    """Return a loss of :data:`LOSSES`, or a callable as it is; for an unknown name, suggest the nearest one."""
    return name if callable(name) else named("loss", name, LOSSES)
