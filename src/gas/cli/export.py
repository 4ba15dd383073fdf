"""``gas export``: a solver for runtimes without Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gas
from gas.arguments import MAX_NFE
from gas.cli.app import command
from gas.cli.checks import NFE, option, output_file
from gas.cli.loading import load_zoo_images
from gas.cli.options import Json, SolverFile, ZooImages, was_given
from gas.cli.screen import note, print_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    # A module, example inputs by name, and the batch dimension of each.
    Traced = tuple[nn.Module, dict[str, Tensor], dict[str, int]]


@command("gas export --onnx runs/mnist.onnx --model mnist --solver runs/mnist.json --nfe 4", file="onnx")
def export(
    context: typer.Context,
    solver: SolverFile,
    onnx: Annotated[Path, option("ONNX file to write.", output_file(".onnx"))],
    model: ZooImages = "mnist",
    nfe: Annotated[int | None, option("NFE; default: the file's only one, or 4.", **NFE)] = None,
    row: Annotated[
        int | None, option("Write this row of the table alone, from 0.", min=0, max=MAX_NFE)
    ] = None,
    residual: Annotated[
        int | None, option("Write the residual of this row alone; -1 is the start's.", min=-1, max=MAX_NFE)
    ] = None,
    json: Json = False,
) -> None:
    """Write a solver as ONNX, the whole sampler with its network, one row or its residual, and check it against torch.

    The sampler maps noise x (batch, channels, height, width) and, for models with classes, labels (batch) to samples.
    A row maps the states and outputs so far, each flattened to (row + 1, elements), to the next state. A residual maps
    the states and outputs that it reads (reads, batch, channels, height, width) to its correction.
    onnxruntime runs the file at two batch sizes; it appears only if it agrees with torch within 1e-5.
    """
    alone = [f"--{name}" for name, value in (("row", row), ("residual", residual)) if value is not None]
    if alone and was_given(context, "model"):
        raise gas.UserError(f"--model is for the whole sampler: leave it out, or {alone[0]}")
    if len(alone) == 2:
        raise gas.UserError("--row and --residual are two parts of a solver: write one at a time")
    artefact = gas.load(solver)
    nfe = gas.evaluation.solver_files.default_nfe(artefact) if nfe is None else nfe
    if residual is not None:
        module, inputs, batch = _residual(artefact, nfe, residual)
    elif row is not None:
        module, inputs, batch = _row(artefact.table(nfe), row)
    else:
        module, inputs, batch = _sampler(artefact, model, nfe)
    difference = gas.integrations.onnx.export(onnx, module, inputs, batch=batch)
    size = onnx.stat().st_size
    part = f"row {row}" if row is not None else "the sampler" if residual is None else f"residual {residual}"
    note(f"wrote {part} of NFE {nfe} to {onnx} ({size / 1000:,.0f} kB); difference to torch {difference:.1e}")
    if json:
        report = {"out": str(onnx), "nfe": nfe, "row": row, "residual": residual, "bytes": size}
        print_json({**report, "largest_difference": difference, "inputs": list(inputs)})


def _sampler(artefact: gas.Artefact, name: str, nfe: int) -> Traced:
    """Return the unrolled sampler with its network, and inputs to trace it with."""
    import torch

    table, model, guidance = artefact.table(nfe), load_zoo_images(name, "cpu"), artefact.document.guidance
    artefact.check(model, guidance)

    def denoise(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if guidance == 1:
            return model.conditional(x, t, labels)
        null = torch.full_like(labels, model.classes)
        return gas.denoise.ClassifierFreeGuidance(model.conditional, labels, null, guidance)(x, t)

    inputs = {"x": model.noise(range(3)), "labels": torch.arange(3) % model.classes}
    return gas.integrations.onnx.Unrolled(denoise, model.network, table), inputs, {"x": 0, "labels": 0}


def _row(table: gas.Table, row: int) -> Traced:
    """Return one row, and inputs to trace it with."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(row + 1, 64, generator=generator) for name in ("states", "outputs")}
    return gas.integrations.onnx.Step(table, row), inputs, {"states": 1, "outputs": 1}


def _residual(artefact: gas.Artefact, nfe: int, row: int) -> Traced:
    """Return the residual of a row, and inputs to trace it with, of the samples that the file is for."""
    import torch

    residuals, shape = (
        artefact.table(nfe).residuals or {},
        (artefact.document.model or {}).get("sample_shape"),
    )
    if row not in residuals:
        rows = ", ".join(map(str, residuals)) or "none"
        raise gas.UserError(f"--residual {row}: the table of NFE {nfe} has residuals at rows {rows}")
    if shape is None:
        raise gas.UserError(f"{artefact.source} does not say the shape of its samples: save it with model=")
    module = gas.integrations.onnx.Correction(residuals[row])
    reads = module.residual.states + module.residual.outputs
    history = torch.randn(reads, 3, *shape, generator=torch.Generator().manual_seed(0))
    return module, {"history": history}, {"history": 1}
