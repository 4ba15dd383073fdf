"""The grid of a comparison: every cell that is known is kept, every other one is made, measured and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gas.errors import UserError
from gas.evaluation.sampler import run
from gas.experiments.evaluator import Ruler
from gas.experiments.experiment import Setting
from gas.experiments.methods import Contestant, Made
from gas.experiments.store import Cell, Kept, Store
from gas.training.loop import FitRecord

__all__ = ["Training", "fill"]

# The teacher's own row.
TEACHER = "teacher"


@dataclass(frozen=True)
class Training:
    """A report on the way to a cell: who learns, and how it goes."""

    label: str
    nfe: int
    record: FitRecord


def fill(
    setting: Setting,
    ruler: Ruler,
    contestants: Sequence[Contestant],
    nfes: Sequence[int],
    store: Store,
    command: Callable[[str, int], str] = lambda spec, nfe: "",
) -> Iterator[Training | Cell]:
    """Yield every cell in order of NFE, and the teacher's; what the folder has of these settings is not made again.

    A solver is learned anew when what it needs has changed, and only measured anew when what it is measured on has.
    A killed run goes on: half-done trainings from their last report.

    Args:
        setting: model, pairs and budget.
        ruler: unseen noise and measures.
        contestants: rows.
        nfes: columns.
        store: where cells are kept.
        command: says how a cell is made alone, of its spec and NFE.

    Yields:
        Training: reports of learning. Cell: each once.

    Raises:
        ValueError: when unseen pairs were trained or chosen on, no contestant, or one that exists at no NFE.
    """
    if not contestants or not nfes:
        raise UserError(f"a comparison needs solvers and NFE, got {len(contestants)} and {len(nfes)}")
    _check_unseen(setting, ruler)
    for contestant in contestants:
        reasons = [contestant.lacks(setting, nfe) for nfe in nfes]
        if all(reasons):
            raise UserError(f"{contestant.spec}: {reasons[0]}")
    running = _Filling(setting, ruler, store, command)
    yield running.teacher()
    for nfe in nfes:
        for contestant in contestants:
            if not contestant.lacks(setting, nfe):
                yield from running.cell(contestant, nfe)


@dataclass(frozen=True, eq=False)
class _Filling:
    """One run through a grid: what :func:`fill` was given."""

    setting: Setting
    ruler: Ruler
    store: Store
    command: Callable[[str, int], str]

    def cell(self, contestant: Contestant, nfe: int) -> Generator[Training | Cell, None, Cell]:
        """Yield the cell, last, and return it."""
        needs, measured = _plain(contestant.needs(self.setting, nfe)), _plain(self.ruler.needs())
        kept = self.store.read(contestant.spec, nfe)
        if kept is not None and kept.made == needs and kept.measured == measured:
            yield kept.cell
            return kept.cell
        known = None if kept is None or kept.made != needs else _made(kept.cell)
        before = None
        if known is None and contestant.after is not None:
            before = yield from self._before(contestant.after, nfe)
        began = time.perf_counter()
        made = (yield from self._make(contestant, nfe, before)) if known is None else known
        cell = self._measured(contestant, nfe, made)
        seconds = (
            round(time.perf_counter() - began, 2) if known is None or kept is None else kept.cell.seconds
        )
        cell = replace(cell, seconds=seconds)
        self.store.write(Kept(cell, needs, measured), self.setting.model, **_told(self.setting, cell))
        self.setting.forget(contestant.spec, nfe)
        yield cell
        return cell

    def _measured(self, contestant: Contestant, nfe: int, made: Made) -> Cell:
        """The cell, without the seconds that it took."""
        table = made.table()
        samples = run(self.setting.model, self.ruler.yardstick.pairs, table)
        comparison, errors, pictures = self.ruler.measure(contestant.label, samples, nfe)
        return Cell(
            contestant.spec,
            contestant.label,
            contestant.family,
            nfe,
            made.what,
            comparison,
            made.evaluations,
            made.stopped,
            0.0,
            self.command(contestant.spec, nfe),
            errors,
            table,
            pictures,
        )

    def _before(self, contestant: Contestant, nfe: int) -> Generator[Training, None, Made]:
        """Make what another goes on from, as a cell of its own that is not told."""
        making = self.cell(contestant, nfe)
        while True:
            try:
                report = next(making)
            except StopIteration as end:
                return _made(end.value)
            if isinstance(report, Training):
                yield report

    def _make(self, contestant: Contestant, nfe: int, before: Made | None) -> Generator[Training, None, Made]:
        making = contestant.make(self.setting, nfe, before)
        while True:
            try:
                record = next(making)
            except StopIteration as end:
                made: Made = end.value
                return made
            yield Training(contestant.label, nfe, record)

    def teacher(self) -> Cell:
        """Measure the teacher's own samples: how near the data they are is what there is to reach."""
        pairs, measured = self.ruler.yardstick.pairs, _plain(self.ruler.needs())
        nfe = int(pairs.teacher.get("nfe", 0))
        kept = self.store.read(TEACHER, nfe)
        if kept is not None and kept.measured == measured:
            return kept.cell
        began = time.perf_counter()
        comparison, errors, pictures = self.ruler.measure(TEACHER, pairs.target, nfe)
        what = " / ".join(str(pairs.teacher[name]) for name in ("solver", "grid") if name in pairs.teacher)
        seconds = round(time.perf_counter() - began, 2)
        row = (TEACHER, TEACHER, TEACHER, nfe, what, comparison, None, "", seconds, "")
        cell = Cell(*row, errors, None, pictures)
        self.store.write(Kept(cell, {}, measured), self.setting.model)
        return cell


def _made(cell: Cell) -> Made:
    if cell.table is None:
        raise RuntimeError(f"cell {cell.spec} at NFE {cell.nfe} has no table")
    return Made(cell.table, cell.what, cell.evaluations, cell.stopped)


def _told(setting: Setting, cell: Cell) -> dict[str, Any]:
    """What the solver file says of its making."""
    if cell.family != "learned":
        return {"guidance": setting.train.guidance}
    seeds = [int(setting.train.seeds[0]), int(setting.validation.seeds[-1]) + 1]
    settings = {"pairs": len(setting.train), "validation": len(setting.validation), "seeds": seeds}
    return {
        "guidance": setting.train.guidance,
        "teacher": setting.train.teacher,
        "loss": setting.budget.loss,
        "training": {**settings, **setting.budget.config.config()},
    }


def _check_unseen(setting: Setting, ruler: Ruler) -> None:
    unseen = ruler.yardstick.pairs
    known = {*setting.train.seeds.tolist(), *setting.validation.seeds.tolist()}
    shared = sorted(known.intersection(unseen.seeds.tolist()))
    if shared:
        raise UserError(
            f"unseen pairs share {len(shared)} seeds with those learned or chosen from, the first {shared[0]}: "
            "measure on other seeds"
        )
    if unseen.guidance != setting.train.guidance:
        raise UserError(
            f"unseen pairs have guidance {unseen.guidance:g}, those learned from {setting.train.guidance:g}"
        )


def _plain(told: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(told, allow_nan=False)))
