"""The screen of a training: what is measured, started and learned, as it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack

import gas
from gas.cli.screen import bar, note
from gas.display import significant

# Where GAS starts, and whose samples its criterion compares with, unless it learns from real images alone.
_TAUGHT = "GS", "the teacher's samples"


class _Stages(ExitStack):
    """One progress bar at a time, a new one for each stage."""

    def __init__(self, solver: str) -> None:
        super().__init__()
        self.solver, self.title = solver, ""

    def at(self, title: str, done: int, total: int, detail: str) -> None:
        """Show the progress of a stage; another title ends the bar of the stage before."""
        if title != self.title:
            self.close()
            self.title, self.bar = title, self.enter_context(bar(f"{self.solver}: {title}", total))
        self.bar.at(done, detail)


def show(
    reports: Iterator[gas.training.distillation.Report | gas.training.elimination.Removal],
    model: gas.models.Model,
    nfe: int,
    solver: str = "GS",
    unit: str = "NFE",
) -> gas.Distilled:
    """Follow the training of one NFE: ranking, choice of the start, training, and return its result."""
    count = sum(1 for _ in gas.classical.candidates(model.schedule, nfe, model.t_end))
    ranked: list[gas.training.ranking.RankedSolver] = []
    losses: dict[str, float] = {}
    learning, spent = solver, 0
    with _Stages(f"{unit} {nfe}") as stages:
        for report in reports:
            if isinstance(report, gas.training.ranking.RankedSolver):
                ranked.append(report)
                # The best of all is chosen among those that were measured on the most pairs.
                best = min(ranked, key=lambda m: (-m.pairs, m.finite_loss))
                detail = f"best {best.classical.label} {significant(best.loss)}"
                stages.at("classical", min(len(ranked), count), count, detail)
            elif isinstance(report, gas.training.initialization.CandidateRound):
                losses[report.classical.label] = report.loss
                detail = f"tried {report.classical.label} {significant(report.loss)}"
                stages.at("start", report.run, report.runs, detail)
            elif isinstance(report, gas.training.initialization.StartChoice):
                spent, start = report.evaluations, gas.training.initialization.start_label(report.start)
                if losses:
                    total = stages.bar.total
                    detail = f"winner {start} {significant(losses.get(start, math.nan))}"
                    stages.at("start", total, total, detail)
            elif isinstance(report, gas.training.elimination.Removal):
                spent += report.evaluations
                detail = f"tried without row {report.row} {significant(report.loss)}"
                stages.at(f"{report.forwards} rows", report.run, report.runs, detail)
            elif isinstance(report, gas.FitRecord):
                detail = f"validation {significant(report.validation_loss)}, best {significant(report.best_loss)}, "
                detail += f"{spent + report.evaluations:,} evaluations"
                stages.at(learning, report.iteration, report.iterations, detail)
                if report.iteration == report.iterations and learning == solver:
                    # A discriminator goes on where the first training ends.
                    learning, spent = "GAS", spent + report.evaluations
            else:
                _note_adversarial(report, nfe)
                return report
    raise RuntimeError("the reports ended without a result")


def _note_adversarial(result: gas.Distilled, nfe: int) -> None:
    """Note what training against a discriminator changed."""
    if result.stopped:
        note(f": {result.stopped}", label="training stopped early")
    if result.criterion is not None:
        before, after = (significant(value) for value in result.criterion)
        start, goal = ("the start", "real images") if result.provenance.get("loss") == "frechet" else _TAUGHT
        unchanged = (
            "" if result.criterion[1] < result.criterion[0] else f": nothing came nearer, {start} is kept"
        )
        note(
            f"NFE {nfe}: Frechet distance to {goal} {before} by {start}, {after} by GAS, on validation "
            f"noise{unchanged}"
        )
