"""Importance sampling: which pairs of a pool a step linearizes, drawn by their losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of the mean loss that is added to every loss: no weight exceeds 1 + 1 / 0.1.
_LEAST = 0.1


@dataclass(frozen=True)
class Draw:
    """Pairs drawn from a pool: their indices ``(C,)``, and weights ``(C,)`` by which their mean is that of the pool."""

    index: Tensor
    weights: Tensor


def draw(losses: Tensor, count: int, outlier: float, seed: int) -> Draw:
    """Draw pairs in proportion to their losses.

    ``mean_i w_i f_i`` over the pairs drawn estimates ``mean_j h_j f_j`` over the pool without bias, with Huber's
    weights ``h``; for an f in proportion to the loss nearly without variance. A few pairs carry much of a mean squared
    error, and a uniform draw that misses them knows nothing of it.

    Args:
        losses: of the pool ``(M,)``, finite.
        count: pairs to draw; all where the pool has no more.
        outlier: bound of a loss, in medians of the pool's: Huber's weight of a larger one is bound / loss.
        seed: of the draw.

    References:
        Horvitz and Thompson, J. Am. Stat. Assoc. 47 (1952); Madow, Ann. Math. Statist. 20 (1949), systematic sampling;
        Katharopoulos and Fleuret, arXiv 1803.00942, a pool that is scored and a batch drawn from it; Huber, Ann. Math.
        Statist. 35 (1964).
    """
    losses = losses.double()
    bounded = losses if outlier == math.inf else losses.clamp(max=outlier * float(losses.median()))
    huber = torch.where(losses > bounded, bounded / losses, torch.ones_like(losses))
    if count >= len(losses):
        return Draw(torch.arange(len(losses)), huber)
    inclusion = _inclusion(bounded, count)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(losses), generator=generator)
    # Systematic sampling: the points u, u + 1, u + 2, ... on the probabilities laid end to end.
    ends = inclusion[order].cumsum(0)
    ends[-1] = count
    points = torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)
    places = torch.searchsorted(ends, points, right=True)
    index = order[places.clamp(max=len(losses) - 1)]  # the last point may round up to the end
    return Draw(index, huber[index] * count / (inclusion[index] * len(losses)))


def _inclusion(losses: Tensor, count: int) -> Tensor:
    """Return probabilities ``(M,)`` to be drawn, whose sum is ``count``: by the losses where that is below one."""
    mean = float(losses.mean())
    size = losses / mean + _LEAST if mean > 0 else torch.ones_like(losses)
    inclusion, certain = torch.ones_like(size), torch.zeros(len(size), dtype=torch.bool)
    while True:
        rest = ~certain
        inclusion[rest] = (count - int(certain.sum())) * size[rest] / size[rest].sum()
        over = inclusion > 1
        if not bool(over.any()):
            return inclusion
        inclusion[over] = 1.0
        certain |= over
