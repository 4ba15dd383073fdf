"""A report as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas.comparison.matrix import Entry, Matrix
from gas.display import markdown, markdown_table, plain

if TYPE_CHECKING:
    from gas.comparison.report import Report

__all__ = ["markdown_text"]


def markdown_text(report: Report) -> str:
    """Return tables and the command of every cell; pictures are left to the HTML."""
    parts = [f"# {markdown(report.title)}", *map(markdown, report.lines), f"    {plain(report.command)}"]
    for table in report.matrices():
        parts += [f"## {markdown(table.title)}", _matrix_as_markdown(table), *map(markdown, table.notes)]
    parts += ["## Every cell", _cells_as_markdown(report)]
    return "\n\n".join(parts) + "\n"


def _matrix_as_markdown(table: Matrix) -> str:
    rows = [[label, *map(_marked, entries)] for label, entries in table.rows]
    return markdown_table(["solver", *table.nfes], rows)


def _cells_as_markdown(report: Report) -> str:
    rows = [
        [c.label, c.nfe, c.what, "" if c.evaluations is None else f"{c.evaluations:,}", c.stopped]
        for c in report.cells
    ]
    return markdown_table(["solver", "NFE", "grid, or start", "calls to learn", "stopped"], rows)


def _marked(entry: Entry) -> tuple[str, str]:
    return entry.text, {"best": "**", "near": "*"}.get(entry.mark, "")
