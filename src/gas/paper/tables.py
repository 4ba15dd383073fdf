"""Figures of arXiv 2510.17699, as data: solver, network evaluations, figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gas.registry import named

__all__ = ["TABLES", "Cell", "PaperTable", "figures_of", "table_by_name"]


@dataclass(frozen=True)
class Cell:
    """One figure of the paper.

    Attributes:
        preset: setup that is sampled.
        solver: as the paper calls it.
        nfe: of it; for a teacher, of the students beside it, or 0 for its own.
        metric: ``"FID"``, or what else is reported.
        value: the figure.
        sets: settings of the preset that differ, as ``--set`` takes them.
        trained: setup that the solver was learned on, where that is another.
    """

    preset: str
    solver: str
    nfe: int
    metric: str
    value: float
    sets: tuple[str, ...] = ()
    trained: str = ""


@dataclass(frozen=True)
class PaperTable:
    """One table, or one setup's part of one.

    Attributes:
        name: for the command line; letters of Table 2 are the setups' order, which is ours.
        title: for people.
        cells: row by row.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]


_Rows = Mapping[str, tuple[float, ...]]


def _part(
    name: str, preset: str, title: str, nfes: tuple[int, ...], rows: _Rows, teacher: float | None
) -> PaperTable:
    cells = [
        Cell(preset, solver, nfe, "FID", value)
        for solver, values in rows.items()
        for nfe, value in zip(nfes, values, strict=True)
    ]
    if teacher is not None:
        cells.append(Cell(preset, "teacher", 0, "FID", teacher))
    return PaperTable(name, f"Table 2, {title}: FID", tuple(cells))


_PIXELS, _LATENTS = (4, 6, 8, 10), (4, 5, 6, 7)
_CLASSIC = ("objective=classic",)
_ALL = (
    _part(
        "table2a",
        "cifar10",
        "CIFAR-10",
        _PIXELS,
        {
            "DPM++(3M)": (46.59, 12.16, 4.62, 3.08),
            "UniPC": (43.92, 13.12, 4.41, 3.16),
            "iPNDM": (35.04, 11.80, 5.67, 3.69),
            "LD3": (9.31, 3.35, 2.81, 2.38),
            "S4S-Alt": (6.35, 2.67, 2.39, 2.18),
            "GS": (4.41, 2.55, 2.25, 2.18),
            "GAS": (4.05, 2.49, 2.24, 2.17),
        },
        2.03,
    ),
    _part(
        "table2b",
        "ffhq",
        "FFHQ",
        _PIXELS,
        {
            "LD3": (17.96, 5.97, 3.50, 3.25),
            "S4S-Alt": (10.63, 4.62, 3.15, 2.91),
            "GS": (10.70, 4.49, 2.96, 2.67),
            "GAS": (7.86, 3.79, 2.87, 2.66),
        },
        2.60,
    ),
    _part(
        "table2c",
        "afhqv2",
        "AFHQv2",
        _PIXELS,
        {"GS": (5.92, 2.87, 2.33, 2.25), "GAS": (4.48, 2.66, 2.29, 2.31)},
        2.16,
    ),
    _part(
        "table2d",
        "lsun",
        "LSUN-Bedroom",
        _LATENTS,
        {"GS": (9.83, 5.32, 3.77, 3.34), "GAS": (6.68, 4.60, 3.77, 3.36)},
        3.06,
    ),
    _part(
        "table2e",
        "imagenet",
        "ImageNet",
        _LATENTS,
        {"GS": (7.87, 4.93, 4.30, 4.17), "GAS": (5.38, 4.87, 4.32, 4.17)},
        4.10,
    ),
    # Its teacher has one evaluation more than the student, so there is one for each.
    _part(
        "table2f",
        "coco",
        "MS-COCO",
        _LATENTS,
        {
            "GS": (14.94, 11.97, 11.71, 11.32),
            "GAS": (14.71, 11.91, 11.73, 11.36),
            "teacher": (14.10, 12.08, 11.80, 11.48),
        },
        None,
    ),
    PaperTable(
        "theory",
        "FFHQ: GS with and without theoretical coefficients",
        (
            Cell("ffhq", "GS", 4, "FID", 10.70),
            Cell("ffhq", "GS without theory", 4, "FID", 15.23, ("solver=gs-free",)),
        ),
    ),
    PaperTable(
        "table6",
        "Table 6, ImageNet: the critic's loss",
        (
            Cell("imagenet", "GS", 4, "FID", 7.87),
            Cell("imagenet", "GAS", 4, "FID", 5.38),
            Cell("imagenet", "GAS, classic", 4, "FID", 6.49, _CLASSIC),
        ),
    ),
    PaperTable(
        "transfer",
        "AFHQv2 with a solver of FFHQ",
        (
            Cell("afhqv2", "GAS", 4, "FID", 4.48),
            Cell("afhqv2", "GAS of FFHQ", 4, "FID", 5.15, trained="ffhq"),
        ),
    ),
    PaperTable(
        "coverage",
        "ImageNet: diversity",
        (
            Cell("imagenet", "GS", 4, "recall", 0.63),
            Cell("imagenet", "GAS", 4, "recall", 0.76),
            Cell("imagenet", "GS", 4, "coverage", 0.90),
            Cell("imagenet", "GAS", 4, "coverage", 0.97),
        ),
    ),
)

# What rows of a comparison are called, of the paper's solvers that it names otherwise.
_LABELS = {"DPM++(3M)": "DPM-Solver++(3M)"}


def figures_of(preset: str) -> dict[tuple[str, int], float]:
    """Return the FID that the paper reports of a setup's solvers, by label of a comparison's row and NFE.

    >>> figures_of("ffhq")["GS", 4], figures_of("ffhq")["GS without theory", 4]
    (10.7, 15.23)
    """
    return {
        (_LABELS.get(cell.solver, cell.solver), cell.nfe): cell.value
        for table in _ALL
        for cell in table.cells
        if cell.preset == preset and cell.metric == "FID" and cell.solver != "teacher" and not cell.trained
    }


TABLES: dict[str, PaperTable] = {table.name: table for table in _ALL}


def table_by_name(name: str) -> PaperTable:
    """Return a table of :data:`TABLES`.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return named("table", name, TABLES)
