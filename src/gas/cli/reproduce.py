"""``gas reproduce``: a table of the paper, what was measured of it, and the command of every cell."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas.cli.app import check_options, command, holding
from gas.cli.checks import checked, output_file, output_folder, registered
from gas.cli.options import Json, was_given
from gas.cli.paper_line import Line, More
from gas.cli.presets import Weights, changed_settings
from gas.cli.screen import note, print_json, print_table
from gas.display import markdown, markdown_table
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.paper.results import Measured
    from gas.paper.tables import PaperTable

__all__ = ["reproduce"]

RESULTS = Path("runs/results")


def _tables() -> Iterable[str]:
    from gas.paper.tables import TABLES

    return ("list", *TABLES)


def _measure_words(text: str) -> list[str]:
    """Read words for ``gas evaluate`` as a shell splits them.

    Raises:
        ValueError: for a quotation that does not end.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"options of gas evaluate, quoted as in a shell, are wanted, got {text[:80]!r} ({error})"
        ) from None
    if words and not words[0].startswith("-"):
        raise UserError(f"options of gas evaluate are wanted, as --features inception, got {text[:80]!r}")
    if words:
        check_options("evaluate", words)
    return words


@command("gas reproduce table2a --results runs/results")
def reproduce(
    context: typer.Context,
    table: Annotated[
        str,
        typer.Argument(
            help="table2a (CIFAR-10) to table2f (COCO), table6, theory, transfer, coverage; or list.",
            callback=checked(registered("table", _tables)),
        ),
    ] = "list",
    results: Annotated[
        Path,
        typer.Option(
            help="Folder of results: what gas evaluate --json and gas compare wrote.",
            callback=checked(output_folder),
        ),
    ] = RESULTS,
    go: Annotated[
        bool,
        typer.Option("--run", help="Make what is missing: pairs, training and evaluation, cell by cell."),
    ] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of every run, as batch=8; repeat it.")
    ] = None,
    measure: Annotated[
        str,
        typer.Option(
            help="Words for every gas evaluate: --features inception --weights FILE --reference FILE.",
            callback=checked(_measure_words),
        ),
    ] = "",
    preset_weights: Weights = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    markdown: Annotated[
        Path | None,
        typer.Option(help="Also write the table to this Markdown file.", callback=checked(output_file())),
    ] = None,
    json: Json = False,
) -> None:
    """Print paper, ours and difference for every cell, and the command that makes it.

    A cell without a result says so, and which file it needs that is not there. FID is taken from results that were
    measured in Inception's features against real data; others have none.
    """
    from gas.paper.tables import TABLES, table_by_name

    if table == "list":
        options = {"go": "--run", "sets": "--set", "measure": "--measure", "markdown": "--markdown"}
        if unused := [option for name, option in options.items() if was_given(context, name)]:
            raise UserError(
                f"{unused[0]} is for one table, not the list of them: name a table, or leave it out"
            )
        rows = [[one.name, one.title, str(len(one.cells))] for one in TABLES.values()]
        if json:
            print_json({one.name: one.title for one in TABLES.values()})
            return
        print_table("Tables of arXiv 2510.17699", ["table", "what", "cells"], rows)
        return
    chosen = table_by_name(table)
    more = More(tuple(sets or ()), preset_weights, device, tuple(_measure_words(measure)))
    lines = [Line.of(cell, results, more) for cell in chosen.cells]
    if go:
        check_options("evaluate", ["--solver", __file__, *_measure_words(measure)], values=True)
        with holding(results, f"gas reproduce {chosen.name}", folder=True):
            _make(lines)
    told = _told(chosen, lines, results)
    if markdown is not None:
        _write(markdown, chosen, told, results)
        note(f"wrote {markdown}")
    if json:
        print_json({"table": chosen.name, "title": chosen.title, "cells": told})
        return
    _print(chosen, told, results)


def _make(lines: list[Line]) -> None:
    """Train and evaluate what has no result, in this process, by the commands themselves."""
    import contextlib
    import io

    from gas.cli.app import app
    from gas.io import write_text

    for line in lines:
        if line.result.exists():
            continue
        if missing := line.missing():
            note(f" {line.cell.solver}, NFE {line.nfe}: {', '.join(missing)} is missing", label="left out")
            continue
        line.check()
        train, evaluate = line.commands()
        printed = io.StringIO()
        for words in (evaluate,) if line.solver.exists() else (train, evaluate):
            note(f"gas {' '.join(words)}")
            with contextlib.redirect_stdout(printed if words is evaluate else sys.stderr):
                failed = app(words, standalone_mode=False)
            if failed:
                raise UserError(
                    f"that command failed; the rest of {line.cell.solver}, NFE {line.nfe} is not made"
                )
        write_text(line.result, printed.getvalue())


def _told(table: PaperTable, lines: list[Line], results: Path) -> list[dict[str, Any]]:
    """Every cell with what was found of it."""
    from gas.paper.results import best_of, read_results

    found: list[Measured] = read_results(results) if results.is_dir() else []
    rows = []
    for line in lines:
        cell = line.cell
        one = best_of(cell, found, changed_settings(line.preset))
        ours = None if one is None else one.figures.get(cell.metric)
        row = {
            "solver": cell.solver,
            "nfe": cell.nfe or None,
            "metric": cell.metric,
            "paper": cell.value,
            "ours": ours,
        }
        row |= {"difference": None if ours is None else ours - cell.value, "state": _state(line, one, ours)}
        rows.append({**row, "command": line.command()})
    return rows


def _state(line: Line, one: Measured | None, ours: float | None) -> str:
    if one is None:
        missing = line.missing()
        return f"missing; needs {', '.join(missing)}" if missing else "missing; its files are there"
    if ours is None:
        source = "a reference" if line.cell.metric == "FID" else "--real images"
        return f"{one.path}: no {line.cell.metric} in it (--features inception and {source})"
    fewer = "" if one.samples >= line.preset.samples else f", the paper {line.preset.samples:,}"
    return f"{one.path}: {one.samples:,} samples{fewer}"


def _cells(row: dict[str, Any]) -> list[str]:
    ours = "" if row["ours"] is None else f"{row['ours']:.2f}"
    apart = "" if row["difference"] is None else f"{row['difference']:+.2f}"
    nfe = "" if row["nfe"] is None else str(row["nfe"])
    return [row["solver"], nfe, row["metric"], f"{row['paper']:.2f}", ours, apart, row["state"]]


_COLUMNS = ["solver", "NFE", "metric", "paper", "ours", "difference", "result"]


def _print(table: PaperTable, rows: list[dict[str, Any]], results: Path) -> None:
    print_table(table.title, _COLUMNS, [_cells(row) for row in rows])
    sys.stdout.write("\n".join(_commands(rows, results)) + "\n")


def _commands(rows: list[dict[str, Any]], results: Path) -> list[str]:
    """Every command once, under the cells that it makes, as a shell takes them."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row["command"], []).append(f"{row['solver']} {row['nfe'] or ''}".strip())
    lines = [f"mkdir -p {shlex.quote(str(results))}"]
    return lines + [line for command, made in cells.items() for line in (f"# {', '.join(made)}", command)]


def _write(path: Path, table: PaperTable, rows: list[dict[str, Any]], results: Path) -> None:
    from gas.io import write_text

    lines = [f"## {markdown(table.title)}", "", markdown_table(_COLUMNS, map(_cells, rows))]
    lines += ["", "```sh", *_commands(rows, results), "```", ""]
    write_text(path, "\n".join(lines))
