"""Noise and labels of seeds: the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gas.arguments import MAX_SEED, integer


def noise_of_seeds(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Return standard normal noise ``(B, *shape)``, float32 on the CPU, one generator a seed.

    The noise of a seed, from 0 up, therefore depends on neither its batch nor the device.
    """
    checked = [integer("a seed", seed, 0, MAX_SEED) for seed in seeds]
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in checked]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def labels_of_seeds(classes: int, seeds: Sequence[int]) -> Tensor | None:
    """Return the balanced labels ``seed mod classes`` ``(B,)``, or ``None`` for a model without classes."""
    return torch.tensor([int(s) % classes for s in seeds], dtype=torch.long) if classes else None
