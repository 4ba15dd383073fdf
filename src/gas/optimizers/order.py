"""Which pairs a step sees: a matter of the seed and of how many were seen before, and of nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["visited"]


def visited(available: int, before: int, count: int, seed: int) -> Tensor:
    """Return the indices ``(count,)`` that follow the first ``before`` of an endless walk over all pairs.

    Each epoch visits every pair once, in an order of its own.
    """
    parts: list[Tensor] = []
    while count > 0:
        epoch, place = divmod(before, available)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        part = torch.randperm(available, generator=generator)[place : place + count]
        parts.append(part)
        before, count = before + len(part), count - len(part)
    return torch.cat(parts)
