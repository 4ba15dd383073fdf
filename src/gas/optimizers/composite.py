"""The least value of a quadratic model of a solver's numbers, over the solver's parameters: no network is asked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["floored", "least", "slopes"]

_STEPS = 20
_TRIES = 16
# Damping of the first step, in units of the curvature's diagonal: where parameters are more than numbers, some moves
# change nothing, and of those a step has next to none. It grows after every failure and shrinks after a step.
_DAMPING, _GROWTH, _SHRINK = 1e-10, 10.0, 100.0
# Of what was gained so far: a step that gains less is the last.
_ENOUGH = 1e-5


def slopes(numbers: Callable[[Tensor], Tensor], p: Tensor) -> Tensor:
    """Return the derivatives ``(Q, P)`` of the numbers in the parameters, all at once."""
    made: Tensor = torch.autograd.functional.jacobian(numbers, p, vectorize=True)
    return made


@torch.no_grad()
def least(
    numbers: Callable[[Tensor], Tensor], start: Tensor, slope: Tensor, curvature: Tensor, free: Tensor
) -> Tensor:
    """Minimise ``slope . d + d . curvature d / 2`` over the parameters p, where ``d = q(p) - q(start)``.

    A sample is some function of the numbers q, and those are another of the parameters. The first asks the network, and
    is known as a quadratic model; the second is arithmetic, and is followed exactly: q bends far more than the
    model where many coefficients hang on a time. The steps are Levenberg and Marquardt's along ``dq/dp``.

    Args:
        numbers: q, ``(P,) -> (Q,)``; ValueError where there is no table of such parameters.
        start: parameters ``(P,)``.
        slope: ``(Q,)``.
        curvature: ``(Q, Q)``, positive definite.
        free: indices of the parameters that may move.

    Returns:
        Parameters ``(P,)``, never worse than the start.

    References:
        Burke and Ferris, "A Gauss-Newton method for convex composite optimization", Math. Program. 71 (1995).
    """
    p, q0, value = start, numbers(start), 0.0
    q, damping = q0, _DAMPING
    for _ in range(_STEPS):
        chain = slopes(numbers, p)[:, free]
        gradient = chain.T @ (curvature @ (q - q0) + slope)
        bend = chain.T @ curvature @ chain
        metric = torch.diag(floored(bend.diagonal()))
        for _ in range(_TRIES):
            move = torch.zeros_like(p)
            move[free] = -torch.linalg.solve(bend + damping * metric, gradient)
            reached, there = _value(numbers, p + move, q0, slope, curvature)
            if reached < value:
                break
            damping *= _GROWTH
        else:
            return p
        gained, damping = value - reached, max(_DAMPING, damping / _SHRINK)
        p, q, value = p + move, there, reached
        if gained <= _ENOUGH * -value:
            return p
    return p


def _value(
    numbers: Callable[[Tensor], Tensor], p: Tensor, q0: Tensor, slope: Tensor, curvature: Tensor
) -> tuple[float, Tensor]:
    try:
        q = numbers(p)
    except ValueError:  # no table: as bad as can be
        return math.inf, q0
    d = q - q0
    return float(slope @ d + d @ curvature @ d / 2), q


def floored(diagonal: Tensor) -> Tensor:
    """Return a diagonal without zeros: no entry is below a millionth of the largest."""
    return diagonal.clamp(min=1e-6 * float(diagonal.max()))
