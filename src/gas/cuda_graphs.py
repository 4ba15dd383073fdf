"""CUDA graphs: a network's hundreds of launches become one, for sampling in batches of one shape."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gas.denoise import Denoiser
from gas.model import Model

__all__ = ["CudaGraphed", "CudaGraphs"]


@dataclass(frozen=True, eq=False)
class CudaGraphed:
    """A denoiser on a CUDA device that is recorded once for every shape, dtype and time, and replayed from then on.

    A solver asks at the same few times for every batch, so each has a graph of its own, with its time's coefficients
    in it; the graphs share one pool of memory. Without gradients only.

    Args:
        denoise: what it computes follows from its arguments, and it does not wait for the device.
        most: graphs that are kept; a call beyond them is made plainly.
    """

    denoise: Denoiser
    most: int = 64
    _graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = field(
        default_factory=dict, repr=False
    )

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 as the denoiser does.

        Raises:
            ValueError: where ``x`` is on another device, or gradients are asked for.
        """
        if x.device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, x is on {x.device}: ask the denoiser itself")
        if torch.is_grad_enabled():
            raise ValueError("CUDA graphs keep no gradients: call them under torch.no_grad()")
        key = (tuple(x.shape), x.dtype, x.device, float(t))
        if key not in self._graphs:
            if len(self._graphs) >= self.most:
                return self.denoise(x, t)
            self._graphs[key] = self._record(x, t)
        graph, start, answer = self._graphs[key]
        start.copy_(x)
        graph.replay()
        return answer.clone()

    def _record(self, x: Tensor, t: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """Warm up beside the current stream, as libraries choose their algorithms then, and record.

        The time goes to the device first: a recording cannot fetch it from the host.
        """
        start, t, stream = x.clone(), t.to(x.device), torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.denoise(start, t)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((known.pool() for known, _, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            answer = self.denoise(start, t)
        return graph, start, answer


@dataclass(frozen=True, eq=False)
class CudaGraphs:
    """The denoisers of a model on a CUDA device, recorded: batches of one size share their graphs, whatever they show.

    Args:
        model: whose ``bind`` takes labels on its device as they are, so that other labels can be written there.

    Raises:
        ValueError: for a model on another device.
    """

    model: Model
    _bound: dict[tuple[int, float], tuple[Tensor | None, CudaGraphed]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        if self.model.device.type != "cuda":
            raise ValueError(
                f"CUDA graphs need a CUDA device, {self.model.name} is on {self.model.device}: say --device cuda"
            )

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the model's denoiser for these classes ``(B,)``; what was returned before shows them too."""
        key = (0 if labels is None else len(labels), guidance)
        if key not in self._bound:
            own = None if labels is None else labels.to(self.model.device, torch.long, copy=True)
            self._bound[key] = own, CudaGraphed(self.model.bind(own, guidance))
        own, graphed = self._bound[key]
        if own is not None and labels is not None:
            own.copy_(labels)
        return graphed
