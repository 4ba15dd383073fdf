"""How a network runs: batches, precision, quantization, TF32, compilation, CUDA graphs, as models that wrap a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gas.arguments import MAX_BATCH, integer
from gas.denoise import Denoiser, branches_of, select_branches
from gas.errors import UserError
from gas.models.conditions import row_count, slice_rows
from gas.models.protocol import Model, network_of
from gas.registry import named
from gas.schedule import Schedule


@dataclass(frozen=True, eq=False)
class WrappedModel:
    """A model that runs another model's denoisers in its own way: subclasses override :meth:`bind`.

    Everything else, optional abilities (:mod:`gas.models.protocol`) included, is the wrapped model's.
    """

    model: Model

    # Attributes, for type checkers: __getattr__ passes them on.
    name: ClassVar[str]
    schedule: ClassVar[Schedule]
    sample_shape: ClassVar[tuple[int, ...]]
    t_end: ClassVar[float]
    classes: ClassVar[int]
    device: ClassVar[torch.device]

    def fingerprint(self) -> Mapping[str, Any]:
        return self.model.fingerprint()

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return self.model.noise(seeds)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        return self.model.bind(labels, guidance)

    def bind_conditions(self, conditions: Any, guidance: float = 1.0) -> Denoiser:
        """Refuse new conditions, which would bypass :meth:`bind`, where a subclass does not run them in its way."""
        raise UserError(
            f"{type(self).__name__} runs labels, not new conditions: bind those of the model that it wraps"
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


@dataclass(frozen=True, eq=False)
class SmallBatches(WrappedModel):
    """A model that sends at most ``size`` samples through its network at once: memory does not grow with batches.

    Predictions are those of the model, up to the rounding of kernels for other shapes. With guidance each
    sample of an evaluation passes the network twice.

    Raises:
        UserError: for a size below 1.
    """

    size: int = 1

    def __post_init__(self) -> None:
        integer("size", self.size, 1, MAX_BATCH)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        count = None if labels is None else len(labels)
        return _InParts(partial(self.model.bind, guidance=guidance), labels, count, self.size)

    def bind_conditions(self, conditions: Any, guidance: float = 1.0) -> Denoiser:
        bind = partial(self.model.bind_conditions, guidance=guidance)  # type: ignore[attr-defined]
        return _InParts(bind, conditions, row_count(conditions), self.size)


@dataclass(frozen=True, eq=False)
class _InParts:
    """A denoiser that evaluates ``size`` samples at a time, one branch after the other.

    Args:
        bind: labels or conditions to their denoiser.
        rows: of all samples, labels or conditions; ``None`` for a denoiser of any samples.
        count: of the rows.
        size: of a part.
        names: of the branches; ``None`` for the prediction itself.
    """

    bind: Callable[[Any], Denoiser]
    rows: Any
    count: int | None
    size: int
    names: tuple[str | None, ...] = (None,)
    _bound: dict[int | None, Denoiser] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if None not in self._bound:  # of all rows, which refuses wrong ones
            self._bound[None] = self.bind(self.rows)

    @property
    def whole(self) -> Denoiser:
        """The denoiser of all samples."""
        return self._bound[None]

    @property
    def branches(self) -> tuple[str, ...]:
        return branches_of(self.whole)

    def select(self, *names: str) -> _InParts:
        select_branches(self.whole, *names)  # refuses other names
        return replace(self, names=names)

    def _part(self, first: int) -> Denoiser:
        """Return the denoiser of the samples from ``first`` on."""
        if self.rows is None:
            return self.whole
        if first not in self._bound:
            self._bound[first] = self.bind(slice_rows(self.rows, slice(first, first + self.size)))
        return self._bound[first]

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 as the model's denoiser does; refuse another number of samples than it is bound to."""
        samples = len(x) // len(self.names)
        if self.count not in (None, samples):
            raise UserError(f"{self.count} labels are bound, and x has {samples} samples")
        predictions = [] if samples else [self.whole(x, t)]
        for place, name in enumerate(self.names):
            for first in range(0, samples, self.size):
                part = slice(place * samples + first, place * samples + min(first + self.size, samples))
                denoise = self._part(first)
                denoise = denoise if name is None else select_branches(denoise, name)
                predictions.append(denoise(x[part], t).clone())  # a network may return one buffer
        return torch.cat(predictions)


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
    (switches, name, _, _), before = _tf32_switches(), tf32_settings()
    allow_tf32(False)
    try:
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


_MAX_GRAPHS = 64


class _Graph(NamedTuple):
    """A recorded graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    t: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class CudaGraphed:
    """A denoiser on a CUDA device that is recorded once for every shape and dtype, then replayed.

    It must be a function of its arguments alone that neither synchronizes with the device nor reads host memory, and
    its weights must stay in place. State and time are inputs of the graph. Calls that need gradients, or exceed
    64 shapes, run without a graph.
    """

    denoise: Denoiser
    labels: tuple[Tensor, Tensor] | None = None  # of the batch, and where ``recorded`` reads them
    recorded: Denoiser | None = None  # recorded in place of ``denoise``
    _branches: tuple[str, ...] = ()
    _graphs: dict[tuple[object, ...], _Graph] = field(default_factory=dict, repr=False)

    @property
    def branches(self) -> tuple[str, ...]:
        return branches_of(self.denoise)

    def select(self, *names: str) -> CudaGraphed:
        recorded = None if self.recorded is None else select_branches(self.recorded, *names)
        denoise = select_branches(self.denoise, *names)
        return replace(self, denoise=denoise, recorded=recorded, _branches=names)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 as the denoiser does; refuse ``x`` on another device."""
        if x.device.type != "cuda":
            raise UserError(f"CUDA graphs need a CUDA device, x is on {x.device}: call the denoiser itself")
        key = (self._branches, *kernel_key(x))
        if torch.is_grad_enabled() or (key not in self._graphs and len(self._graphs) >= _MAX_GRAPHS):
            return self.denoise(x, t)
        if self.labels is not None:
            self.labels[1].copy_(self.labels[0])
        if key not in self._graphs:
            self._graphs[key] = self._record(self.recorded or self.denoise, x, t)
        graph, graph_x, graph_t, output = self._graphs[key]
        graph_x.copy_(x)
        graph_t.copy_(t) if t.is_cuda else graph_t.fill_(float(t))
        graph.replay()
        return output.clone()

    def _record(self, denoise: Denoiser, x: Tensor, t: Tensor) -> _Graph:
        """Warm up on a side stream, where libraries choose their algorithms, then record."""
        x, t, stream = x.clone(), t.to(x.device, torch.float64, copy=True), torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # as torch's documentation of CUDA graphs does
                denoise(x, t)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((recorded.graph.pool() for recorded in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            output = denoise(x, t)
        return _Graph(graph=graph, x=x, t=t, output=output)


def kernel_key(x: Tensor) -> tuple[object, ...]:
    """Return every setting that selects kernels for ``x``: a graph is replayed only under those of its recording."""
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return (tuple(x.shape), x.dtype, x.device, *autocast, *tf32_settings())


@dataclass(frozen=True, eq=False)
class CudaGraphs(WrappedModel):
    """A model on a CUDA device that runs through CUDA graphs; batches of one size share one, whatever their labels.

    Its ``bind`` must use labels on its device without copying them. A pipeline is refused: its call does more than run
    its network.
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
        denoise, key = self.model.bind(labels, guidance), (0 if labels is None else len(labels), guidance)
        if key not in self._bound:
            recorded_labels = None if labels is None else labels.to(self.device, torch.long, copy=True)
            recorded = self.model.bind(recorded_labels, guidance)
            self._bound[key] = recorded_labels, CudaGraphed(denoise, recorded=recorded)
        recorded_labels, graphed = self._bound[key]
        given = (
            None if labels is None or recorded_labels is None else (labels.to(self.device), recorded_labels)
        )
        return replace(graphed, denoise=denoise, labels=given)


# --- quantization ---------------------------------------------------------------------------------------

# NF4's 16 values, quantiles of a normal distribution (Dettmers et al., arXiv 2305.14314, appendix E), and how many
# weights share a scale, as in bitsandbytes.
_NF4 = (
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.39491749,
    -0.28444138,
    -0.18477343,
    -0.09105004,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
)
_NF4_BLOCK = 64


def _to_int8(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Round to 255 steps, symmetric around zero, of a scale for all entries along ``dims``."""
    step = (x.abs().amax(dims, keepdim=True) / 127).clamp(min=torch.finfo(x.dtype).tiny)
    return (x / step).round() * step


def _to_nf4(weight: Tensor) -> Tensor:
    values = torch.tensor(_NF4, dtype=weight.dtype)
    blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    nearest = torch.bucketize(blocks / scale, (values[1:] + values[:-1]) / 2)
    return (values[nearest] * scale).flatten()[: weight.numel()].view_as(weight)


# What storing a weight ``(out, *)`` in a format leaves of it.
QUANTIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "fp8": lambda weight: weight.to(torch.float8_e4m3fn).to(weight.dtype),
    "int8": lambda weight: _to_int8(weight, tuple(range(1, weight.ndim))),
    "int4": _to_nf4,
}


def _round_input(
    layer: nn.Module, inputs: tuple[Tensor, ...], named_inputs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Round an input as a product of int8 does: each token of a linear layer, each sample of a convolution."""
    x, *rest = inputs or (named_inputs["input"],)
    dims = (-1,) if isinstance(layer, nn.Linear) else tuple(range(1, x.ndim))
    rounded = _to_int8(x.detach(), dims)
    x = rounded + (x - x.detach())  # as if not rounded for gradients, which rounding has none of
    return ((x, *rest), named_inputs) if inputs else (inputs, {**named_inputs, "input": x})


@torch.no_grad()
def quantize_layers(network: nn.Module, quantize: str) -> None:
    """Let linear and convolution layers compute as if they were quantized, in place; the arithmetic stays wide.

    Args:
        network: frozen.
        quantize: ``"fp8"``, weights in e4m3; ``"int8"``, weights with a scale for each output channel, and inputs with
            one for each token or sample, as in products of 8 bits; ``"int4"``, weights in NF4.

    Raises:
        UserError: for another format, a network without such layers, or a layer that computes its weight.
    """
    rounded, kinds = named("quantize", quantize, QUANTIZATIONS), (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}
    if not layers:
        raise UserError(
            f"quantize={quantize!r} changes linear and convolution layers, and the network has none"
        )
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise UserError(f"layer {name} computes its weight: remove its parametrization, then quantize")
    for layer in layers.values():
        layer.weight.copy_(rounded(layer.weight.cpu()))
        if quantize == "int8" and _round_input not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_round_input, with_kwargs=True)


# --- precision and compilation --------------------------------------------------------------------------

# "tf32" differs from "float32" only on CUDA, and only after :func:`gas.models.allow_tf32`.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Autocast:
    """Mixed precision: matrix products and convolutions run in ``dtype``; the prediction has the dtype of ``x``.

    States keep the dtype of ``x`` and coefficients float64: only the network is rounded, its float32 weights when used.
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
    """A model whose network runs at another precision, quantized, or compiled.

    Args:
        model: the wrapped model.
        precision: a name of :data:`PRECISIONS`.
        compiled: compile the network by ``torch.compile``, in place; the first call of every shape is slow.
        quantize: the format that :func:`precise` has brought the network's weights to: another model.
    """

    precision: str = "float32"
    compiled: bool = False
    quantize: str | None = None

    def __post_init__(self) -> None:
        named("precision", self.precision, PRECISIONS)
        for verb, wanted in (("quantize", self.quantize), ("compile", self.compiled)):
            if wanted and network_of(self.model) is None:
                raise UserError(
                    f"model {self.model.name} has no torch module as network or weights to {verb}: "
                    f"{verb} your denoiser yourself"
                )
        if self.compiled:
            network: Any = network_of(self.model)
            network.compile()

    def fingerprint(self) -> Mapping[str, Any]:
        """Return the model's fingerprint, with those settings of this one that are not the defaults."""
        defaults = {"precision": "float32", "compiled": False, "quantize": None}
        settings = {name: getattr(self, name) for name in defaults}
        return {**self.model.fingerprint(), **{k: x for k, x in settings.items() if x != defaults[k]}}

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        return Autocast(self.model.bind(labels, guidance), PRECISIONS[self.precision])

    def bind_conditions(self, conditions: Any, guidance: float = 1.0) -> Denoiser:
        bound: Denoiser = self.model.bind_conditions(conditions, guidance)  # type: ignore[attr-defined]
        return Autocast(bound, PRECISIONS[self.precision])


def precise(
    model: Model, precision: str = "float32", *, compiled: bool = False, quantize: str | None = None
) -> Model:
    """Return the model at a precision, as :class:`PreciseModel`; the model itself when nothing changes.

    ``quantize``, a format of :func:`quantize_layers`, changes the network in place.
    """
    if (precision, compiled, quantize) == ("float32", False, None):
        return model
    result = PreciseModel(model, precision, compiled, quantize)
    if quantize is not None and (network := network_of(model)) is not None:
        quantize_layers(network, quantize)
        vars(unwrapped(model)).pop("_sha256", None)  # of the weights before
    return result


def unwrapped(model: Model) -> Model:
    """Return the model that wrapped models run."""
    while isinstance(model, WrappedModel):
        model = model.model
    return model


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
    """Return the model without the precision of :class:`PreciseModel`, whose rounding finite differences need not see.

    A quantized network stays quantized.
    """
    if isinstance(model, CudaGraphs):
        inner = full_precision(model.model)
        return model if inner is model.model else replace(model, model=inner, _bound={})
    return model.model if isinstance(model, PreciseModel) else model
