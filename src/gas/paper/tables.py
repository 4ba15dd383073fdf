"""The figures that arXiv 2510.17699 reports, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper, of the setup ``preset``.

    Attributes:
        solver: by the paper's name.
        nfe: of the solver; for a teacher, that of the students beside it, or 0 for its own.
        metric: ``"FID"``, ``"recall"`` or ``"coverage"``.
        settings: of the preset that differ, as ``--set`` takes them.
        trained: setup that the solver was learned on, if it is another.
    """

    preset: str
    solver: str
    nfe: int
    metric: str
    value: float
    settings: tuple[str, ...] = ()
    trained: str = ""

    @property
    def trained_on(self) -> str:
        return self.trained or self.preset


@dataclass(frozen=True)
class PaperTable:
    """One table, or one setup's part of it; the letters of Table 2's parts are ours, in the order of the setups."""

    name: str
    title: str
    figures: tuple[PaperFigure, ...]


_PIXELS, _LATENTS = (4, 6, 8, 10), (4, 5, 6, 7)
# Table 2: FID by solver, at the NFE of its columns; of a teacher once, or for each NFE.
_TABLE2: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10": {
        "DPM++(3M)": (46.59, 12.16, 4.62, 3.08),
        "UniPC": (43.92, 13.12, 4.41, 3.16),
        "iPNDM": (35.04, 11.80, 5.67, 3.69),
        "LD3": (9.31, 3.35, 2.81, 2.38),
        "S4S-Alt": (6.35, 2.67, 2.39, 2.18),
        "GS": (4.41, 2.55, 2.25, 2.18),
        "GAS": (4.05, 2.49, 2.24, 2.17),
        "teacher": (2.03,),
    },
    "ffhq": {
        "LD3": (17.96, 5.97, 3.50, 3.25),
        "S4S-Alt": (10.63, 4.62, 3.15, 2.91),
        "GS": (10.70, 4.49, 2.96, 2.67),
        "GAS": (7.86, 3.79, 2.87, 2.66),
        "teacher": (2.60,),
    },
    "afhqv2": {"GS": (5.92, 2.87, 2.33, 2.25), "GAS": (4.48, 2.66, 2.29, 2.31), "teacher": (2.16,)},
    "lsun": {"GS": (9.83, 5.32, 3.77, 3.34), "GAS": (6.68, 4.60, 3.77, 3.36), "teacher": (3.06,)},
    "imagenet": {"GS": (7.87, 4.93, 4.30, 4.17), "GAS": (5.38, 4.87, 4.32, 4.17), "teacher": (4.10,)},
    # The teacher of MS-COCO has one evaluation more than the student: each NFE has its own.
    "coco": {
        "GS": (14.94, 11.97, 11.71, 11.32),
        "GAS": (14.71, 11.91, 11.73, 11.36),
        "teacher": (14.10, 12.08, 11.80, 11.48),
    },
}


# Settings by which the presets learn other solvers than GS.
_SETTINGS = {"LD3": ("solver=ld3",), "S4S-Alt": ("solver=s4s-alt",)}


def _part_of_table2(letter: str, preset: str, title: str, nfes: tuple[int, ...]) -> PaperTable:
    figures = [
        PaperFigure(preset, solver, nfe, "FID", value, _SETTINGS.get(solver, ()))
        for solver, values in _TABLE2[preset].items()
        for nfe, value in zip(nfes if len(values) > 1 else (0,), values, strict=True)
    ]
    return _table(f"table2{letter}", f"Table 2, {title}: FID", *figures)


def _table(name: str, title: str, *figures: PaperFigure) -> PaperTable:
    return PaperTable(name, title, figures)


_ALL = (
    _part_of_table2("a", "cifar10", "CIFAR-10", _PIXELS),
    _part_of_table2("b", "ffhq", "FFHQ", _PIXELS),
    _part_of_table2("c", "afhqv2", "AFHQv2", _PIXELS),
    _part_of_table2("d", "lsun", "LSUN-Bedroom", _LATENTS),
    _part_of_table2("e", "imagenet", "ImageNet", _LATENTS),
    _part_of_table2("f", "coco", "MS-COCO", _LATENTS),
    _table(
        "theory",
        "FFHQ: GS with and without theoretical coefficients",
        PaperFigure("ffhq", "GS", 4, "FID", 10.70),
        PaperFigure("ffhq", "GS without theory", 4, "FID", 15.23, ("solver=gs-free",)),
    ),
    _table(
        "table6",
        "Table 6, ImageNet: the critic's loss",
        PaperFigure("imagenet", "GS", 4, "FID", 7.87),
        PaperFigure("imagenet", "GAS", 4, "FID", 5.38),
        PaperFigure("imagenet", "GAS, classic", 4, "FID", 6.49, ("objective=classic",)),
    ),
    _table(
        "transfer",
        "AFHQv2 with a solver of FFHQ",
        PaperFigure("afhqv2", "GAS", 4, "FID", 4.48),
        PaperFigure("afhqv2", "GAS of FFHQ", 4, "FID", 5.15, trained="ffhq"),
    ),
    _table(
        "coverage",
        "ImageNet: diversity",
        PaperFigure("imagenet", "GS", 4, "recall", 0.63),
        PaperFigure("imagenet", "GAS", 4, "recall", 0.76),
        PaperFigure("imagenet", "GS", 4, "coverage", 0.90),
        PaperFigure("imagenet", "GAS", 4, "coverage", 0.97),
    ),
)

TABLES: dict[str, PaperTable] = {table.name: table for table in _ALL}


def figures_of(preset: str) -> dict[tuple[str, int], float]:
    """Return the FID that the paper reports for a setup, by the label of a comparison's row and NFE.

    >>> figures_of("ffhq")["GS", 4], figures_of("ffhq")["GS without theory", 4]
    (10.7, 15.23)
    """
    return {
        (figure.solver.replace("DPM++", "DPM-Solver++"), figure.nfe): figure.value
        for figure in (figure for table in _ALL for figure in table.figures if figure.metric == "FID")
        if figure.preset == preset and figure.solver != "teacher" and not figure.trained
    }
