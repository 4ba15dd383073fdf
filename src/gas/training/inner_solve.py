"""The least value of a quadratic model of a solver's numbers, over the solver's parameters: no network is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["floored", "minimise"]

_STEPS = 20
_TRIES = 16
# Damping of the first step, in units of the Hessian's diagonal: where parameters are more than numbers, some moves
# change nothing, and of those a step has next to none. It grows after every failure and shrinks after a step.
_DAMPING, _GROWTH, _SHRINK = 1e-10, 10.0, 100.0
# Of what was gained so far: a step that gains less is the last.
_ENOUGH = 1e-5


@torch.no_grad()
def minimise(
    numbers: Callable[[Tensor], Tensor], start: Tensor, gradient: Tensor, hessian: Tensor, free: Tensor
) -> Tensor:
    """Descend on ``gradient . d + d . hessian d / 2`` over the parameters p, where ``d = q(p) - q(start)``.

    A sample is some function of the numbers q, and those are another of the parameters. The first asks the network, and
    is known as a quadratic model; the second is arithmetic, and is followed exactly: q bends far more than the
    model where many coefficients hang on a time. The steps are Levenberg and Marquardt's along ``dq/dp``, until one
    gains next to nothing; where parameters leave the set of tables, a step is shortened as a whole.

    Args:
        numbers: q, ``(P,) -> (Q,)``; ValueError where there is no table of such parameters.
        start: parameters ``(P,)``.
        gradient: of the model in q, at ``q(start)``, ``(Q,)``.
        hessian: of the model in q, ``(Q, Q)``, positive semidefinite.
        free: indices of the parameters that may move; there may be none.

    Returns:
        Parameters ``(P,)``, by this model never worse than the start.

    References:
        Burke and Ferris, "A Gauss-Newton method for convex composite optimization", Math. Program. 71 (1995).
    """
    model = _Model(numbers, numbers(start), gradient, hessian)
    here, damping = _Point(start, model.q0, 0.0), _DAMPING
    for _ in range(_STEPS):
        found = model.step(here, damping, free)
        if found is None:
            break
        there, damping = found
        gained, here, damping = here.value - there.value, there, max(_DAMPING, damping / _SHRINK)
        if gained <= _ENOUGH * -here.value:
            break
    return here.p


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
        except ValueError:  # no table: as bad as can be
            return _Point(p, self.q0, math.inf)
        d = q - self.q0
        return _Point(p, q, float(self.gradient @ d + d @ self.hessian @ d / 2))

    def step(self, here: _Point, damping: float, free: Tensor) -> tuple[_Point, float] | None:
        """The first of ever shorter steps that goes down, with its damping; none where none does."""
        jacobian = torch.autograd.functional.jacobian(self.numbers, here.p, vectorize=True)
        free = free[jacobian[:, free].count_nonzero(dim=0) > 0]  # the others move nothing
        if not len(free):
            return None
        jacobian = jacobian[:, free]
        gradient = jacobian.T @ (self.hessian @ (here.q - self.q0) + self.gradient)
        hessian = jacobian.T @ self.hessian @ jacobian
        metric = torch.diag(floored(hessian.diagonal()))
        for _ in range(_TRIES):
            # NaN where that is singular.
            move, _ = torch.linalg.solve_ex(hessian + damping * metric, gradient)
            there = self.at(here.p.index_add(0, free, -move))
            if there.value < here.value:
                return there, damping
            damping *= _GROWTH
        return None


def floored(diagonal: Tensor) -> Tensor:
    """Return a diagonal without zeros: no entry is below a millionth of the largest."""
    return diagonal.clamp(min=1e-6 * float(diagonal.max()))
