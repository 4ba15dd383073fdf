"""``gas inspect``: what is in a solver file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gas.arguments import MAX_NFE
from gas.cli.app import command
from gas.cli.checks import checked, existing_file
from gas.cli.options import Json, Picture, interpolation
from gas.cli.screen import note, print_json, print_table
from gas.display import significant
from gas.errors import UserError

__all__ = ["inspect"]


@command("gas inspect runs/mnist.json --nfe 4", file="picture")
def inspect(
    file: Annotated[Path, typer.Argument(help="A solver file.", callback=checked(existing_file))],
    nfe: Annotated[int | None, typer.Option(help="Show the table of this NFE.", min=1, max=MAX_NFE)] = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Check a solver file and say what it is for, how it was made and what it measured."""
    from gas.solver_file import load
    from gas.training.initialization import start_label

    artefact = load(file)
    document = artefact.document
    around = None if nfe is None else artefact.neighbours(nfe)
    if picture is not None and artefact.schedule is None:
        raise UserError(f"{file} does not say its schedule, which the axis of --picture needs")
    if json:
        print_json(document.model_dump(mode="json", exclude_none=True))
    elif nfe is not None:
        table = artefact.table(nfe, interpolate=True)
        if around is not None:
            note(f"{file} has no table for NFE {nfe}: this one is {interpolation(around)}")
        _print_entry(table.times.tolist(), table.states.tolist(), table.outputs.tolist())
    else:
        model = document.model or {}
        facts = [
            ["model", str(model.get("name", "any"))],
            ["weights", str(model.get("sha256", "any"))[:16]],
            ["shape", "x".join(map(str, model.get("sample_shape", []))) or "any"],
            ["schedule", str((document.schedule or {}).get("kind", "any"))],
            ["guidance", f"{document.guidance:g}"],
            ["teacher", ", ".join(f"{k} {v}" for k, v in (document.teacher or {}).items()) or "not said"],
            ["loss", document.loss or "not said"],
            ["learned", str(document.training.get("solver", "not said"))],
            ["made with", ", ".join(f"{k} {v}" for k, v in document.versions.items())],
        ]
        print_table(f"{file} ({file.stat().st_size / 1000:.1f} kB)", ["what", "value"], facts)
        rows = [
            [
                str(e.nfe),
                e.kind,
                "" if e.start is None else start_label(e.start),
                ", ".join(f"{k} {_number(v)}" for k, v in e.measured.items()),
            ]
            for e in sorted(document.solvers, key=lambda entry: entry.nfe)
        ]
        print_table("Tables", ["NFE", "kind", "started from", "measured"], rows)
    if picture is not None:
        _draw(picture, file)


def _number(value: float) -> str:
    """A measurement: a count in full, and four digits of anything else."""
    return f"{value:,.0f}" if value == int(value) else significant(value)


def _print_entry(times: list[float], states: list[list[float]], outputs: list[list[float]]) -> None:
    indices = [str(j) for j in range(len(times))]
    rows = [
        [
            f"x_{n + 1}",
            significant(times[n]),
            *(significant(w) if w else "" for w in [*states[n], *outputs[n]]),
        ]
        for n in range(len(times))
    ]
    columns = ["row", "time", *(f"x_{j}" for j in indices), *(f"d_{j}" for j in indices)]
    print_table("x_{n+1} = sum_j states[n, j] x_j + sum_j outputs[n, j] d_j", columns, rows)


def _draw(picture: Path, file: Path) -> None:
    from gas.plotting.times import times_plot
    from gas.solver_file import load

    artefact = load(file)
    schedule = artefact.schedule
    if schedule is None:
        return
    series = [(f"NFE {e.nfe}", e.times, e.nominal or []) for e in artefact.document.solvers]
    times_plot(picture, series, schedule, highlight=None)
    note(f"wrote {picture}")
