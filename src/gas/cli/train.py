"""``gas train``: learn solvers from teacher pairs."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas.cli.app import command
from gas.cli.options import Device, Json, ModelName, load_model, parse_nfes
from gas.cli.screen import bar, note, print_json, print_table

if TYPE_CHECKING:
    from gas.distill import Distilled
    from gas.fit import FitConfig
    from gas.model import Model
    from gas.pairs import Pairs

__all__ = ["train", "train_one"]


@command("gas train --model digits --pairs runs/digits-pairs --nfe 3-6 --out runs/digits.json")
def train(
    pairs: Annotated[Path, typer.Option(help="Folder of teacher pairs, as gas pairs writes it.")],
    out: Annotated[Path, typer.Option(help="The solver file to write.")],
    model: ModelName = "mnist",
    nfe: Annotated[str, typer.Option(help="Which NFE, as 4 or 3-6,8,10.")] = "4",
    validation: Annotated[int, typer.Option(help="Pairs, from the end, kept for choosing.")] = 256,
    loss: Annotated[str, typer.Option(help="l1, l2 or pseudo_huber.")] = "l1",
    preset: Annotated[str, typer.Option(help="Settings to start from: default (ours) or paper.")] = "default",
    start: Annotated[str, typer.Option(help="best, uniform (the paper's), or SOLVER/GRID.")] = "best",
    theory: Annotated[bool, typer.Option(help="Let coefficients follow the learned times.")] = True,
    iterations: Annotated[int | None, typer.Option(help="Optimiser steps for each NFE.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    seed: Annotated[int, typer.Option(help="Of the batches' order.")] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Learn a Generalized Solver for each NFE and write them all to one file.

    Interrupted, the same command goes on where it stopped. What is written is the best on the validation
    pairs and never worse there than the best classical solver.
    """
    from gas.pairs import read_pairs

    loaded, nfes = load_model(model, device), parse_nfes(nfe)
    config = _config(preset, iterations=iterations, batch=batch, learning_rate=learning_rate, seed=seed)
    kept, held = read_pairs(pairs, model=loaded).split(validation)
    state = out.with_name(out.name + ".state")
    options = {"loss": loss, "start": start, "theory": theory, "state": state}
    try:
        results = [train_one(loaded, kept, held, n, config, **options) for n in nfes]
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"State is in {state}; the same command goes on from there.") from None
    _save(out, results, loaded, kept, held, loss, config)
    shutil.rmtree(state, ignore_errors=True)
    _report(results, loss, len(held), json)
    note(f"wrote {out}")


def _save(
    out: Path,
    results: list[Distilled],
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str,
    config: FitConfig,
) -> None:
    from gas.artefact import save

    save(
        out,
        {r.nfe: r.solver for r in results},
        model=model,
        guidance=pairs.guidance,
        teacher=pairs.teacher,
        loss=loss,
        training={
            "pairs": len(pairs),
            "validation": len(validation),
            "seeds": [int(pairs.seeds[0]), int(validation.seeds[-1]) + 1],
            **asdict(config),
        },
        starts={r.nfe: r.start for r in results},
        measured={
            r.nfe: {"validation_loss": r.loss, "best_classical_loss": r.best_classical_loss} for r in results
        },
    )


def train_one(
    model: Model, pairs: Pairs, validation: Pairs, nfe: int, config: FitConfig, **options: Any
) -> Distilled:
    """Learn one NFE, with a bar for choosing the start and one for training."""
    from gas.catalogue import SOLVERS
    from gas.distill import Distilled, Started, distill
    from gas.fit import FitRecord
    from gas.grids import GRIDS
    from gas.start import Measured

    reports = distill(model, pairs, validation, nfe, config=config, **options)
    started = None
    with bar(f"NFE {nfe}: start", len(SOLVERS) * len(GRIDS)) as running:
        for done, report in enumerate(reports, start=1):
            if isinstance(report, Started):
                started = report
                running.at(len(SOLVERS) * len(GRIDS), started.best.label)
                break
            if isinstance(report, Measured):
                running.at(min(done, len(SOLVERS) * len(GRIDS)), report.classical.label)
    with bar(f"NFE {nfe}: train", config.iterations) as running:
        for report in reports:
            if isinstance(report, FitRecord):
                running.at(report.iteration, f"validation {report.validation_loss:.5f}")
            elif isinstance(report, Distilled):
                return report
    raise RuntimeError("distill ended without a result")


def _config(preset: str, **given: Any) -> FitConfig:
    from dataclasses import replace

    from gas.fit import PAPER, FitConfig

    presets = {"default": FitConfig(), "paper": PAPER}
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {preset!r}")
    return replace(presets[preset], **{name: value for name, value in given.items() if value is not None})


def _report(results: list[Distilled], loss: str, pairs: int, json: bool) -> None:
    if json:
        print_json(
            [
                {
                    "nfe": r.nfe,
                    "validation_loss": r.loss,
                    "best_classical": r.best_classical.label,
                    "best_classical_loss": r.best_classical_loss,
                    "training_evaluations": r.evaluations,
                }
                for r in results
            ]
        )
        return
    rows = [
        [
            str(r.nfe),
            r.best_classical.label,
            f"{r.best_classical_loss:.5f}",
            f"{r.loss:.5f}",
            f"{r.best_classical_loss / max(r.loss, 1e-300):.1f}x",
        ]
        for r in results
    ]
    columns = ["NFE", "best classical", "its loss", "GS", "better by"]
    print_table(f"{loss} to the teacher on {pairs} validation pairs", columns, rows)
