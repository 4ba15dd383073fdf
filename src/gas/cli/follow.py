"""A training on the screen: what it measures, races and learns, as it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gas.cli.screen import bar, note
from gas.display import significant

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.training.distillation import Distilled, Report

__all__ = ["show"]


def show(reports: Iterator[Report], model: Model, nfe: int, iterations: int) -> Distilled:
    """Follow one member: a bar for measuring the classical solvers, one for the race and one for training."""
    from gas.classical.registry import candidates
    from gas.training.distillation import Distilled
    from gas.training.initialization import FINALISTS, Raced, Started, start_label
    from gas.training.loop import FitRecord
    from gas.training.ranking import Measured, finite_loss

    report = next(reports)
    count = sum(1 for _ in candidates(model.schedule, nfe, model.t_end)) + FINALISTS
    with bar(f"NFE {nfe}: classical", count) as running:
        measured: list[Measured] = []
        while isinstance(report, Measured):
            measured.append(report)
            # The best of all is chosen among those that were measured on the most pairs.
            best = min(measured, key=lambda m: (-m.pairs, finite_loss(m)))
            running.at(min(len(measured), count), f"best {best.classical.label} {significant(best.loss)}")
            report = next(reports)
    if isinstance(report, Raced):
        with bar(f"NFE {nfe}: race", report.starts) as running:
            losses = {}
            while isinstance(report, Raced):
                losses[report.classical.label] = report.loss
                running.at(report.place, f"tried {report.classical.label} {significant(report.loss)}")
                report = next(reports)
            if isinstance(report, Started):
                winner = start_label(report.start)
                running.at(running.total, f"winner {winner} {significant(losses.get(winner, math.nan))}")
    if not isinstance(report, Started):
        raise RuntimeError(f"a report of {report} where training should have started")
    with bar(f"NFE {nfe}: train", iterations) as running:
        before = 0
        for report in reports:
            if isinstance(report, FitRecord):
                running.at(before + report.iteration, f"best {significant(report.best_loss)}")
                if report.iteration == report.iterations and not before:
                    before = report.iterations  # critics go on where the first training ends
            elif isinstance(report, Distilled):
                if report.stopped:
                    note(f": {report.stopped}", label="adversarial training stopped early")
                if report.criterion is not None:
                    before_gas, after = report.criterion
                    kept = "" if after < before_gas else ": nothing came nearer, GS is kept"
                    note(
                        f"NFE {nfe}: Frechet distance to the teacher's samples {significant(before_gas)} by GS, "
                        f"{significant(after)} by GAS, on validation noise{kept}"
                    )
                return report
    raise RuntimeError("the reports ended without a result")
