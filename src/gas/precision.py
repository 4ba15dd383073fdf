"""A frozen network at less precision, or compiled: wrappers with the same call, and a model that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gas.cuda_graphs import CudaGraphs
from gas.denoise import Denoiser
from gas.model import Model
from gas.names import named
from gas.wrapped import WrappedModel

__all__ = ["PRECISIONS", "Autocast", "PreciseModel", "full", "precise"]

# On CUDA "tf32" and "float32" differ only after :func:`gas.tf32.truncate`; elsewhere they are one.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Autocast:
    """Ask a network in mixed precision: matrix products and convolutions in ``dtype``, the answer in that of ``x``.

    States and coefficients stay as they are, in the dtype of ``x`` and in float64: only the network is rounded.

    Args:
        denoise: the denoiser; float32 weights are cast as they are used.
        dtype: ``torch.bfloat16`` or ``torch.float16``; ``torch.float32`` changes nothing.
    """

    denoise: Denoiser
    dtype: torch.dtype

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        if self.dtype == torch.float32:
            return self.denoise(x, t)
        with torch.autocast(x.device.type, self.dtype):
            return self.denoise(x, t).to(x.dtype)


@dataclass(frozen=True, eq=False)
class PreciseModel(WrappedModel):
    """A model whose network is asked at another precision, or compiled; in all else the model it wraps.

    Args:
        model: the model.
        precision: a name of :data:`PRECISIONS`.
        compiled: run the network through ``torch.compile``, in place: the first call of every shape takes its time.

    Raises:
        ValueError: for an unknown precision, or a model to compile that has no torch module as ``network`` (a
            :class:`gas.OwnModel`: as ``weights``).
    """

    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        named("precision", self.precision, PRECISIONS)
        if self.compiled:
            network = getattr(self.model, "network", getattr(self.model, "weights", None))
            if not isinstance(network, nn.Module):
                raise ValueError(
                    f"model {self.model.name} has no torch module as network or weights to compile: "
                    "compile your denoiser yourself"
                )
            network.compile()

    def identity(self) -> Mapping[str, Any]:
        """Return the model's identity, and what differs from asking it plainly."""
        told: dict[str, Any] = {} if self.precision == "float32" else {"precision": self.precision}
        return {**self.model.identity(), **told, **({"compiled": True} if self.compiled else {})}

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the model's denoiser for these classes at this precision."""
        return Autocast(self.model.bind(labels, guidance), PRECISIONS[self.precision])


def precise(model: Model, precision: str = "float32", *, compiled: bool = False) -> Model:
    """Return the model at a precision; the model itself where nothing is asked for."""
    return model if precision == "float32" and not compiled else PreciseModel(model, precision, compiled)


def full(model: Model) -> Model:
    """Return the model at full precision: what takes differences of a network's answers must not see them rounded."""
    if isinstance(model, CudaGraphs):
        inner = full(model.model)
        return model if inner is model.model else replace(model, model=inner, _bound={})
    return model.model if isinstance(model, PreciseModel) else model
