"""Reports of an experiment: Markdown, HTML, CSV and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gas.display import markdown, markdown_table, plain, significant
from gas.experiments.store import MethodResult
from gas.experiments.tables import MEASURES, Entry, PivotTable, csv_text, difference_table, pivot_table
from gas.io import write_text
from gas.plotting import style


@dataclass(frozen=True)
class ReportedResults:
    """A paper's figures by label and NFE for the same model, of one measure of :data:`MEASURES`."""

    source: str
    figures: Mapping[tuple[str, int], float]
    measure: str = "frechet-data"


@dataclass(frozen=True)
class Report:
    """The report of an experiment.

    Args:
        title: heading.
        lines: what was done, a paragraph each: pairs, budget, samples.
        command: the command line of the experiment.
        results: all of them.
        measures: names of :data:`MEASURES`, in order; those that no result has are left out.
        reported: a paper's results to compare with.
        pictures: by title, as :func:`gas.experiments.pictures.draw` returns them.
    """

    title: str
    lines: Sequence[str]
    command: str
    results: Sequence[MethodResult]
    measures: Sequence[str] = tuple(MEASURES)
    reported: ReportedResults | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Forward passes of the network in an evaluation: more than one where guidance mixes predictions."""
        metrics = (r.metrics for r in self.results if r.metrics is not None and r.metrics.forward_passes)
        return max(((each.forward_passes or 0) // each.nfe for each in metrics), default=1)

    def tables(self) -> list[PivotTable]:
        """Return the tables, first that with a paper's results; squared errors are also compared with GS's."""
        tables = [None if self.reported is None else self._reported_table(self.reported)]
        for name in self.measures:
            tables.append(pivot_table(self.results, MEASURES[name]))
            if name == "mse":
                tables.append(difference_table(self.results, "gs", MEASURES[name]))
        return [table for table in tables if table is not None]

    def headline(self) -> list[PivotTable]:
        """Return the first table, and beside squared errors the measures that a few bad samples do not decide."""
        robust = [MEASURES[name].title for name in ("mse-median", "psnr") if "mse" in self.measures]
        tables = self.tables()
        return [table for table in tables if table is tables[0] or table.title in robust]

    def _reported_table(self, reported: ReportedResults) -> PivotTable | None:
        """Paper, ours and the difference, of every result that the paper has too."""
        measure, entries = MEASURES[reported.measure], {}
        for result in self.results:
            key = (result.label, result.nfe)
            ours = None if result.metrics is None else measure.read(result.metrics)
            if ours is not None and key in reported.figures:
                paper = reported.figures[key]
                ours *= measure.scale
                entries[key] = Entry(f"{paper:g} / {significant(ours)} / {ours - paper:+.3f}")
        title = f"{measure.title}: {reported.source} / ours / difference"
        return PivotTable.of(title, entries) if entries else None

    def write(self, folder: Path) -> list[Path]:
        """Write report.csv, report.md and report.html; return their paths."""
        texts = {"csv": csv_text(self.results), "md": markdown_text(self), "html": html_text(self)}
        return [write_text(folder / f"report.{suffix}", text) for suffix, text in texts.items()]


def markdown_text(report: Report) -> str:
    """Return tables and all results; pictures and commands are in the HTML only."""
    parts = [f"# {markdown(report.title)}", *map(markdown, report.lines), f"    {plain(report.command)}"]
    marks = {"best": "**", "near": "*", "": ""}
    for table in report.tables():
        rows = [[label, *((entry.text, marks[entry.mark]) for entry in row)] for label, row in table.rows]
        parts += [f"## {markdown(table.title)}", markdown_table(["solver", *table.nfes], rows)]
        parts += map(markdown, table.notes)
    guided = ["forward passes"] if report.passes > 1 else []
    columns = ["solver", "NFE", *guided, "grid, or start", "calls to learn", "stopped"]
    results = []
    for r in report.results:
        calls = "" if r.evaluations is None else f"{r.evaluations:,}"
        passes = [r.metrics and r.metrics.forward_passes] if guided else []
        results.append([r.label, r.nfe, *passes, r.origin, calls, r.stopped])
    return "\n\n".join([*parts, "## Every cell", markdown_table(columns, results)]) + "\n"


def html_text(report: Report) -> str:
    """Return the page, which needs no other file."""
    environment = Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        keep_trailing_newline=True,
        loader=PackageLoader("gas.experiments"),
        undefined=StrictUndefined,
    )
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    return environment.get_template("report.html.j2").render(report=report, style=style)
