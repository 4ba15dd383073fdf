"""ONNX for any runtime: one step of a table, a denoiser, or the whole sampler with its network."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gas.denoise import ConditionalDenoiser, Denoiser
from gas.display import error_text
from gas.errors import UserError, requires
from gas.io import write_bytes
from gas.residual import Residual
from gas.sampling import Stepper
from gas.table import Table, refuse_branches, refuse_residuals

__all__ = ["TOLERANCE", "Correction", "DenoiserModule", "Step", "Unrolled", "export", "largest_difference"]

# Largest difference of an exported graph to torch, relative to the largest number where that is above 1.
TOLERANCE = 1e-5


class Step(nn.Module):
    """Row n of a table as a module: ``x_{n+1} = sum_j states[n, j] x_j + sum_j outputs[n, j] d_j``."""

    def __init__(self, table: Table, row: int) -> None:
        super().__init__()
        if not 0 <= row < table.nfe:
            raise UserError(f"row must lie in 0 .. {table.nfe - 1} for a table of NFE {table.nfe}, got {row}")
        refuse_residuals(table, "a row as ONNX")
        weights = torch.stack([table.states[row, : row + 1], table.outputs[row, : row + 1]])
        self.weights: list[list[float]] = weights.detach().tolist()

    def forward(self, states: Tensor, outputs: Tensor) -> Tensor:
        """Return ``x_{n+1}`` of the states ``(n + 1, ..)`` and predictions of the same shape."""
        state = torch.zeros_like(states[0])
        for weights, history in zip(self.weights, (states, outputs), strict=True):
            for j, weight in enumerate(weights):
                if weight:
                    state = torch.add(state, history[j], alpha=weight)
        return state


class DenoiserModule(nn.Module):
    """A denoiser as a module, ``denoise(x, t, condition)``, for a sampler in another language.

    Args:
        denoise: ``denoise(x, t)``, or with conditions ``denoise(x, t, condition)``.
        network: the module inside it, whose weights become part of the graph.
    """

    def __init__(self, denoise: Denoiser | ConditionalDenoiser, network: nn.Module) -> None:
        super().__init__()
        self.denoise: Any = denoise
        self.network = network

    def forward(self, x: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        """Predict x_0 of ``x`` ``(B, *)`` at the time ``t`` ``(1,)``, for a condition ``(B, *)`` if it takes one."""
        with _FourDimensions():
            prediction: Tensor = self.denoise(x, t[0], *condition)
        return prediction


class Correction(nn.Module):
    """A residual as a module: ``r`` of the states and predictions that it reads, in one tensor."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.residual = residual.frozen()

    def forward(self, history: Tensor) -> Tensor:
        """Return ``r`` ``(B, *)`` of the first states, then the newest predictions, ``(states + outputs, B, *)``."""
        states = self.residual.states
        correction: Tensor = self.residual(history[:states].unbind(), history[states:].unbind())
        return correction


class Unrolled(nn.Module):
    """The whole sampler as a module, ``x_T -> sample``, with one copy of its network.

    Args:
        denoise: ``denoise(x, t)``, or with conditions ``denoise(x, t, condition)``.
        network: the module inside it, whose weights become part of the graph.
    """

    def __init__(self, denoise: Denoiser | ConditionalDenoiser, network: nn.Module, table: Table) -> None:
        super().__init__()
        refuse_branches(table, "the sampler as ONNX")
        self.denoise: Any = denoise
        self.network = network
        # Reads the coefficients now: they cannot be read while the graph is traced.
        table = table.detach()
        self.residuals = nn.ModuleList((table.residuals or {}).values())
        self.stepper = Stepper(table, fold=None)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Sample from the start ``x_T`` ``(B, *)``, for a condition ``(B, *)`` if the denoiser takes one."""
        with _FourDimensions():
            stepper = self.stepper.again()
            x = stepper.start(x.clone())  # the network may work in place
            for t in stepper.times:
                stepper.add_state(x)
                x = stepper.next_state(self.denoise(x, t, *condition))
        return x


class _FourDimensions(TorchFunctionMode):
    """Adds a head to attention in three dimensions: ONNX has it in four only."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].ndim == 3:
            heads = (part.unsqueeze(1) for part in args[:3])
            return func(*heads, *args[3:], **(kwargs or {})).squeeze(1)
        return func(*args, **(kwargs or {}))


_OUTPUTS: Mapping[type, str] = {Unrolled: "sample", DenoiserModule: "prediction", Correction: "correction"}


def export(
    path: str | Path, module: nn.Module, inputs: Mapping[str, Tensor], *, batch: Mapping[str, int]
) -> float:
    """Write a module as ONNX, run it there, and return its largest difference to torch.

    The file is written only if the two agree within :data:`TOLERANCE`.

    Args:
        path: the file, usually ``*.onnx``.
        module: with one output.
        inputs: by name, in order, for tracing and comparing.
        batch: by name, the batch dimension of an input, whose size stays variable.

    Raises:
        ModuleNotFoundError: without the packages; says what to install.
        ValueError: when the results differ from torch's, or the module cannot be exported.
    """
    _require_onnx()
    # Twice the batch too: a graph with the traced size in it would run on no other.
    doubled = {name: torch.cat([x, x], batch[name]) if name in batch else x for name, x in inputs.items()}
    with torch.no_grad():  # before tracing: what a module or schedule keeps from its first call must be real
        outputs = [module.eval()(*each.values()) for each in (inputs, doubled)]
    content, differences = _exported(module, inputs, batch), []
    for each, expected in zip((inputs, doubled), outputs, strict=True):
        differences.append(largest_difference(content, each, expected))
        if not differences[-1] <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"the ONNX graph differs from torch by {differences[-1]:.1e}, more than {TOLERANCE:g}"
            )
    write_bytes(path, content)
    return max(differences)


def _exported(module: nn.Module, inputs: Mapping[str, Tensor], batch: Mapping[str, int]) -> bytes:
    # A named dimension would be refused by networks that ask whether it is large, as diffusers' U-Nets do.
    size = torch.export.Dim.AUTO
    shapes = [{batch[name]: size} if name in batch else {} for name in inputs]
    if isinstance(module, (DenoiserModule, Unrolled)):  # what is not named in forward is one tuple there
        named = 1 if isinstance(module, Unrolled) else 2
        if rest := shapes[named:]:
            shapes = [*shapes[:named], tuple(rest)]  # type: ignore[list-item]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=[_OUTPUTS.get(type(module), "state")],
                dynamic_shapes=tuple(shapes),
                verbose=False,
            )
    except UserError:
        raise
    except Exception as error:
        # The exporter's own errors list its attempts, and advice for its developers.
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        text = f"{type(reason).__name__}: {error_text(reason)}"
        raise UserError(f"this network cannot be written as ONNX: {text}") from error
    if program is None:
        raise UserError("this network cannot be written as ONNX: the exporter returned no program")
    proto = program.model_proto
    for graph in (proto.graph, *proto.functions):
        for node in graph.node:  # each holds the Python stack of its tracing, with paths
            del node.metadata_props[:]
    content: bytes = proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns of packages that are not needed; failures are in its exceptions."""
    output, before = io.StringIO(), logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def largest_difference(content: bytes, inputs: Mapping[str, Tensor], expected: Tensor) -> float:
    """Run an ONNX graph on the CPU and return its largest difference to the expected output."""
    _require_onnx()
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = {argument.name for argument in session.get_inputs()}
    try:
        arrays = {name: x.cpu().numpy() for name, x in inputs.items() if name in names}
        output = session.run(None, arrays)[0]
    except Exception as error:
        raise UserError(f"the ONNX graph does not run: {str(error).splitlines()[0]}") from error
    return float((torch.from_numpy(output) - expected.cpu()).abs().max())


def _require_onnx() -> None:
    with requires("onnx", "ONNX export needs onnx, onnxscript and onnxruntime"):
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        import onnxscript  # noqa: F401
