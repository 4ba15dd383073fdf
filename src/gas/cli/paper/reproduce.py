"""``gas paper reproduce``: a table of the paper beside the figures measured here."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

import gas
from gas.cli.app import command, holding, paper
from gas.cli.checks import argument, option, output_file
from gas.cli.evaluate import EvaluationOptions
from gas.cli.options import FeatureOptions, Json, was_given
from gas.cli.paper.evaluate import at_preset_seeds, evaluate_preset
from gas.cli.paper.presets import PresetNetworkOptions, Settings
from gas.cli.paper.train import train_preset
from gas.cli.screen import note, print_json, print_table
from gas.display import markdown as escaped, markdown_table

# The classical solvers of Table 2a; the other tables have none.
_BASELINES = {"cifar10": "dpmpp-3m/log_snr,unipc-3-bh1/log_snr,ipndm-3"}


@command("gas paper reproduce table2a --results runs/results", group=paper)
def reproduce(
    context: typer.Context,
    table: Annotated[
        str, argument("table2a to table2f, table6, theory, transfer, coverage; or list.")
    ] = "list",
    *,
    results: Annotated[
        Path, option("Folder of results of gas paper evaluate --json and gas compare.", file_okay=False)
    ] = Path("runs/results"),
    run: Annotated[bool, option("Train and measure what has no result and all its files.")] = False,
    only: Annotated[str, option("With --run: one run, as the table names it.")] = "",
    sets: Settings = None,
    features: FeatureOptions,
    network: PresetNetworkOptions,
    markdown: Annotated[
        Path | None, option("Also write the table to this .md file.", output_file(".md"))
    ] = None,
    json: Json = False,
) -> None:
    """Print the paper's figure, ours and their difference for every cell, and the run that measures it.

    FID counts only where it was measured in Inception's features against real data: by default with the published
    files of the preset, else with --features, --weights, --reference and --real.
    """
    if table == "list":
        _list(context, json)
        return
    chosen = gas.registry.named("table", table, gas.paper.tables.TABLES)
    runs = {figure: gas.paper.reproduction.run_for(figure, results, sets or ()) for figure in chosen.figures}
    given = features if was_given(context, "features", "reference", "real") else None
    if only and only not in {each.name for each in runs.values()}:
        raise gas.UserError(f"--only must be one of {', '.join(sorted({r.name for r in runs.values()}))}")
    if run:
        with holding(results, f"gas paper reproduce {chosen.name}", folder=True):
            for each in {each.result: each for each in runs.values() if only in ("", each.name)}.values():
                _measure(each, given, network)
    known = gas.paper.reproduction.read_results(results) if results.is_dir() else []
    rows = [_row(figure, each, known, network.folder, given is None) for figure, each in runs.items()]
    if markdown is not None:
        cells = [_cells(row) for row in rows]
        table_text = markdown_table([*cells[0]], [[*cell.values()] for cell in cells])
        gas.io.write_text(markdown, f"## {escaped(chosen.title)}\n\n{table_text}\n")
        note(f"wrote {markdown}")
    if json:
        print_json({"table": chosen.name, "title": chosen.title, "cells": rows})
    else:
        print_table(chosen.title, [_cells(row) for row in rows])


def _list(context: typer.Context, json: bool) -> None:
    """Print the names of the tables."""
    if was_given(context, "run", "only", "sets", "markdown"):
        raise gas.UserError(
            "--run, --only, --set and --markdown are for one table: name it, or leave them out"
        )
    if json:
        print_json({table.name: table.title for table in gas.paper.tables.TABLES.values()})
        return
    tables = gas.paper.tables.TABLES.values()
    rows = [{"table": each.name, "what": each.title, "cells": len(each.figures)} for each in tables]
    print_table("Tables of arXiv 2510.17699", rows)


def _measure(
    run: gas.paper.reproduction.MeasuringRun, features: FeatureOptions | None, network: PresetNetworkOptions
) -> None:
    """Train and evaluate one run unless its result exists or files are missing."""
    if run.result.exists():
        return
    if missing := run.missing(network.folder, measuring=features is None):
        note(f" {run.name}: {', '.join(missing)} is missing", label="left out")
        return
    run.check_solver()
    note(f": {run.name}", label="measuring")
    if not run.solver.exists():
        train_preset(run.trained, run.objective, {run.nfe: run.solver}, network)
    options = EvaluationOptions(
        solver=[run.solver],
        nfe=str(run.nfe),
        baselines=_BASELINES.get(run.preset.name, ""),
        transfer=run.trained.name != run.preset.name,
    )
    features = _published_features(run, network.folder) if features is None else features
    evaluation = evaluate_preset(run.preset, network, at_preset_seeds(options, run.preset), features)
    gas.io.write_text(run.result, json_format.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")


def _published_features(run: gas.paper.reproduction.MeasuringRun, weights: Path) -> FeatureOptions:
    """Return Inception's features and the real data of a preset, from its published files."""
    network, data = gas.paper.find_measuring_files(run.preset, weights)
    path = data.path or data.place
    return FeatureOptions(
        features="inception",
        weights=network.path or network.place,
        reference=path,
        real=path if data.role == "images" else None,
    )


def _row(
    figure: gas.paper.tables.PaperFigure,
    run: gas.paper.reproduction.MeasuringRun,
    known: list[gas.paper.reproduction.MeasuredResult],
    weights: Path,
    measuring: bool,
) -> dict[str, Any]:
    """Return a cell with the figure measured here, and where that comes from or what it lacks."""
    result = gas.paper.reproduction.best_of(figure, known, run.preset.changes())
    ours = None if result is None else result.figures.get(figure.metric)
    if result is None:
        missing = run.missing(weights, measuring=measuring)
        state = f"missing; needs {', '.join(missing)}" if missing else "missing; all its files exist"
    elif ours is None:
        source = "a reference" if figure.metric == "FID" else "--real images"
        state = f"{result.path}: no {figure.metric} in it (--features inception and {source})"
    else:
        fewer = "" if result.samples >= run.preset.samples else f", the paper {run.preset.samples:,}"
        state = f"{result.path}: {result.samples:,} samples{fewer}"
    return {
        "solver": figure.solver,
        "nfe": figure.nfe or None,
        "metric": figure.metric,
        "paper": figure.value,
        "ours": ours,
        "difference": None if ours is None else ours - figure.value,
        "run": run.name,
        "state": state,
    }


def _cells(row: dict[str, Any]) -> dict[str, object]:
    return {
        "solver": row["solver"],
        "NFE": row["nfe"] or "",
        "metric": row["metric"],
        "paper": f"{row['paper']:.2f}",
        "ours": "" if row["ours"] is None else f"{row['ours']:.2f}",
        "difference": "" if row["difference"] is None else f"{row['difference']:+.2f}",
        "run": row["run"],
        "result": row["state"],
    }
