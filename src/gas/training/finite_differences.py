"""Finite differences of noisy functions: noise and curvature along a line, and the step that they leave best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gas.errors import Diverged

# Steps go from the largest down by this ratio. A ratio of 4 finds the best step within a factor of 2, from where the
# error of a difference is at most a quarter above its least.
_RATIO = 4.0

# The largest step reaches half way to the origin of a line: a time stays positive, and below 1 from 1/2 down.
_LARGEST = 0.5 / _RATIO


@dataclass(frozen=True)
class Line:
    """A function along a line, as root mean squares over its entries.

    Attributes:
        noise: the error of an answer (rounding, quantization, sums in another order).
        slope: the first derivative.
        curvature: the second derivative.
        step: of a forward difference.
    """

    noise: float
    slope: float
    curvature: float
    step: float

    @property
    def error(self) -> float:
        """Error of a forward difference, relative to the slope: ``sqrt(2 noise^2/h^2 + curvature^2 h^2/4) / slope``."""
        error = math.hypot(math.sqrt(2) * self.noise / self.step, self.curvature * self.step / 2)
        return error / self.slope if self.slope else math.inf


def measure_line(function: Callable[[float], Tensor]) -> Line:
    """Measure a function's noise and curvature on a line, and choose the step of its forward differences.

    With independent errors of size e and a curvature c, second differences over a ladder of steps h have the mean
    square

        s(h) = |f(4h) - 4 f(h) + 3 f(0)|^2 = 26 e^2 + 36 c^2 h^4

    and forward differences ``2 e^2 / h^2 + c^2 h^2 / 4``, least at ``h = 8^(1/4) sqrt(e / c)``. ``s(h) / h^2`` is least
    within a factor of 2 from there. The step below that rung, where noise prevails, gives e, and the one above c. A
    function of many entries is one like a scalar: means of squares take the place of squares.

    A step that changes less than half of the entries that the largest one changes is below what the answers resolve,
    and says nothing of their noise (Moré and Wild, section 4).

    Args:
        function: ``f(h) -> (*)`` for h in [0, 1/2].

    Raises:
        Diverged: when even small steps give answers that are not finite.

    References:
        Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011), and "Estimating derivatives of
        noisy simulations", ACM TOMS 38 (2012); Shi, Xie, Xuan and Nocedal, "Adaptive finite-difference interval
        estimation for noisy derivative-free optimization", SIAM J. Sci. Comput. 44 (2022), for the second difference.
    """
    origin = function(0.0)
    tried = ladder(origin.dtype)
    moves = [(function(h) - origin).double() for h in (_RATIO * tried[0], *tried)]
    # The largest steps may leave the range of a dtype.
    finite = 1 + max((k for k, move in enumerate(moves) if not bool(move.isfinite().all())), default=-1)
    steps, moves = tried[finite:], moves[finite:]
    if not steps:
        raise Diverged("the network's predictions are not finite")
    changed = [int((move != 0).sum()) for move in moves]
    last = max((k for k, count in enumerate(changed[1:]) if 2 * count >= changed[0]), default=0)
    squares = [_mean_square(far - _RATIO * near) for far, near in pairwise(moves)]
    best = min(range(last + 1), key=lambda k: squares[k] / steps[k] ** 2)
    above, below = max(best - 1, 0), min(best + 1, last)
    spread = 36 * (steps[above] ** 4 - steps[below] ** 4)
    curvature = max(0.0, squares[above] - squares[below]) / spread if spread else 0.0
    noise = max(0.0, squares[below] - 36 * curvature * steps[below] ** 4) / 26
    slope = max(0.0, _mean_square(moves[1 + best]) - 2 * noise) / steps[best] ** 2
    step = (8 * noise / curvature) ** 0.25 if curvature else math.inf
    return Line(
        noise=math.sqrt(noise),
        slope=math.sqrt(slope),
        curvature=math.sqrt(curvature),
        step=min(max(step, steps[last]), steps[0]),
    )


def _mean_square(values: Tensor) -> float:
    return float(values.square().mean())


def ladder(dtype: torch.dtype) -> list[float]:
    """Return the steps of :func:`measure_line`, largest first, down to where the state is resolved by three digits."""
    least = 1000 * torch.finfo(dtype).eps
    return [_LARGEST / _RATIO**k for k in range(1 + int(math.log(_LARGEST / least, _RATIO)))]
