"""How a network runs: precision, TF32, compilation and CUDA graphs, as models that wrap a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gas.denoise import Denoiser, branches_of, select_branches
from gas.errors import UserError
from gas.models.protocol import Model, network_of
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
    "ending_at",
    "full_precision",
    "precise",
    "tf32_settings",
    "without_tf32",
]


@dataclass(frozen=True, eq=False)
class WrappedModel:
    """A model that runs another model's denoisers in its own way: subclasses override :meth:`bind`.

    Everything else, optional abilities (:mod:`gas.models.protocol`) included, is the wrapped model's.

    Args:
        model: the wrapped model.
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
        return self.model.fingerprint()

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return self.model.noise(seeds)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        return self.model.bind(labels, guidance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


# --- TF32 -----------------------------------------------------------------------------------------------


def allow_tf32(enabled: bool) -> None:
    """Set whether CUDA rounds the factors of float32 products to TF32 (10 of 23 bits), in this process.

    Torch's default is to do so in convolutions but not in matrix products.
    """
    switches, name, on, off = _tf32_switches()
    for switch in switches:
        setattr(switch, name, on if enabled else off)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products on CUDA in float32 within the context.

    Finite differences need it: TF32 loses the difference of two outputs that are a thousandth apart.
    """
    switches, name, _, off = _tf32_switches()
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, off)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch, name, value)


def tf32_settings() -> tuple[Any, ...]:
    """Return the TF32 settings of convolutions and matrix products."""
    switches, name, _, _ = _tf32_switches()
    return tuple(getattr(switch, name) for switch in switches)


def _tf32_switches() -> tuple[list[Any], str, Any, Any]:
    """Torch's switches of convolutions and matrix products, the name of their attribute, and its values on and off.

    Torch has two sets of names. The old one keeps both readable, as exporting and compiling need, but can no longer be
    used once someone has set the new one.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        _ = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:  # raised where the new names are set to what the old ones cannot express
        return [cudnn.conv, matmul], "fp32_precision", "tf32", "ieee"
    return [cudnn, matmul], "allow_tf32", True, False


# --- CUDA graphs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Graph:
    """A recorded graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    t: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class CudaGraphed:
    """A denoiser on a CUDA device that is recorded once for every shape and dtype, then replayed.

    State and time are inputs of the graph, on the device. Calls that need gradients, or exceed ``max_graphs`` shapes,
    run without a graph.

    Args:
        denoise: a function of its arguments alone that neither synchronizes with the device nor reads host memory;
            its weights must stay in place.
        max_graphs: number of graphs to keep.
    """

    denoise: Denoiser
    max_graphs: int = 64
    _graphs: dict[tuple[object, ...], _Graph] = field(default_factory=dict, repr=False)
    _selected: dict[tuple[str, ...], CudaGraphed] = field(default_factory=dict, repr=False)

    @property
    def branches(self) -> tuple[str, ...]:
        return branches_of(self.denoise)

    def select(self, *names: str) -> CudaGraphed:
        if names not in self._selected:
            self._selected[names] = CudaGraphed(select_branches(self.denoise, *names), self.max_graphs)
        return self._selected[names]

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 as the denoiser does.

        Raises:
            ValueError: when ``x`` is on another device.
        """
        if x.device.type != "cuda":
            raise UserError(f"CUDA graphs need a CUDA device, x is on {x.device}: call the denoiser itself")
        key = kernel_key(x)
        if torch.is_grad_enabled() or (key not in self._graphs and len(self._graphs) >= self.max_graphs):
            return self.denoise(x, t)
        if key not in self._graphs:
            self._graphs[key] = self._record(x, t)
        recorded = self._graphs[key]
        recorded.x.copy_(x)
        recorded.t.copy_(t) if t.is_cuda else recorded.t.fill_(float(t))
        recorded.graph.replay()
        return recorded.output.clone()

    def _record(self, x: Tensor, t: Tensor) -> _Graph:
        """Warm up on a side stream, where libraries choose their algorithms, then record."""
        x, t, stream = x.clone(), t.to(x.device, torch.float64, copy=True), torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # as torch's documentation of CUDA graphs does
                self.denoise(x, t)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((recorded.graph.pool() for recorded in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            output = self.denoise(x, t)
        return _Graph(graph=graph, x=x, t=t, output=output)


def kernel_key(x: Tensor) -> tuple[object, ...]:
    """Return every setting that selects kernels for ``x``: a graph is replayed only under those of its recording."""
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return (tuple(x.shape), x.dtype, x.device, *autocast, *tf32_settings())


@dataclass(frozen=True)
class _SharedGraph:
    """A denoiser that, without gradients, replays a graph whose labels are another input."""

    plain: Denoiser
    labels: Tensor | None
    graph_labels: Tensor | None
    graphed: CudaGraphed

    @property
    def branches(self) -> tuple[str, ...]:
        return branches_of(self.plain)

    def select(self, *names: str) -> _SharedGraph:
        return replace(self, plain=select_branches(self.plain, *names), graphed=self.graphed.select(*names))

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        if torch.is_grad_enabled():
            return self.plain(x, t)
        if self.graph_labels is not None and self.labels is not None:
            self.graph_labels.copy_(self.labels)
        return self.graphed(x, t)


@dataclass(frozen=True, eq=False)
class CudaGraphs(WrappedModel):
    """A model on a CUDA device that runs through CUDA graphs; batches of one size share one, whatever their labels.

    Args:
        model: its ``bind`` must use labels on its device without copying them.

    Raises:
        ValueError: for a model on another device, or a pipeline, whose call does more than run its network.
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
        plain, key = self.model.bind(labels, guidance), (0 if labels is None else len(labels), guidance)
        if key not in self._bound:
            graph_labels = None if labels is None else labels.to(self.device, torch.long, copy=True)
            self._bound[key] = graph_labels, CudaGraphed(self.model.bind(graph_labels, guidance))
        graph_labels, graphed = self._bound[key]
        labels = None if labels is None else labels.to(self.device)
        return _SharedGraph(plain=plain, labels=labels, graph_labels=graph_labels, graphed=graphed)


# --- precision and compilation --------------------------------------------------------------------------

# "tf32" differs from "float32" only on CUDA, and only after :func:`gas.models.allow_tf32`.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Autocast:
    """Mixed precision: matrix products and convolutions run in ``dtype``; the prediction has the dtype of ``x``.

    States keep the dtype of ``x`` and coefficients float64: only the network is rounded.

    Args:
        denoise: the denoiser; its float32 weights are cast when used.
        dtype: ``torch.bfloat16`` or ``torch.float16``; ``torch.float32`` changes nothing.
    """

    denoise: Denoiser
    dtype: torch.dtype

    @property
    def branches(self) -> tuple[str, ...]:
        return branches_of(self.denoise)

    def select(self, *names: str) -> Autocast:
        return replace(self, denoise=select_branches(self.denoise, *names))

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        if self.dtype == torch.float32:
            return self.denoise(x, t)
        with torch.autocast(x.device.type, self.dtype):
            return self.denoise(x, t).to(x.dtype)


@dataclass(frozen=True, eq=False)
class PreciseModel(WrappedModel):
    """A model whose network runs at another precision, or compiled.

    Args:
        model: the wrapped model.
        precision: a name of :data:`PRECISIONS`.
        compiled: compile the network by ``torch.compile``, in place; the first call of every shape is slow.

    Raises:
        ValueError: for an unknown precision, or for ``compiled=True`` and a model without a
            :func:`network <gas.models.protocol.network_of>`.
    """

    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        named("precision", self.precision, PRECISIONS)
        if self.compiled:
            network = network_of(self.model)
            if network is None:
                raise UserError(
                    f"model {self.model.name} has no torch module as network or weights to compile: "
                    "compile your denoiser yourself"
                )
            network.compile()

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the model's fingerprint, with ``precision`` and ``compiled`` where they are not the defaults."""
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return {**self.model.fingerprint(), **precision, **({"compiled": True} if self.compiled else {})}

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        return Autocast(self.model.bind(labels, guidance), PRECISIONS[self.precision])


def precise(model: Model, precision: str = "float32", *, compiled: bool = False) -> Model:
    """Return the model at a precision; the model itself when nothing changes."""
    return model if precision == "float32" and not compiled else PreciseModel(model, precision, compiled)


def ending_at(model: Model, t_end: float) -> Model:
    """Return a model for runs that end at another time, where its schedule depends on it (EDM's networks)."""
    if t_end == model.t_end:
        return model
    if isinstance(model, CudaGraphs):
        return CudaGraphs(ending_at(model.model, t_end))
    if isinstance(model, WrappedModel):
        return replace(model, model=ending_at(model.model, t_end))
    return model.ending_at(t_end) if hasattr(model, "ending_at") else model


def full_precision(model: Model) -> Model:
    """Return the model without :class:`PreciseModel`: finite differences must not see rounded outputs."""
    if isinstance(model, CudaGraphs):
        inner = full_precision(model.model)
        return model if inner is model.model else replace(model, model=inner, _bound={})
    return model.model if isinstance(model, PreciseModel) else model
