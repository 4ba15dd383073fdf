"""A report as one HTML file: styles and pictures are inside it, and nothing is fetched."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from gas.comparison.matrix import Entry, Matrix
from gas.display import html_text as escape
from gas.report.style import ACCENT, GREY, GRID, INK, RULE, TINT

if TYPE_CHECKING:
    from gas.comparison.cell import Cell
    from gas.comparison.report import Report

__all__ = ["html_text"]

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: white; color: {INK}; font: 15px/1.5 "DejaVu Sans", system-ui, sans-serif; }}
body {{ overflow-wrap: anywhere; }}
main {{ max-width: 980px; margin: 0 auto; padding: 32px 22px 64px; }}
h1 {{ font-size: 24px; line-height: 1.25; margin: 0 0 12px; }}
h2 {{ font-size: 18px; margin: 40px 0 10px; }}
p {{ margin: 8px 0; max-width: 76ch; }}
p.small {{ color: {GREY}; font-size: 13px; }}
pre, code {{ font: 12px/1.5 "DejaVu Sans Mono", ui-monospace, monospace; }}
pre {{ background: {GRID}; padding: 10px 12px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; min-width: 60%; }}
th, td {{ padding: 5px 10px; text-align: right; border-bottom: 1px solid {GRID}; white-space: nowrap; }}
th {{ color: {GREY}; font-weight: 600; border-bottom-color: {RULE}; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td.best {{ font-weight: 700; color: {ACCENT}; background: {TINT}; }}
td.near {{ font-style: italic; color: {ACCENT}; }}
td.command {{ text-align: left; white-space: normal; min-width: 14em; }}
@media (max-width: 600px) {{
  main {{ padding: 20px 14px 40px; }}
  h1 {{ font-size: 20px; }}
  th, td {{ padding: 5px 7px; }}
}}
img {{ max-width: 100%; height: auto; display: block; margin: 8px 0 24px; }}
details {{ margin: 10px 0; }}
summary {{ cursor: pointer; color: {GREY}; }}
"""


def html_text(report: Report) -> str:
    """Return the page."""
    tables, pictures = report.matrices(), report.pictures
    body = [f"<h1>{escape(report.title)}</h1>", *(f"<p>{escape(line)}</p>" for line in report.lines)]
    body += [f"<pre>{escape(report.command)}</pre>", *(_section(table) for table in tables[:1])]
    if pictures.errors is not None:
        body += [f"<h2>{_errors_title(report)}</h2>", _image(pictures.errors, "error over NFE")]
    body += [_section(table) for table in tables[1:]]
    for title, drawn in (
        ("The same noise through every solver", pictures.samples),
        ("Where the network is asked", pictures.times),
    ):
        body += [f"<h2>{title}</h2>"] if drawn else []
        body += [_folded(f"NFE {nfe}", _image(path, f"{title}, NFE {nfe}")) for nfe, path in drawn.items()]
    body += ["<h2>Every cell</h2>", _cells_as_html(report)]
    head = f'<meta charset="utf-8"><title>{escape(report.title)}</title><style>{_STYLE}</style>'
    page = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body><main>\n{page}\n</main></body>\n</html>\n'


def _errors_title(report: Report) -> str:
    nfes = sorted({cell.nfe for cell in report.cells if cell.family != "teacher"})
    return "Error over network evaluations" if len(nfes) > 1 else f"Error at {nfes[0]} network evaluations"


def _section(table: Matrix) -> str:
    notes = "".join(f'<p class="small">{escape(text)}</p>' for text in table.notes)
    return f"<h2>{escape(table.title)}</h2>{_matrix_as_html(table)}{notes}"


def _matrix_as_html(table: Matrix) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("solver", *(f"NFE {nfe}" for nfe in table.nfes)))
    rows = "\n".join(
        f"<tr><td>{escape(label)}</td>{''.join(map(_entry, entries))}</tr>" for label, entries in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _entry(entry: Entry) -> str:
    mark = f' class="{entry.mark}"' if entry.mark else ""
    return f"<td{mark}>{escape(entry.text)}</td>"


def _cells_as_html(report: Report) -> str:
    head = "".join(
        f"<th>{text}</th>" for text in ("solver", "NFE", "grid, or start", "calls to learn", "seconds")
    )
    rows = "\n".join(map(_cell, report.cells))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _cell(cell: Cell) -> str:
    spent = "" if cell.evaluations is None else f"{cell.evaluations:,}"
    label = escape(cell.label)
    if cell.command:
        label = f"<details><summary>{label}</summary><code>{escape(cell.command)}</code></details>"
    told = [str(cell.nfe), escape(cell.what), spent, f"{cell.seconds:.0f}"]
    stopped = f"<br>{escape(cell.stopped)}" if cell.stopped else ""
    return f'<tr><td class="command">{label}{stopped}</td>{"".join(f"<td>{text}</td>" for text in told)}</tr>'


def _folded(title: str, inside: str) -> str:
    return f"<details open><summary>{escape(title)}</summary>{inside}</details>"


def _image(path: Path, told: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(told)}" src="data:image/png;base64,{data}">'
