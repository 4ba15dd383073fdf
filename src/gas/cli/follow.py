"""A training on the screen: what it measures, races and learns, as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gas.cli.screen import bar, note

if TYPE_CHECKING:
    from gas.distill import Distilled, Report
    from gas.model import Model

__all__ = ["show"]


def show(reports: Iterator[Report], model: Model, nfe: int, iterations: int) -> Distilled:
    """Follow one member: a bar for measuring the classical solvers, one for the race and one for training."""
    from gas.catalogue import candidates
    from gas.distill import Distilled
    from gas.fit import FitRecord
    from gas.race import FINALISTS, Raced, Started
    from gas.start import Measured

    report = next(reports)
    count = sum(1 for _ in candidates(model.schedule, nfe, model.t_end)) + FINALISTS
    with bar(f"NFE {nfe}: classical", count) as running:
        done = 0
        while isinstance(report, Measured):
            done += 1
            running.at(min(done, count), report.classical.label)
            report = next(reports)
    if isinstance(report, Raced):
        with bar(f"NFE {nfe}: race", report.starts) as running:
            while isinstance(report, Raced):
                running.at(report.place, f"{report.classical.label} {report.loss:.5f}")
                report = next(reports)
    if not isinstance(report, Started):
        raise RuntimeError(f"a report of {report} where training should have started")
    with bar(f"NFE {nfe}: train", iterations) as running:
        before = 0
        for report in reports:
            if isinstance(report, FitRecord):
                running.at(before + report.iteration, f"best {report.best_loss:.5f}")
                if report.iteration == report.iterations and not before:
                    before = report.iterations  # critics go on where the first training ends
            elif isinstance(report, Distilled):
                if report.stopped:
                    note(f": {report.stopped}", label="adversarial training stopped early")
                if report.criterion is not None:
                    before_gas, after = report.criterion
                    kept = "" if after < before_gas else ": nothing came nearer, GS is kept"
                    note(
                        f"NFE {nfe}: Frechet distance to the teacher's samples {before_gas:.4f} by GS, "
                        f"{after:.4f} by GAS, on validation noise{kept}"
                    )
                return report
    raise RuntimeError("the reports ended without a result")
