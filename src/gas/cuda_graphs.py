"""CUDA graphs: a network's hundreds of launches become one, where no gradient is wanted and shapes return."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gas.denoise import Denoiser
from gas.tf32 import truncated
from gas.wrapped import WrappedModel

__all__ = ["CudaGraphed", "CudaGraphs", "settings_of"]


@dataclass(frozen=True)
class _Graph:
    """A recording, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    t: Tensor
    answer: Tensor


@dataclass(frozen=True, eq=False)
class CudaGraphed:
    """A denoiser on a CUDA device that is recorded once for every shape and dtype, and replayed from then on.

    The time is an input of the recording, as the state is, and lies on the device. Calls that want gradients, and
    those beyond the kept shapes, are made plainly.

    Args:
        denoise: what it computes follows from its arguments, and it neither waits for the device nor fetches anything
            from the host; its weights stay where they are.
        most: shapes that are kept.
    """

    denoise: Denoiser
    most: int = 64
    _graphs: dict[tuple[object, ...], _Graph] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 as the denoiser does.

        Raises:
            ValueError: where ``x`` is on another device.
        """
        if x.device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, x is on {x.device}: ask the denoiser itself")
        key = settings_of(x)
        if torch.is_grad_enabled() or (key not in self._graphs and len(self._graphs) >= self.most):
            return self.denoise(x, t)
        if key not in self._graphs:
            self._graphs[key] = self._record(x, t)
        kept = self._graphs[key]
        kept.x.copy_(x)
        kept.t.copy_(t) if t.is_cuda else kept.t.fill_(float(t))
        kept.graph.replay()
        return kept.answer.clone()

    def _record(self, x: Tensor, t: Tensor) -> _Graph:
        """Warm up beside the current stream, as libraries choose their algorithms then, and record."""
        x, t, stream = x.clone(), t.to(x.device, torch.float64, copy=True), torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.denoise(x, t)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((known.graph.pool() for known in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            answer = self.denoise(x, t)
        return _Graph(graph, x, t, answer)


def settings_of(x: Tensor) -> tuple[object, ...]:
    """All that kernels are chosen by, so that a graph recorded under other settings is not replayed."""
    cast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return (tuple(x.shape), x.dtype, x.device, *cast, *truncated())


@dataclass(frozen=True)
class _Shared:
    """A denoiser for some labels that, without gradients, is the recording of another's: labels are an input too."""

    plain: Denoiser
    labels: Tensor | None
    shown: Tensor | None
    graphed: CudaGraphed

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        if torch.is_grad_enabled():
            return self.plain(x, t)
        if self.shown is not None and self.labels is not None:
            self.shown.copy_(self.labels)
        return self.graphed(x, t)


@dataclass(frozen=True, eq=False)
class CudaGraphs(WrappedModel):
    """A model on a CUDA device whose denoisers are recorded: batches of one size share their graph, whatever they show.

    Args:
        model: whose ``bind`` takes labels that lie on its device without a copy.

    Raises:
        ValueError: for a model on another device, or a pipeline, whose call is not of the network alone.
    """

    _bound: dict[tuple[int, float], tuple[Tensor | None, CudaGraphed]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        if self.model.device.type != "cuda":
            raise ValueError(
                f"CUDA graphs need a CUDA device, {self.model.name} is on {self.model.device}: say --device cuda"
            )
        if hasattr(self.model, "pipe"):
            raise ValueError(
                f"CUDA graphs record a network, {self.model.name} is a pipeline, which does more: leave them out"
            )

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the model's denoiser for these classes ``(B,)``."""
        plain, key = self.model.bind(labels, guidance), (0 if labels is None else len(labels), guidance)
        if key not in self._bound:
            shown = None if labels is None else labels.to(self.device, torch.long, copy=True)
            self._bound[key] = shown, CudaGraphed(self.model.bind(shown, guidance))
        shown, graphed = self._bound[key]
        return _Shared(plain, None if labels is None else labels.to(self.device), shown, graphed)
