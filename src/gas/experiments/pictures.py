"""The pictures of a comparison: errors over NFE, the same noise through every solver, and where each asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gas.experiments.store import Cell
from gas.experiments.tables import MEASURES
from gas.plotting.errors import error_plot
from gas.plotting.samples import sample_grid
from gas.plotting.times import times_plot
from gas.schedule import Schedule

__all__ = ["Pictures", "draw"]

# Lines that can be told apart beside the highlighted one.
_LINES = 10


@dataclass(frozen=True)
class Pictures:
    """PNG files, by what they show; sample grids and times by NFE."""

    errors: Path | None = None
    samples: dict[int, Path] = field(default_factory=dict)
    times: dict[int, Path] = field(default_factory=dict)


def draw(cells: Sequence[Cell], schedule: Schedule, name: str, folder: Path) -> Pictures:
    """Draw everything that cells allow into a folder.

    Args:
        cells: of a comparison, the teacher's among them.
        schedule: gives the axis of times.
        name: of the model.
        folder: of the PNG files.

    Raises:
        ModuleNotFoundError: when matplotlib is not installed.
    """
    shown = [cell for cell in cells if cell.family != "teacher" and cell.comparison is not None]
    teacher = next((cell for cell in cells if cell.family == "teacher"), None)
    samples, times = {}, {}
    for nfe in sorted({cell.nfe for cell in shown}):
        column = [cell for cell in shown if cell.nfe == nfe]
        if all(cell.pictures is not None for cell in column):
            path = folder / f"samples-{nfe}.png"
            samples[nfe] = _samples(path, column, teacher, name)
        times[nfe] = _times(folder / f"times-{nfe}.png", column, schedule)
    return Pictures(_errors(folder / "errors.png", shown, name), samples, times)


def _errors(path: Path, cells: Sequence[Cell], name: str) -> Path | None:
    curves: dict[str, dict[int, float]] = {}
    for cell in cells:
        error = math.nan if cell.comparison is None else cell.comparison.mse
        if 0 < error < math.inf:
            label = "best classical" if cell.family == "classical" else cell.label
            curve = curves.setdefault(label, {})
            curve[cell.nfe] = min(error, curve.get(cell.nfe, math.inf))
    if not curves:
        return None
    strongest = _strongest(list(curves))
    kept = [label for label in curves if label != strongest][:_LINES]
    note = f"{name}; the classical line is the best of the classical rows at each NFE."
    curves = {label: curves[label] for label in (*kept, *([strongest] if strongest else []))}
    return error_plot(path, curves, note=note, highlight=strongest)


def _samples(path: Path, cells: Sequence[Cell], teacher: Cell | None, name: str) -> Path:
    rows: list[tuple[str, Tensor]] = []
    for cell in (*cells, *([teacher] if teacher is not None else [])):
        if cell.pictures is None or cell.comparison is None:
            continue
        error = f"MSE x 1000: {MEASURES['mse'].shown(cell.comparison.mse)}"
        told = f"{cell.what}, {cell.nfe} calls" if cell.family == "teacher" else error
        rows.append((f"{cell.label}\n{told}", cell.pictures.float()))
    strongest = _strongest([cell.label for cell in cells])
    labels = [cell.label for cell in cells]
    return sample_grid(
        path,
        rows,
        title=f"The same noise, {cells[0].nfe} network calls",
        note=f"{name}: the first {len(rows[0][1])} unseen seeds.",
        highlight=None if strongest is None else labels.index(strongest),
        scale=2 if rows[0][1].shape[1] == 1 else 1,
    )


def _times(path: Path, cells: Sequence[Cell], schedule: Schedule) -> Path:
    classical = [cell for cell in cells if cell.family == "classical" and cell.comparison is not None]
    best = min(classical, key=_error, default=None)
    shown = [cell for cell in cells if cell.family != "classical" or cell is best]
    series = [
        (cell.label, cell.table.times.tolist(), list[float]()) for cell in shown if cell.table is not None
    ]
    strongest = _strongest([label for label, _, _ in series])
    labels = [label for label, _, _ in series]
    return times_plot(
        path, series, schedule, highlight=None if strongest is None else labels.index(strongest)
    )


def _error(cell: Cell) -> float:
    return math.inf if cell.comparison is None else cell.comparison.mse


def _strongest(labels: Sequence[str]) -> str | None:
    """The row that is drawn in the accent colour."""
    return next((label for label in ("GAS", "GS") if label in labels), None)
