"""Measured solvers as tables on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas.cli.screen import print_table
from gas.display import significant

if TYPE_CHECKING:
    from gas.evaluation.evaluator import Comparison
    from gas.metrics.distances import Distribution

__all__ = ["print_comparisons", "print_distributions"]


def print_comparisons(title: str, rows: list[Comparison], *, strong: str = "GS") -> None:
    """Print comparisons as a table."""
    columns = ["solver", "NFE", "MSE to teacher", "median", "L1", "PSNR dB", "Frechet to data", "to teacher"]
    cells = [
        [*_cells(row), *(f"{significant(mean)} ± {significant(half, 2)}" for mean, half in row.more.values())]
        for row in rows
    ]
    print_table(title, *_filled([*columns, *rows[0].more], cells), strong=strong)


def _filled(columns: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Leave out columns in which nothing was measured."""
    filled = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in cells)]
    return [columns[i] for i in filled], [[row[i] for i in filled] for row in cells]


def _cells(row: Comparison) -> list[str]:
    data = "" if row.frechet_data is None else significant(row.frechet_data)
    # The teacher against itself says nothing.
    if row.mse == 0:
        return [row.name, str(row.nfe), "", "", "", "", data, ""]
    return [
        row.name,
        str(row.nfe),
        f"{significant(row.mse)} ± {significant(row.mse_half_width, 2)}",
        "" if row.mse_median is None else significant(row.mse_median),
        significant(row.l1),
        "" if row.psnr is None else f"{row.psnr:.1f}",
        data,
        "" if row.to_teacher is None else significant(row.to_teacher.frechet),
    ]


def print_distributions(
    title: str, rows: list[Comparison], *, strong: str = "GS", data: bool = False
) -> None:
    """Print what tells distributions from the teacher's apart, or from the data's; nothing where that is unknown."""
    if all((row.to_data if data else row.to_teacher) is None for row in rows):
        return
    from gas.metrics.distances import BRACKETS

    columns = ["solver", "NFE", *([] if data else ["Frechet to data"])]
    columns += [f"Frechet to {'real images' if data else 'teacher'}", "kernel distance"]
    columns += ["precision", "recall", "density", "coverage"]
    cells = [_data_cells(row) if data else _distribution_cells(row) for row in rows]
    caption = f"{BRACKETS}\n± is one standard error."
    print_table(title, *_filled(columns, cells), strong=strong, caption=caption)


def _distribution_cells(row: Comparison) -> list[str]:
    data = _corrected(row.frechet_data_corrected, row.frechet_data_interval)
    return [row.name, str(row.nfe), data, *_figures(None if row.mse == 0 else row.to_teacher)]


def _data_cells(row: Comparison) -> list[str]:
    return [row.name, str(row.nfe), *_figures(row.to_data)]


def _figures(found: Distribution | None) -> list[str]:
    if found is None:
        return [""] * 6
    kernel = f"{significant(found.kernel)} ± {significant(found.kernel_std, 2)}"
    shares = [""] * 4 if found.prdc is None else [f"{value:.3f}" for value in vars(found.prdc).values()]
    return [_corrected(found.frechet_corrected, found.frechet_interval), kernel, *shares]


def _corrected(value: float | None, interval: tuple[float, float] | None) -> str:
    """An estimate with the interval around it; nothing of too few samples."""
    if value is None or interval is None:
        return ""
    low, high = interval
    return f"{significant(value)} [{significant(low)}, {significant(high)}]"
