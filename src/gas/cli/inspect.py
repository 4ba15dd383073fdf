"""``gas inspect``: the contents of a solver file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import gas
from gas.cli.app import command
from gas.cli.checks import FILE, NFE, argument, option
from gas.cli.options import GuidanceScale, Json, Picture, interpolation, load_solver
from gas.cli.screen import note, print_facts, print_json, print_table
from gas.display import significant


@command("gas inspect runs/mnist.json --nfe 4", file="picture")
def inspect(
    file: Annotated[Path, argument("Solver file.", **FILE)],
    nfe: Annotated[int | None, option("Print the table of this NFE.", **NFE)] = None,
    forwards: Annotated[int | None, option("Print the table of so many forward passes.", **NFE)] = None,
    guidance: GuidanceScale = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Check a solver file and print its model, its provenance and its measurements."""
    artefact = load_solver(file, guidance)
    document, schedule = artefact.document, artefact.schedule
    around = None if nfe is None else artefact.neighbours(nfe)
    if nfe is not None and forwards is not None:
        raise gas.UserError("--nfe and --forwards name two tables: say one of them")
    if json and (nfe is not None or forwards is not None):
        raise gas.UserError("--json prints the whole file: leave out --nfe and --forwards")
    if picture is not None and schedule is None:
        raise gas.UserError(f"{file} does not say its schedule, which the axis of --picture needs")
    if json:
        print_json(document.model_dump(mode="json", exclude_none=True))
    elif nfe is not None or forwards is not None:
        if around is not None:
            note(f"{file} has no table for NFE {nfe}: this one is {interpolation(around)}")
        table = artefact.table(nfe, forwards=forwards, interpolate=True)
        _print_rows(table)
        if table.residuals:
            rows = ", ".join(f"x_{row + 1}" for row in table.residuals)
            note(
                f"a residual network corrects {rows}: these numbers alone make other samples",
                label="warning: ",
            )
    else:
        _print_summary(artefact, file)
    if picture is not None and schedule is not None:
        series = [(_size(entry), entry.times, entry.nominal or []) for entry in document.solvers]
        gas.plotting.times_plot(picture, series, schedule, highlight=None)
        note(f"wrote {picture}")


def _print_summary(artefact: gas.Artefact, file: Path) -> None:
    """Print what the file is for and, for each NFE, the start and the measurements."""
    document = artefact.document
    model, teacher = document.model or {}, dict(document.teacher or {})
    original = teacher.pop("model", None)
    facts = {
        "model": model.get("name", "any"),
        "weights": _weights(model),
        "shape": "x".join(map(str, model.get("sample_shape", []))) or "any",
        "schedule": (document.schedule or {}).get("kind", "any"),
        "guidance": document.served,
        "teacher": ", ".join(f"{k} {v}" for k, v in teacher.items()) or "not said",
    }
    if original is not None:
        facts |= {"teacher's model": original.get("name", "any"), "teacher's weights": _weights(original)}
    facts |= {
        "loss": document.loss or "not said",
        "learned": document.training.get("solver", "not said"),
        "made with": ", ".join(f"{k} {v}" for k, v in document.versions.items()),
    }
    print_facts(f"{file} ({file.stat().st_size / 1000:.1f} kB)", facts)
    rows = [
        {
            "NFE": entry.nfe if entry.branches is None else None,
            "forward passes": document.forward_passes(entry),
            "kind": entry.kind,
            "started from": entry.start and gas.training.initialization.start_label(entry.start),
            "measured": ", ".join(f"{name} {_number(value)}" for name, value in entry.measured.items()),
        }
        for entry in sorted(document.solvers, key=lambda entry: (entry.branches is not None, entry.nfe))
    ]
    print_table("Tables", rows)
    if document.weights is not None:
        title = f"Residuals ({document.weights.file}, {document.weights.bytes / 1000:.1f} kB)"
        print_table(title, [row for entry in document.solvers for row in _residual_rows(artefact, entry)])


def _residual_rows(artefact: gas.Artefact, entry: gas.solver_schema.Entry) -> list[dict[str, object]]:
    """Return the size of each residual of a table; its cost for the samples of the file's model, if it names them."""
    table = artefact.table(entry.nfe) if entry.branches is None else artefact.table(forwards=entry.nfe)
    shape = (artefact.document.model or {}).get("sample_shape")
    rows: list[dict[str, object]] = []
    for row, residual in (table.residuals or {}).items():
        layers = f"{residual.layers} x {residual.width}" + f", patch {residual.patch}" * (residual.patch > 1)
        rows.append(
            {
                "table": _size(entry),
                "corrects": f"x_{row + 1}",
                "form": residual.form,
                "reads": f"{residual.states} states, {residual.outputs} predictions",
                "hidden layers": layers,
                "numbers": f"{residual.numbers:,}",
                "multiply-adds": None if shape is None else f"{residual.cost(shape).multiply_adds:,}",
            }
        )
    return rows


def _weights(model: Mapping[str, Any]) -> str:
    """Return the beginning of the weights' hash, and their quantization."""
    return f"{str(model.get('sha256', 'any'))[:16]} {model.get('quantize', '')}".strip()


def _size(entry: gas.solver_schema.Entry) -> str:
    return f"NFE {entry.nfe}" if entry.branches is None else f"{entry.nfe} forward passes"


def _number(value: float) -> str:
    """Return a count in full, and four digits of any other measurement."""
    return f"{value:,.0f}" if value == int(value) else significant(value)


def _print_rows(table: gas.Table) -> None:
    """Print a table of coefficients."""
    rows = []
    for n, time in enumerate(table.times):
        row = {"row": f"x_{n + 1}", "branch": table.branches and table.branches[n]}
        row["time"] = significant(float(time))
        for letter, weights in (("x", table.states[n]), ("d", table.outputs[n])):
            row |= {f"{letter}_{j}": significant(float(w)) if w else "" for j, w in enumerate(weights)}
        rows.append(row)
    print_table("x_{n+1} = sum_j states[n, j] x_j + sum_j outputs[n, j] d_j", rows)
