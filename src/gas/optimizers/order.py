"""Which pairs a step sees: a matter of the seed and of how many were seen before, and of nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gas.arguments import MAX_BATCH, MAX_ITERATIONS, MAX_ORDER_SEED, MAX_SEED, integer

__all__ = ["check_counts", "visited"]


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


def check_counts(config: Any) -> None:
    """Refuse settings of an optimiser that count iterations or pairs and are no integers in range.

    Raises:
        ValueError: names the setting.
    """
    bounds = {
        "iterations": (0, MAX_ITERATIONS),
        "batch": (1, MAX_BATCH),
        "validate_every": (1, MAX_SEED),
        "alternate": (0, MAX_SEED),
        "seed": (0, MAX_ORDER_SEED),
    }
    for name, (least, most) in bounds.items():
        integer(name, getattr(config, name), least, most)
