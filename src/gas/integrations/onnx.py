"""A table as ONNX: one of its steps, or the whole sampler with its network, for any runtime."""

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
from gas.errors import UserError
from gas.io import write_bytes
from gas.sampling import Stepper
from gas.table import Table

__all__ = ["TOLERANCE", "Step", "Unrolled", "export", "largest_difference"]

# What an exported graph may differ from torch by, relative to the largest number where that is above 1.
TOLERANCE = 1e-5


class Step(nn.Module):
    """Row n of a table as a module: ``x_{n+1} = sum_j states[n, j] x_j + sum_j outputs[n, j] d_j``.

    Args:
        table: the solver.
        row: n, from 0.

    Raises:
        ValueError: when the table has no such row.
    """

    def __init__(self, table: Table, row: int) -> None:
        super().__init__()
        if not 0 <= row < table.nfe:
            raise UserError(f"row must lie in 0 .. {table.nfe - 1} for a table of NFE {table.nfe}, got {row}")
        kept = torch.stack([table.states[row, : row + 1], table.outputs[row, : row + 1]])
        self.weights: list[list[float]] = kept.detach().tolist()

    def forward(self, states: Tensor, outputs: Tensor) -> Tensor:
        """Weigh the states so far ``(n + 1, ..)`` and the answers so far, of the same shape."""
        made = torch.zeros_like(states[0])
        for weights, past in zip(self.weights, (states, outputs), strict=True):
            for j, weight in enumerate(weights):
                if weight:
                    made = torch.add(made, past[j], alpha=weight)
        return made


class Unrolled(nn.Module):
    """The whole sampler as a module, ``x_T -> sample``, its network in it once.

    Args:
        denoise: ``denoise(x, t)``, or with ``conditional`` ``denoise(x, t, condition)``.
        network: the module that it asks, whose weights the graph holds.
        table: the solver.
    """

    def __init__(self, denoise: Denoiser | ConditionalDenoiser, network: nn.Module, table: Table) -> None:
        super().__init__()
        self.denoise: Any = denoise
        self.network = network
        # Reads the coefficients now: while a graph is traced, they cannot be.
        self.stepper = Stepper(table.detach(), fold=None)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Sample from the start ``x_T`` ``(B, *)``, for a condition ``(B, *)`` if the denoiser takes one."""
        with _FourDimensions():
            stepper, x = self.stepper.again(), x.clone()  # the network may work in place
            for t in stepper.times:
                stepper.add_state(x)
                x = stepper.next_state(self.denoise(x, t, *condition))
        return x


class _FourDimensions(TorchFunctionMode):
    """ONNX knows attention in four dimensions only: give the others a head."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].ndim == 3:
            heads = (part.unsqueeze(1) for part in args[:3])
            return func(*heads, *args[3:], **(kwargs or {})).squeeze(1)
        return func(*args, **(kwargs or {}))


def export(
    path: str | Path, module: nn.Module, given: Mapping[str, Tensor], *, batch: Mapping[str, int]
) -> float:
    """Write a module as ONNX, run it there, and return its largest difference to torch.

    The file appears only if the two agree within :data:`TOLERANCE`.

    Args:
        path: the file, usually ``*.onnx``.
        module: what to write, with one output.
        given: its inputs by name, in order, with which it is traced and compared.
        batch: by name, which dimension of an input is the batch, that may be of any size.

    Raises:
        ModuleNotFoundError: without the packages; says what to install.
        ValueError: when the graph gives other numbers than torch, or the module cannot be written.
    """
    _need()
    content = _written(module.eval(), given, batch)
    # Twice the batch too: a graph that holds the traced one's size would run on nothing else.
    twice = {name: torch.cat([x, x], batch[name]) if name in batch else x for name, x in given.items()}
    difference = max(_checked(content, module, inputs) for inputs in (given, twice))
    write_bytes(path, content)
    return difference


def _written(module: nn.Module, given: Mapping[str, Tensor], batch: Mapping[str, int]) -> bytes:
    size = torch.export.Dim("batch")
    shapes = [{batch[name]: size} if name in batch else {} for name in given]
    if isinstance(module, Unrolled):  # its forward takes x, and the rest as one tuple
        shapes = [shapes[0], tuple(shapes[1:])]  # type: ignore[list-item]
    output = "sample" if isinstance(module, Unrolled) else "state"
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(given.values()),
                dynamo=True,
                input_names=list(given),
                output_names=[output],
                dynamic_shapes=tuple(shapes),
                verbose=False,
            )
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"this network cannot be written as ONNX: {lines[-1]}") from error
    if program is None:
        raise UserError("this network cannot be written as ONNX: no program came back")
    proto = program.model_proto
    for graph in (proto.graph, *proto.functions):
        for part in graph.node:  # each holds the Python stack it was traced at, paths and all
            del part.metadata_props[:]
    content: bytes = proto.SerializeToString()
    return content


@contextmanager
def _quietly() -> Iterator[None]:
    """What goes wrong is in the error; the exporter also speaks of packages that nobody asked for."""
    spoken, before = io.StringIO(), logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(spoken), redirect_stderr(spoken):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _checked(content: bytes, module: nn.Module, given: Mapping[str, Tensor]) -> float:
    with torch.no_grad():
        expected = module(*given.values())
    difference = largest_difference(content, given, expected)
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the ONNX graph differs from torch by {difference:.1e}, more than {TOLERANCE:g}")
    return difference


def largest_difference(content: bytes, given: Mapping[str, Tensor], expected: Tensor) -> float:
    """Run an ONNX graph on the CPU and return its largest difference to what is expected."""
    _need()
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    asked = {put.name for put in session.get_inputs()}
    try:
        made = session.run(None, {name: x.cpu().numpy() for name, x in given.items() if name in asked})[0]
    except Exception as error:
        raise UserError(f"the ONNX graph does not run: {str(error).splitlines()[0]}") from error
    return float((torch.from_numpy(made) - expected.cpu()).abs().max())


def _need() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        import onnxscript  # noqa: F401
    except Exception as error:  # a broken install raises more than ImportError
        raise ModuleNotFoundError(
            f"ONNX export needs onnx, onnxscript and onnxruntime: pip install 'gas-solver[onnx]' ({error})"
        ) from error
