"""Reports of an experiment: Markdown, HTML, CSV and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gas.display import html_text as escape, markdown, markdown_table, plain
from gas.experiments.pictures import Pictures
from gas.experiments.store import Cell
from gas.experiments.tables import MEASURES, Entry, Matrix, csv_text, differences, matrix
from gas.io import write_text
from gas.plotting.style import ACCENT, GREY, GRID, INK, RULE, TINT

if TYPE_CHECKING:
    from gas.experiments.store import Cell

__all__ = ["Published", "Report", "html_text", "markdown_text"]


@dataclass(frozen=True)
class Published:
    """What a paper says of the same solvers on the same model.

    Args:
        source: where it says so.
        figures: by label and NFE.
        measure: a name of :data:`MEASURES`: what the figures are of.
    """

    source: str
    figures: Mapping[tuple[str, int], float]
    measure: str = "frechet-data"


@dataclass(frozen=True)
class Report:
    """Everything that is told of a comparison.

    Args:
        title: heading.
        lines: what was done, a paragraph each: pairs, budget, samples.
        command: that made the comparison.
        cells: all of them.
        measures: names of :data:`MEASURES`, in order; those that nothing was measured by are left out.
        published: what a paper says, to stand beside it.
        pictures: as :func:`gas.experiments.pictures.draw` draws them.
        against: the solver that squared errors of others are told against, sample by sample.
    """

    title: str
    lines: Sequence[str]
    command: str
    cells: Sequence[Cell]
    measures: Sequence[str] = tuple(MEASURES)
    published: Published | None = None
    pictures: Pictures = field(default_factory=Pictures)
    against: str = "gs"

    def matrices(self) -> list[Matrix]:
        """Return the tables, first that beside a paper's."""
        tables = []
        for name in self.measures:
            tables.append(matrix(self.cells, MEASURES[name]))
            if name == "mse":
                tables.append(differences(self.cells, self.against, MEASURES[name]))
        beside = None if self.published is None else self._beside(self.published)
        return [table for table in (beside, *tables) if table is not None]

    def headline(self) -> list[Matrix]:
        """Return the first table and, where it is squared errors, what a few bad samples do not decide of them."""
        robust = [name for name in ("mse-median", "psnr") if {"mse", name} <= set(self.measures)]
        tables = [*self.matrices()[:1], *(matrix(self.cells, MEASURES[name]) for name in robust)]
        return [table for table in tables if table is not None]

    def _beside(self, paper: Published) -> Matrix | None:
        """Paper, ours and the difference, of every cell that a paper has too."""
        measure = MEASURES[paper.measure]
        rows: dict[str, dict[int, Entry]] = {}
        for cell in self.cells:
            ours = None if cell.comparison is None else measure.read(cell.comparison)
            told = paper.figures.get((cell.label, cell.nfe))
            if ours is not None and told is not None:
                text = f"{told:g} / {measure.shown(ours)} / {measure.scale * ours - told:+.{measure.digits}f}"
                rows.setdefault(cell.label, {})[cell.nfe] = Entry(text)
        if not rows:
            return None
        nfes = sorted({nfe for row in rows.values() for nfe in row})
        entries = [(label, [row.get(nfe, Entry()) for nfe in nfes]) for label, row in rows.items()]
        return Matrix(f"{measure.title}: {paper.source} / ours / difference", nfes, entries)

    def write(self, folder: Path) -> list[Path]:
        """Write report.csv, report.md and report.html; return their paths."""
        texts = {"csv": csv_text(self.cells), "md": markdown_text(self), "html": html_text(self)}
        return [write_text(folder / f"report.{kind}", text) for kind, text in texts.items()]


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
