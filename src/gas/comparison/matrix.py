"""A measure of all cells as a table of people's numbers: a row a solver, a column an NFE, the best marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gas.comparison.cell import Cell
from gas.comparison.measures import Measure
from gas.metrics import mean_interval
from gas.metrics.distribution import BRACKETS

__all__ = ["Entry", "Matrix", "differences", "matrix"]

_LEGEND = "Bold: the best of its column. Italic: cannot be told from it, sample by sample (95%)."


@dataclass(frozen=True)
class Entry:
    """One number: its text, and ``"best"`` of its column, ``"near"`` (not surely worse than the best), or neither."""

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
        paired: whether solvers that are not surely worse than the best are marked.
    """

    title: str
    nfes: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    teacher: str = ""
    paired: bool = False

    @property
    def notes(self) -> list[str]:
        """What people have to know to read the table, a line each."""
        bracketed = any("[" in entry.text for _, entries in self.rows for entry in entries)
        told = {
            _LEGEND: self.paired,
            BRACKETS: bracketed,
            f"The teacher: {self.teacher}.": bool(self.teacher),
        }
        return [note for note, said in told.items() if said]


def matrix(cells: Sequence[Cell], measure: Measure, *, paired: bool = False) -> Matrix | None:
    """Return a measure of cells, or nothing where none was measured by it.

    Args:
        cells: of a comparison, the teacher's among them.
        measure: what to tell.
        paired: mark what is not surely worse than the best by the squared errors, sample by sample.
    """
    shown = [cell for cell in cells if cell.family != "teacher"]
    if all(cell.comparison is None or measure.read(cell.comparison) is None for cell in shown):
        return None
    nfes = sorted({cell.nfe for cell in shown})
    best = {nfe: _best([cell for cell in shown if cell.nfe == nfe], measure) for nfe in nfes}
    found = {(cell.label, cell.nfe): _entry(cell, best[cell.nfe], measure, paired) for cell in shown}
    labels = list(dict.fromkeys(cell.label for cell in shown))
    rows = [(label, [found.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
    return Matrix(measure.title, nfes, rows, _teacher(cells, measure), paired)


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
    nfes, found = sorted({cell.nfe for cell in shown}), {}
    for cell in shown:
        mean, half = mean_interval(cell.errors.double() - base[cell.nfe].errors.double())
        found[cell.label, cell.nfe] = Entry(
            f"{measure.scale * mean:+.{measure.digits}f} ± {measure.shown(half)}"
        )
    labels = list(dict.fromkeys(cell.label for cell in shown))
    rows = [(label, [found.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
    (label, *_) = (cell.label for cell in base.values())
    return Matrix(f"Squared error less that of {label}, sample by sample, x 1000", nfes, rows)


def _best(cells: Sequence[Cell], measure: Measure) -> Cell | None:
    def key(cell: Cell) -> float:
        value = None if cell.comparison is None else measure.read(cell.comparison)
        if value is None or not math.isfinite(value):
            return math.inf
        return -value if measure.better == "larger" else value

    if not measure.better:
        return None
    best = min(cells, key=key)
    return best if math.isfinite(key(best)) else None


def _entry(cell: Cell, best: Cell | None, measure: Measure, paired: bool) -> Entry:
    if cell.comparison is None:
        return Entry("diverged")
    text = measure.text(cell.comparison)
    if best is None or best.comparison is None or not text:
        return Entry(text)
    if cell is best or measure.read(cell.comparison) == measure.read(best.comparison):
        return Entry(text, "best")
    if paired:
        mean, half = mean_interval(cell.errors.double() - best.errors.double())
        if mean - half <= 0:
            return Entry(text, "near")
    return Entry(text)


def _teacher(cells: Sequence[Cell], measure: Measure) -> str:
    """The teacher is at no distance from itself, which tells nothing; its distance to data does."""
    for cell in cells:
        if cell.family == "teacher" and cell.comparison is not None:
            whole = measure.text(cell.comparison)
            to_data = "data" in measure.title or "real" in measure.title
            return f"{whole} ({cell.what}, {cell.nfe} calls)" if whole and to_data else ""
    return ""
