"""A model of one's own: a denoiser, its schedule and the shape of a sample are enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gas.arguments import MAX_SEED, callable_, integer, number, of_type, shape
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
        callable_("denoiser", self.denoiser, "callable as denoise(x, t)")
        object.__setattr__(self, "sample_shape", shape("sample_shape", self.sample_shape))
        if not hasattr(self.schedule, "half_log_snr"):
            raise ValueError(f"schedule must be a gas.Schedule, got a {type(self.schedule).__name__}")
        of_type("name", self.name, str, "text")
        number("t_end", self.t_end, "[0, 1)")
        integer("classes", self.classes, 0, MAX_SEED)
        if self.null is not None:
            integer("null", self.null, -MAX_SEED, MAX_SEED)
            if not self.classes:
                raise ValueError(f"null is a label, and without classes there is none, got {self.null}")
        if self.weights is not None:
            of_type("weights", self.weights, nn.Module, "the network, a torch.nn.Module")
        if self.decode is not None:
            callable_("decode", self.decode, "callable as decode(x)")
        if self.data_range is not None:
            number("data_range (2 for [-1, 1])", self.data_range, "(0, inf)")
        if self.weights is not None and any(p.requires_grad for p in self.weights.parameters()):
            raise ValueError(
                "weights must be frozen: call .eval().requires_grad_(False) on the network first"
            )
        if self.device is None:
            first = None if self.weights is None else next(self.weights.parameters(), None)
            object.__setattr__(self, "device", torch.device("cpu") if first is None else first.device)
        elif not isinstance(self.device, torch.device):
            try:
                object.__setattr__(self, "device", torch.device(self.device))
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"device must be one of torch's, got {self.device!r}") from error

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
        number("guidance", guidance, "(-inf, inf)")
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
