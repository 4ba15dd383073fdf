"""How a network is run: precision, TF32, compilation and CUDA graphs, as models that wrap a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gas.denoise import Denoiser
from gas.errors import UserError
from gas.models.protocol import Model
from gas.registry import named
from gas.schedule import Schedule

__all__ = [
    "PRECISIONS",
    "Autocast",
    "CudaGraphed",
    "CudaGraphs",
    "PreciseModel",
    "WrappedModel",
    "allow_tf32",
    "full_precision",
    "kernel_key",
    "precise",
    "tf32_settings",
    "without_tf32",
]


@dataclass(frozen=True, eq=False)
class WrappedModel:
    """A model whose denoisers are another's, asked in another way, which a subclass says in :meth:`bind`.

    Args:
        model: the model.
    """

    model: Model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.model.sample_shape

    @property
    def t_end(self) -> float:
        return self.model.t_end

    @property
    def classes(self) -> int:
        return self.model.classes

    @property
    def device(self) -> torch.device:
        return self.model.device

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the model's identity."""
        return self.model.fingerprint()

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts of these seeds, as the model does."""
        return self.model.noise(seeds)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 without any condition."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes ``(B,)``."""
        return self.model.bind(labels, guidance)

    def __getattr__(self, name: str) -> Any:
        """Return what else the model has: features, a reference."""
        return getattr(self.__dict__["model"], name)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Let CUDA compute float32 products in float32 within; what was set before holds again afterwards.

    A difference of two answers a thousandth apart is lost in TF32.
    """
    switches, name, _, off = _switches()
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, off)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch, name, value)


def allow_tf32(enabled: bool) -> None:
    """Set whether CUDA truncates factors of float32 products to TF32, which keeps 10 bits of 23, in this process.

    By itself torch does so in convolutions and not in matrix products.
    """
    switches, name, on, off = _switches()
    for switch in switches:
        setattr(switch, name, on if enabled else off)


def tf32_settings() -> tuple[Any, ...]:
    """Return what is set for convolutions and for matrix products: what a recording is of."""
    switches, name, _, _ = _switches()
    return tuple(getattr(switch, name) for switch in switches)


def _switches() -> tuple[list[Any], str, Any, Any]:
    """Torch's switches of convolutions and matrix products, what they are called, and their values on and off.

    Torch has two sets of names. The old ones keep both readable, so that exporting and compiling, which read the old,
    go on working; they cannot be used any more once someone has set the new ones.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        _ = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:  # the new ones say what the old ones cannot
        return [cudnn.conv, matmul], "fp32_precision", "tf32", "ieee"
    return [cudnn, matmul], "allow_tf32", True, False


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
            raise UserError(f"CUDA graphs need a CUDA device, x is on {x.device}: ask the denoiser itself")
        key = kernel_key(x)
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


def kernel_key(x: Tensor) -> tuple[object, ...]:
    """All that kernels are chosen by, so that a graph recorded under other settings is not replayed."""
    cast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return (tuple(x.shape), x.dtype, x.device, *cast, *tf32_settings())


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
            raise UserError(
                f"CUDA graphs need a CUDA device, {self.model.name} is on {self.model.device}: say --device cuda"
            )
        if hasattr(self.model, "pipe"):
            raise UserError(
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


# On CUDA "tf32" and "float32" differ only after :func:`gas.models.allow_tf32`; elsewhere they are one.
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
                raise UserError(
                    f"model {self.model.name} has no torch module as network or weights to compile: "
                    "compile your denoiser yourself"
                )
            network.compile()

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the model's identity, and what differs from asking it plainly."""
        told: dict[str, Any] = {} if self.precision == "float32" else {"precision": self.precision}
        return {**self.model.fingerprint(), **told, **({"compiled": True} if self.compiled else {})}

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the model's denoiser for these classes at this precision."""
        return Autocast(self.model.bind(labels, guidance), PRECISIONS[self.precision])


def precise(model: Model, precision: str = "float32", *, compiled: bool = False) -> Model:
    """Return the model at a precision; the model itself where nothing is asked for."""
    return model if precision == "float32" and not compiled else PreciseModel(model, precision, compiled)


def full_precision(model: Model) -> Model:
    """Return the model at full precision: what takes differences of a network's answers must not see them rounded."""
    if isinstance(model, CudaGraphs):
        inner = full_precision(model.model)
        return model if inner is model.model else replace(model, model=inner, _bound={})
    return model.model if isinstance(model, PreciseModel) else model
