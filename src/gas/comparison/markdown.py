"""A report as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas.comparison.matrix import Entry, Matrix

if TYPE_CHECKING:
    from gas.comparison.report import Report

__all__ = ["markdown_text"]


def markdown_text(report: Report) -> str:
    """Return tables and the command of every cell; pictures are left to the HTML."""
    parts = [f"# {report.title}", *report.lines, f"    {report.command}"]
    for table in report.matrices():
        parts += [f"## {table.title}", _table(table), *table.notes]
    parts += ["## Every cell", _cells(report)]
    return "\n\n".join(parts) + "\n"


def _table(table: Matrix) -> str:
    lines = [_line(["solver", *map(str, table.nfes)]), _line(["---"] * (len(table.nfes) + 1))]
    lines += [_line([label, *map(_marked, entries)]) for label, entries in table.rows]
    return "\n".join(lines)


def _cells(report: Report) -> str:
    lines = [_line(["solver", "NFE", "grid, or start", "calls to learn", "stopped"]), _line(["---"] * 5)]
    for cell in report.cells:
        spent = "" if cell.evaluations is None else f"{cell.evaluations:,}"
        lines.append(_line([cell.label, str(cell.nfe), cell.what, spent, cell.stopped]))
    return "\n".join(lines)


def _marked(entry: Entry) -> str:
    sign = {"best": "**", "near": "*"}.get(entry.mark, "")
    return f"{sign}{entry.text}{sign}" if entry.text else ""


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
