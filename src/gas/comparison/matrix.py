"""A measure of all cells as a table of people's numbers: a row a solver, a column an NFE, the best marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gas.comparison.cell import Cell
from gas.comparison.measures import Measure
from gas.metrics import mean_interval
from gas.metrics.distribution import BRACKETS
from gas.start import surely_positive

__all__ = ["Entry", "Matrix", "differences", "matrix"]

_LEGEND = {
    "pairs": "Bold: surely better than every other of its column, seed by seed (97.5%). Italic: the best of its column "
    "and what cannot be told from it.",
    "chance": "Bold: better than every other of its column, their 95% intervals apart. Italic: the best of its column "
    "and what cannot be told from it.",
    "": "",
}


@dataclass(frozen=True)
class Entry:
    """One number: its text, and ``"best"`` (surely, of its column), ``"near"`` (may be the best), or neither."""

    text: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Matrix:
    """A measure of all solvers at all NFE.

    Attributes:
        title: of the measure.
        nfes: columns.
        rows: label and an entry a column.
        teacher: the teacher's own number, with its NFE, where it says something.
        told_by: what solvers are told apart by: ``"pairs"`` of the same seeds, ``"chance"`` where there is only an
            interval of each, or nothing: then none is marked.
    """

    title: str
    nfes: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    teacher: str = ""
    told_by: Literal["pairs", "chance", ""] = ""

    @property
    def notes(self) -> list[str]:
        """What people have to know to read the table, a line each."""
        bracketed = any("[" in entry.text for _, entries in self.rows for entry in entries)
        shown = {
            _LEGEND[self.told_by]: bool(self.told_by),
            BRACKETS: bracketed,
            f"The teacher: {self.teacher}.": bool(self.teacher),
        }
        return [note for note, applies in shown.items() if applies]


def matrix(cells: Sequence[Cell], measure: Measure) -> Matrix | None:
    """Return a measure of cells, or nothing where none was measured by it.

    The best of a column is marked as that only where it is surely better than every other; else it and all that cannot
    be told from it are marked alike. Without a way to tell, nothing is marked.

    Args:
        cells: of a comparison, the teacher's among them.
        measure: what to tell.
    """
    shown = [cell for cell in cells if cell.family != "teacher"]
    if all(cell.comparison is None or measure.read(cell.comparison) is None for cell in shown):
        return None
    nfes = sorted({cell.nfe for cell in shown})
    marks: dict[int, str] = {}
    for nfe in nfes:
        marks |= _marks([cell for cell in shown if cell.nfe == nfe], measure)
    entries = {(cell.label, cell.nfe): Entry(_text(cell, measure), marks.get(id(cell), "")) for cell in shown}
    labels = list(dict.fromkeys(cell.label for cell in shown))
    rows = [(label, [entries.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
    told_by = _told_by(measure) if marks else ""
    return Matrix(measure.title, nfes, rows, _teacher(cells, measure), told_by)


def differences(cells: Sequence[Cell], spec: str, measure: Measure) -> Matrix | None:
    """Return how much larger each squared error is than one solver's, sample by sample; nothing without that solver.

    Args:
        cells: of a comparison.
        spec: of the solver that others are held against.
        measure: of squared errors, for its scale.
    """
    base = {cell.nfe: cell for cell in cells if cell.spec == spec and cell.comparison is not None}
    shown = [
        cell
        for cell in cells
        if cell.family != "teacher" and cell.spec != spec and cell.nfe in base and cell.comparison is not None
    ]
    if not shown:
        return None
    nfes, entries = sorted({cell.nfe for cell in shown}), {}
    for cell in shown:
        mean, half = mean_interval(cell.errors.double() - base[cell.nfe].errors.double())
        entries[cell.label, cell.nfe] = Entry(
            f"{'+' if mean >= 0 else ''}{measure.shown(mean)} ± {measure.shown(half, mean)}"
        )
    labels = list(dict.fromkeys(cell.label for cell in shown))
    rows = [(label, [entries.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
    (label, *_) = (cell.label for cell in base.values())
    return Matrix(f"Squared error less that of {label}, sample by sample, x 1000", nfes, rows)


def _text(cell: Cell, measure: Measure) -> str:
    return "diverged" if cell.comparison is None else measure.text(cell.comparison)


def _told_by(measure: Measure) -> Literal["pairs", "chance"]:
    return "pairs" if measure.losses is not None else "chance"


def _marks(column: Sequence[Cell], measure: Measure) -> dict[int, str]:
    """The mark of each cell of a column that may be its best, by ``id``."""
    known = {id(cell): _value(cell, measure) for cell in column}
    ranked = sorted(
        (cell for cell in column if math.isfinite(known[id(cell)])), key=lambda cell: known[id(cell)]
    )
    if not measure.better or len(ranked) < 2 or not _can_tell(ranked[0], measure):
        return {}
    best, *others = ranked
    near = [cell for cell in others if not _surely_better(best, cell, measure)]
    return {id(best): "near" if near else "best", **{id(cell): "near" for cell in near}}


def _value(cell: Cell, measure: Measure) -> float:
    """The number to rank by, smaller is better; infinite where there is none."""
    value = None if cell.comparison is None else measure.read(cell.comparison)
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if measure.better == "larger" else value


def _can_tell(cell: Cell, measure: Measure) -> bool:
    return measure.losses is not None or (
        cell.comparison is not None and measure.chance(cell.comparison) is not None
    )


def _surely_better(best: Cell, other: Cell, measure: Measure) -> bool:
    """Whether one solver is better than another by more than chance: pair by pair, or by intervals that are apart."""
    if measure.losses is not None:
        return surely_positive(measure.losses(other.errors.double()) - measure.losses(best.errors.double()))
    interval, other_interval = (
        None if c.comparison is None else measure.chance(c.comparison) for c in (best, other)
    )
    if interval is None or other_interval is None:
        return False
    return interval[0] > other_interval[1] if measure.better == "larger" else interval[1] < other_interval[0]


def _teacher(cells: Sequence[Cell], measure: Measure) -> str:
    """The teacher is at no distance from itself, which tells nothing; its distance to data does."""
    for cell in cells:
        if cell.family == "teacher" and cell.comparison is not None:
            whole = measure.text(cell.comparison)
            to_data = "data" in measure.title or "real" in measure.title
            return f"{whole} ({cell.what}, {cell.nfe} calls)" if whole and to_data else ""
    return ""
