"""A model of one's own: a denoiser, its schedule and the shape of a sample are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gas.denoise import Denoiser
from gas.model import bind_labels, noise_of_seeds, weights_hash
from gas.schedule import Schedule

__all__ = ["OwnModel"]


@dataclass(frozen=True, eq=False)
class OwnModel:
    """Everything the library asks of a pretrained model (:class:`gas.model.Model`), made from a denoiser.

    Args:
        denoiser: ``denoise(x, t) -> x_0`` estimate, as the wrappers of :mod:`gas.denoise` make it from a network; with
            ``classes``, ``denoise(x, t, labels)``.
        schedule: of the network's training.
        sample_shape: of one sample, without the batch.
        name: what people call it; written into solver files.
        t_end: time that sampling ends at, in (0, 1).
        classes: number of classes it is told; 0 when it takes none.
        null: the label that means *no class*, for guidance and for sampling without a class.
        weights: the network whose parameters identify the model; solver files then refuse others. Freeze it and put
            it in evaluation mode.
        device: where to sample; by default where ``weights`` are, else the CPU.
        decode: samples ``(B, *)`` -> what people look at, images in [-1, 1] say, where that is something else.
        data_range: largest minus smallest value of the data, 2 for images in [-1, 1]: that of PSNR; latents have none.

    Raises:
        ValueError: names the argument that is out of range, or weights that would be trained.

    >>> schedule = __import__("gas").VPLinear()
    >>> OwnModel(lambda x, t: 0 * x, schedule, (3, 8)).noise(range(2)).shape
    torch.Size([2, 3, 8])
    """

    denoiser: Callable[..., Tensor]
    schedule: Schedule
    sample_shape: tuple[int, ...]
    name: str = "own"
    t_end: float = 1e-3
    classes: int = 0
    null: int | None = None
    weights: nn.Module | None = None
    device: torch.device = field(default=None)  # type: ignore[assignment]
    decode: Callable[[Tensor], Tensor] | None = None
    data_range: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_shape", tuple(self.sample_shape))
        if not self.sample_shape or min(self.sample_shape) < 1:
            raise ValueError(
                f"sample_shape must be positive sizes without the batch, got {self.sample_shape}"
            )
        if not 0 <= self.t_end < 1:
            raise ValueError(f"t_end must lie in [0, 1), got {self.t_end}")
        if self.data_range is not None and not 0 < self.data_range < math.inf:
            raise ValueError(f"data_range must be a positive number (2 for [-1, 1]), got {self.data_range}")
        if self.classes < 0:
            raise ValueError(f"classes must be at least 0, got {self.classes}")
        if self.weights is not None and any(p.requires_grad for p in self.weights.parameters()):
            raise ValueError(
                "weights must be frozen: call .eval().requires_grad_(False) on the network first"
            )
        if self.device is None:
            first = None if self.weights is None else next(self.weights.parameters(), None)
            object.__setattr__(self, "device", torch.device("cpu") if first is None else first.device)

    @cached_property
    def _sha256(self) -> str:
        return "" if self.weights is None else weights_hash(self.weights)

    def identity(self) -> dict[str, Any]:
        """Return name, hash of the weights (empty without), what is predicted, and shape."""
        return {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": "x0",
            "sample_shape": list(self.sample_shape),
        }

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds."""
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 without a class."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes ``(B,)``, or for none.

        Raises:
            ValueError: when a label is out of range, or guidance or no class is asked of a model without ``null``.
        """
        if not self.classes:
            if guidance != 1.0:
                raise ValueError(
                    f"guidance {guidance:g} needs classes to guide towards; {self.name} has none"
                )
            return self.denoiser
        return bind_labels(
            self.denoiser,
            labels,
            classes=self.classes,
            null=self.null,
            guidance=guidance,
            name=self.name,
            device=self.device,
        )
