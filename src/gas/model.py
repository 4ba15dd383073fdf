"""What the library asks of a pretrained model: a denoiser with a schedule, a shape, noise and an identity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gas.denoise import Denoiser
from gas.schedule import Schedule

__all__ = ["Model", "labels_of_seeds", "noise_of_seeds", "weights_hash"]


@runtime_checkable
class Model(Protocol):
    """A frozen diffusion or flow model, ready to be sampled.

    Attributes:
        name: what people call it.
        schedule: its forward process.
        sample_shape: shape of one sample, without the batch.
        t_end: the time that sampling ends at.
        classes: number of classes it can be told; 0 when it takes none.
    """

    @property
    def name(self) -> str: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def sample_shape(self) -> tuple[int, ...]: ...
    @property
    def t_end(self) -> float: ...
    @property
    def classes(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def identity(self) -> Mapping[str, Any]:
        """Return name, weights' hash, prediction type and shape in plain JSON: what a solver was made for."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds, each independent of the others."""

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 without any condition."""

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes ``(B,)``, or the unconditional one for ``None``."""


def noise_of_seeds(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Return standard normal noise ``(B, *shape)``, float32 on the CPU, one generator a seed.

    The noise of a seed therefore depends neither on its batch nor on the device.

    Raises:
        ValueError: when a seed is negative.
    """
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be non-negative integers, got {min(seeds)}")
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def labels_of_seeds(classes: int, seeds: Sequence[int]) -> Tensor | None:
    """Return the balanced labels ``seed mod classes`` ``(B,)``, or ``None`` for a model without classes."""
    return torch.tensor([int(s) % classes for s in seeds], dtype=torch.long) if classes else None


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of a network's state, names, shapes and values as float16: what identifies a model."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()
