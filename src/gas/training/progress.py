"""Progress of a training: its stage, how much of that is done, and the best so far, at every report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from gas.classical.registry import candidate_solvers
from gas.display import significant
from gas.models.protocol import Model
from gas.training.distillation import Report
from gas.training.elimination import Removal
from gas.training.initialization import CandidateRound, StartChoice, start_label
from gas.training.loop import FitRecord
from gas.training.ranking import RankedSolver


@dataclass(frozen=True)
class Progress:
    """Where a training is: ``done`` of ``total`` of a stage, a line about the best so far, and the report itself."""

    stage: str
    done: int
    total: int
    detail: str
    report: Report | Removal = field(repr=False)


def stages(
    reports: Iterator[Report | Removal], model: Model, nfe: int, solver: str = "GS"
) -> Iterator[Progress]:
    """Yield the progress of the training of one NFE at each report; the last has the result.

    The stages are ``classical`` (ranking), ``start`` (short runs), one named ``solver``, perhaps ``GAS``, and ``done``.
    """
    count = sum(1 for _ in candidate_solvers(model.schedule, nfe, model.t_end))
    ranked: list[RankedSolver] = []
    losses: dict[str, float] = {}
    learning, spent, runs = solver, 0, 0
    for report in reports:
        if isinstance(report, RankedSolver):
            ranked.append(report)
            # The best of all is chosen among those that were measured on the most pairs.
            best = min(ranked, key=lambda m: (-m.pairs, m.finite_loss))
            detail = f"best {best.classical.label} {significant(best.loss)}"
            yield Progress("classical", min(len(ranked), count), count, detail, report)
        elif isinstance(report, CandidateRound):
            losses[report.classical.label], runs = report.loss, report.runs
            detail = f"tried {report.classical.label} {significant(report.loss)}"
            yield Progress("start", report.run, report.runs, detail, report)
        elif isinstance(report, StartChoice):
            spent, start = report.evaluations, start_label(report.start)
            if losses:
                detail = f"winner {start} {significant(losses.get(start, math.nan))}"
                yield Progress("start", runs, runs, detail, report)
        elif isinstance(report, Removal):
            spent += report.evaluations
            detail = f"tried without row {report.row} {significant(report.loss)}"
            yield Progress(f"{report.forwards} rows", report.run, report.runs, detail, report)
        elif isinstance(report, FitRecord):
            detail = (
                f"validation {significant(report.validation_loss)}, best {significant(report.best_loss)}, "
            )
            detail += f"{spent + report.evaluations:,} evaluations"
            yield Progress(learning, report.iteration, report.iterations, detail, report)
            if report.iteration == report.iterations and learning == solver:
                # A discriminator goes on where the first training ends.
                learning, spent = "GAS", spent + report.evaluations
        else:
            yield Progress("done", 1, 1, f"loss {significant(report.loss)}", report)
            return
    raise RuntimeError("the reports ended without a result")
