"""A comparison told to people: CSV, Markdown and one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gas.comparison.cell import Cell
from gas.comparison.flat import csv_text
from gas.comparison.html import html_text
from gas.comparison.markdown import markdown_text
from gas.comparison.matrix import Entry, Matrix, differences, matrix
from gas.comparison.measures import MEASURES
from gas.comparison.pictures import Pictures
from gas.files import write_text

__all__ = ["Published", "Report"]


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
        pictures: as :func:`gas.comparison.pictures.draw` draws them.
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
