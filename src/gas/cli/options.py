"""Option types that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from gas.zoo import ZooModel

__all__ = [
    "Compile",
    "Device",
    "Json",
    "ModelName",
    "Precision",
    "SolverFile",
    "interpolation",
    "load_model",
    "parse_nfes",
    "parse_seeds",
]

ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="A zoo model (digits, mnist) or the path of its .safetensors file."),
]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on standard output.")]
Precision = Annotated[
    str,
    typer.Option(help="Of the network: float32, bf16 or fp16 (mixed: states and coefficients stay exact)."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Run the network through torch.compile; slow to start.")
]
SolverFile = Annotated[Path, typer.Option("--solver", "-s", help="A solver file, as gas train writes it.")]


def parse_seeds(text: str) -> range:
    """Read ``A:B`` (A up to, not including, B) or ``N`` (0 up to N) as a range of seeds.

    Raises:
        ValueError: shows both forms.
    """
    parts = text.split(":")
    try:
        first, stop = (0, int(parts[0])) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
        if len(parts) > 2 or not 0 <= first < stop:
            raise ValueError
    except ValueError:
        raise ValueError(f"seeds must be like 1024 or 50000:51024 with first < last, got {text!r}") from None
    return range(first, stop)


def parse_nfes(text: str) -> list[int]:
    """Read ``3-6,8,10`` as a sorted list of NFE.

    Raises:
        ValueError: shows the form.
    """
    nfes: set[int] = set()
    try:
        for part in text.split(","):
            ends = [int(end) for end in part.split("-")]
            if len(ends) > 2 or min(ends) < 1 or ends[0] > ends[-1]:
                raise ValueError
            nfes.update(range(ends[0], ends[-1] + 1))
    except ValueError:
        raise ValueError(f"nfe must be like 4 or 3-6,8,10 with numbers from 1 up, got {text!r}") from None
    return sorted(nfes)


def interpolation(around: tuple[int, int]) -> str:
    """Say which two trained NFE a table was made of."""
    return f"interpolated from NFE {around[0]} and {around[1]}"


def load_model(name: str, device: str, precision: str = "float32", compiled: bool = False) -> ZooModel:
    """Load a zoo model onto a device, to be asked at a precision.

    Raises:
        ValueError: for an unknown model or precision, or a device that is not there.
    """
    import torch

    from gas import zoo
    from gas.precision import precise

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    model = precise(zoo.load(name).to(device), precision, compiled=compiled)
    return cast("ZooModel", model)  # a PreciseModel has all that a zoo model has
