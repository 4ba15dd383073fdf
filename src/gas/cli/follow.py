"""The screen of a training: what is measured, started and learned, as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import gas
from gas.cli.screen import bar, note
from gas.display import significant


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
    with _Stages(f"{unit} {nfe}") as stages:
        for step in gas.training.progress.stages(reports, model, nfe, solver):
            if isinstance(step.report, gas.Distilled):
                _note_adversarial(step.report, nfe, solver)
                return step.report
            stages.at(step.stage, step.done, step.total, step.detail)
    raise RuntimeError("the progress of a training ends with its result")


def _note_adversarial(result: gas.Distilled, nfe: int, solver: str) -> None:
    """Note what training against a discriminator changed."""
    if result.stopped:
        note(f": {result.stopped}", label="training stopped early")
    if result.criterion is not None:
        before, after = (significant(value) for value in result.criterion)
        real = result.provenance.get("loss") == "frechet"
        start, goal = ("the start", "real images") if real else ("GS", "the teacher's samples")
        end = "GAS"
        if solver == "lifted":
            start, end = "the table", "the lifted table"
        nearer = result.criterion[1] < result.criterion[0]
        unchanged = "" if nearer else f": nothing came nearer, {start} is kept"
        note(
            f"NFE {nfe}: Frechet distance to {goal} {before} by {start}, {after} by {end}, on validation "
            f"noise{unchanged}"
        )
