"""A training in a thread of its own: its progress for whoever watches, a stop, and the file of the best so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gas
from gas.errors import UserError
from gas.evaluation.sampler import sample_seeds
from gas.models.protocol import Model, passes_of
from gas.studio.actions import Networks, Row, pictures, row_psnr, sentence, studio_teacher, teacher_batches
from gas.training.plan import QUICK, QUICK_SEARCH

# Pairs to learn from and to choose on: those of gas demo, where more gain little at so few steps.
PAIRS, VALIDATION = 160, 64
# What a person may wait for on a processor; gas pairs and gas train take more.
MAX_PAIRS, MAX_STEPS = 1024, 40
# Seeds of the pictures that are shown as the solver learns; no pair has them.
PREVIEW = range(50_000, 50_008)
# Teacher samples a call, between which a stop is noticed.
_BATCH = 16
# The pause after each report in which another thread may take the network: a lock alone is not handed over.
_YIELD = 0.01


@dataclass(frozen=True, kw_only=True)
class TrainingChoice:
    """What to learn.

    Attributes:
        model: as in :class:`gas.studio.actions.Choice`.
        prompt: of a pipeline that takes prompts.
        guidance: guidance scale.
        nfe: network evaluations of the solver.
        pairs: teacher pairs to learn from; as many as ``VALIDATION`` more are made to choose on.
        iterations: Gauss-Newton steps.
    """

    model: str = "mnist"
    prompt: str = ""
    guidance: float = 1.0
    nfe: int = 4
    pairs: int = PAIRS
    iterations: int = QUICK.iterations


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training at a moment.

    Attributes:
        stage: what it does, with ``detail``, the best so far.
        share: of all stages that is done, from 0 to 1.
        points: Gauss-Newton steps and the validation losses after them.
        classical: name and validation loss of the best classical solver.
        rows: the same noise through the teacher, the best classical solver and the solver that learns.
        seconds: since the start.
        file: the solver file, when it has ended.
        problem: a sentence, if it failed.
        ended: whether it has.
    """

    stage: str = "loading the model"
    detail: str = ""
    share: float = 0.0
    points: tuple[tuple[int, float], ...] = ()
    classical: tuple[str, float] | None = None
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    file: Path | None = None
    problem: str = ""
    ended: bool = False


# Where each stage ends, in shares of the whole: about their times on the shipped models.
_ENDS = {"teacher pairs": (0.0, 0.25), "classical": (0.25, 0.5), "start": (0.5, 0.7), "GS": (0.7, 1.0)}
_TITLES = {"classical": "ranking classical solvers", "start": "choosing a start", "GS": "learning"}


class _Stopped(Exception):
    """The training was stopped by a person."""


class Training:
    """A training that runs in a thread, until it ends or is stopped; the best so far becomes a solver file then.

    Args:
        networks: whose lock it takes for each report.
        choice: what to learn.
        folder: for the solver file, created with it.
    """

    def __init__(self, networks: Networks, choice: TrainingChoice, folder: Path) -> None:
        self.networks, self.choice, self.folder = networks, choice, folder
        self.snapshot = Snapshot()
        self._stop, self._changed = threading.Event(), threading.Event()
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def watch(self, seconds: float = 1.0) -> Generator[Snapshot, None, None]:
        """Start, and yield a snapshot at every change and at least every so many seconds, until the training ends.

        Closing this iterator stops the training, as :meth:`stop`.

        Raises:
            UserError: while another training runs.
        """
        if not self.networks.training.acquire(blocking=False):
            raise UserError("another training runs, perhaps in another tab: stop it, or wait until it ends")
        self._thread.start()
        try:
            while not self.snapshot.ended:
                now: dict[str, Any] = {"seconds": time.perf_counter() - self._began}
                if self._stop.is_set():
                    now["stage"] = "stopping after the step at work"
                yield replace(self.snapshot, **now)
                self._changed.wait(seconds)
                self._changed.clear()
            yield self.snapshot
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop after the report at work, and keep the best so far."""
        self._stop.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end, and return whether it was reached."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _update(self, **changes: Any) -> None:
        self.snapshot = replace(self.snapshot, seconds=time.perf_counter() - self._began, **changes)
        self._changed.set()

    def _run(self) -> None:
        ending: dict[str, Any] = {"stage": "done", "share": 1.0}
        best: gas.training.BestSoFar | None = None
        try:
            try:
                model = self.networks.open(self.choice.model, self.choice.prompt)
                pairs = self._taught(model)
                best = gas.training.BestSoFar(model)
                self._learn(model, pairs, best)
            except _Stopped:
                ending = {"stage": "stopped"}
            ending["file"] = None if best is None else self._save(best, finished=ending["stage"] == "done")
        except Exception as error:
            ending = {"stage": "failed", "problem": sentence(error)}
        finally:
            self.networks.training.release()
            self._update(ended=True, **ending)

    def _go_on(self) -> None:
        """Let other threads take the network; end here when stopped."""
        time.sleep(_YIELD)
        if self._stop.is_set():
            raise _Stopped

    def _at(self, stage: str, done: int, total: int, detail: str, **changes: Any) -> None:
        first, last = _ENDS[stage]
        share = first + (last - first) * done / max(total, 1)
        self._update(stage=_TITLES.get(stage, stage), share=share, detail=detail, **changes)

    def _taught(self, model: Model) -> gas.Pairs:
        """Return the teacher's pairs, made in small batches."""
        teacher, total = studio_teacher(model), self.choice.pairs + VALIDATION
        for parts in teacher_batches(self.networks, model, range(total), self.choice.guidance, _BATCH):
            done = sum(map(len, parts))
            self._at("teacher pairs", done, total, f"{done} of {total}")
            self._go_on()
        self._show(model, Row(name="Teacher", detail=teacher.label), teacher.table(model.schedule))
        return gas.pairs.dataset.join_pairs(parts)

    def _learn(self, model: Model, pairs: gas.Pairs, best: gas.training.BestSoFar) -> None:
        nfe, config = self.choice.nfe, replace(QUICK, iterations=self.choice.iterations)
        reports = gas.distill(model, *pairs.split(VALIDATION), nfe, config=config, search=QUICK_SEARCH)
        steps = gas.training.progress.stages(best.watch(reports), model, nfe)
        while True:
            self._go_on()
            with self.networks.lock:
                step = next(steps)
            if isinstance(step.report, gas.Distilled):
                return
            self._at(step.stage, step.done, step.total, step.detail)
            self._report(model, step.report, best.results[nfe])

    def _report(self, model: Model, report: Any, best: gas.Distilled) -> None:
        """Show the loss after a step, and samples of the best classical solver and of the solver as it learns."""
        classical = (best.best_classical.label, best.best_classical_loss)
        if isinstance(report, gas.training.initialization.StartChoice):
            self._update(classical=classical)
            label = best.best_classical.label
            self._show(
                model, Row(name="Best classical", detail=label), best.best_classical.table(model.schedule)
            )
        elif isinstance(report, gas.FitRecord) and report.best_table is not None:
            points = (*self.snapshot.points, (report.iteration, report.validation_loss))
            self._update(classical=classical, points=points)
            detail = f"after step {report.best_iteration} of {report.iterations}"
            self._show(model, Row(name="GS", detail=detail, learned=True), report.best_table)

    def _show(self, model: Model, row: Row, table: gas.Table) -> None:
        """Sample the preview's noise with a table; its row replaces that of the same name."""
        passes = table.nfe * passes_of(model, self.choice.guidance)
        with self.networks.lock:
            began = time.perf_counter()
            samples = sample_seeds(model, table, PREVIEW, guidance=self.choice.guidance)
            seconds = time.perf_counter() - began
            row = replace(row, images=pictures(model, samples), seconds=seconds, done=True)
        row = replace(row, calls=table.nfe, passes=passes, count=len(PREVIEW))
        rows = [each for each in self.snapshot.rows if each.name != row.name]
        row = replace(row, psnr=row_psnr(row, rows[0]) if rows else None)
        self._update(rows=(*rows, row))

    def _save(self, best: gas.training.BestSoFar, *, finished: bool) -> Path | None:
        """Write the best solver so far to a new file of the folder; ``None`` where none was measured yet."""
        result = best.results.get(self.choice.nfe)
        if result is None:
            return None
        training = {**result.provenance.get("training", {}), **({} if finished else {"unfinished": True})}
        teacher = studio_teacher(best.model).config()
        purpose: dict[str, Any] = {"model": best.model, "guidance": self.choice.guidance}
        artefact = gas.save(None, result, training=training, teacher=teacher, loss="l2", **purpose)
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{best.model.name.rpartition('/')[2]}-{self.choice.nfe}"
        for number in range(1, 1000):
            path = self.folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
            if not path.exists():
                artefact.write(path)
                return path
        raise UserError(f"{self.folder} has a thousand files {stem}-*.json: move some away")
