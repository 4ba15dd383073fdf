"""Cells as CSV: a line a cell, a column a number."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from gas.comparison.cell import Cell
from gas.comparison.measures import MEASURES
from gas.display import csv_cell

__all__ = ["csv_text"]


def csv_text(cells: Sequence[Cell]) -> str:
    """Return all cells with every measure, unscaled, and the ends of its interval where it has one."""
    kept = ("spec", "label", "family", "nfe", "what", "evaluations", "stopped", "seconds")
    columns = [*kept, "samples"]
    for name in MEASURES:
        columns += [name, f"{name} low", f"{name} high"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, "command"])
    for cell in cells:
        row: list[object] = [getattr(cell, name) for name in kept]
        row.append("" if cell.comparison is None else cell.comparison.samples)
        for measure in MEASURES.values():
            value = None if cell.comparison is None else measure.read(cell.comparison)
            ends = None if cell.comparison is None else measure.interval(cell.comparison)
            row += [value, *(ends or ("", ""))]
        writer.writerow(map(csv_cell, [*row, cell.command]))
    return file.getvalue()
