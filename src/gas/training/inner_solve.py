"""Minimize the quadratic model over the solver's parameters. Uses no network evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Bounds of a step's damping in units of the curvature's diagonal, which :func:`floored` bounds from below: beyond them
# it changes nothing, or leaves no step.
MIN_DAMPING, MAX_DAMPING = 1e-6, 1e6

# An upper bound: the descent ends when a step gains less than this share of the gain so far.
_STEPS, _MIN_GAIN = 20, 1e-5

# Damping of the first step, in units of the Hessian's diagonal. It only has to make the system regular: where there
# are more parameters than numbers, some moves change nothing. It grows after every failure and shrinks after a step;
# 16 trials reach 1e5, where a step is next to none.
_DAMPING, _GROWTH, _SHRINK = 1e-10, 10.0, 100.0
_TRIALS = 16


@torch.no_grad()
def minimize(
    numbers: Callable[[Tensor], Tensor], start: Tensor, gradient: Tensor, hessian: Tensor, free: Tensor
) -> Tensor:
    """Descend on ``gradient . d + d . hessian d / 2`` over the parameters p, where ``d = q(p) - q(start)``.

    A sample is a function of the numbers q, and q a function of the parameters. The first calls the network, and is
    replaced by its quadratic model; the second is arithmetic, and is followed exactly: where many coefficients depend
    on a time, q is far less linear than the model. The steps are Levenberg and Marquardt's along ``dq/dp``, until one
    gains next to nothing; a step that leaves the set of tables is shortened as a whole.

    Args:
        numbers: q, ``(P,) -> (Q,)``; ValueError where the parameters give no table.
        start: parameters ``(P,)``.
        gradient: of the model in q at ``q(start)``, ``(Q,)``.
        hessian: of the model in q, ``(Q, Q)``, positive semidefinite.
        free: indices of the parameters that may move; there may be none.

    Returns:
        Parameters ``(P,)``, by this model never worse than the start.

    References:
        Burke and Ferris, "A Gauss-Newton method for convex composite optimization", Math. Program. 71 (1995).
    """
    model = _Model(numbers, numbers(start), gradient, hessian)
    point, damping = _Point(start, model.q0, 0.0), _DAMPING
    for _ in range(_STEPS):
        step = model.step(point, damping, free)
        if step is None:
            break
        before = point.value
        point, damping = step
        damping = max(_DAMPING, damping / _SHRINK)
        if before - point.value <= _MIN_GAIN * -point.value:
            break
    return point.p


@dataclass(frozen=True, eq=False)
class _Point:
    p: Tensor
    q: Tensor
    value: float


@dataclass(frozen=True, eq=False)
class _Model:
    numbers: Callable[[Tensor], Tensor]
    q0: Tensor
    gradient: Tensor
    hessian: Tensor

    def at(self, p: Tensor) -> _Point:
        try:
            q = self.numbers(p)
        except ValueError:  # no table
            return _Point(p, self.q0, math.inf)
        d = q - self.q0
        return _Point(p, q, float(self.gradient @ d + d @ self.hessian @ d / 2))

    def step(self, point: _Point, damping: float, free: Tensor) -> tuple[_Point, float] | None:
        """Return the first of ever shorter steps that goes down, with its damping, if one does."""
        jacobian = torch.autograd.functional.jacobian(self.numbers, point.p, vectorize=True)
        free = free[jacobian[:, free].count_nonzero(dim=0) > 0]  # the others change no number
        if not len(free):
            return None
        jacobian = jacobian[:, free]
        gradient = jacobian.T @ (self.hessian @ (point.q - self.q0) + self.gradient)
        hessian = jacobian.T @ self.hessian @ jacobian
        metric = torch.diag(floored(hessian.diagonal()))
        for _ in range(_TRIALS):
            # The status is not needed: a singular system gives NaN, which is never below the value.
            move, _ = torch.linalg.solve_ex(hessian + damping * metric, gradient)
            trial = self.at(point.p.index_add(0, free, -move))
            if trial.value < point.value:
                return trial, damping
            damping *= _GROWTH
        return None


def floored(diagonal: Tensor) -> Tensor:
    """Return a diagonal without zeros: no entry is below a millionth of the largest."""
    return diagonal.clamp(min=1e-6 * float(diagonal.max()))
