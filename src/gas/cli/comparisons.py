"""Measured solvers as tables on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gas.cli.screen import print_table

if TYPE_CHECKING:
    from gas.compare import Comparison
    from gas.metrics import Distribution

__all__ = ["print_comparisons", "print_distributions"]


def print_comparisons(title: str, rows: list[Comparison], *, strong: str = "GS") -> None:
    """Print comparisons as a table."""
    columns = ["solver", "NFE", "MSE to teacher", "L1", "PSNR dB", "Frechet to data", "to teacher"]
    cells = [
        [*_cells(row), *(f"{mean:.4f} ± {half:.4f}" for mean, half in row.more.values())] for row in rows
    ]
    print_table(title, [*columns, *rows[0].more], cells, strong=strong)


def _cells(row: Comparison) -> list[str]:
    data = "" if row.frechet_data is None else f"{row.frechet_data:.2f}"
    teacher = "" if row.to_teacher is None or row.psnr is None else f"{row.to_teacher.frechet:.2f}"
    error = "" if row.psnr is None else f"{row.mse:.5f} ± {row.mse_half_width:.5f}"
    error_l1 = "" if row.psnr is None else f"{row.l1:.4f}"
    return [
        row.name,
        str(row.nfe),
        error,
        error_l1,
        "" if row.psnr is None else f"{row.psnr:.1f}",
        data,
        teacher,
    ]


def print_distributions(
    title: str, rows: list[Comparison], *, strong: str = "GS", data: bool = False
) -> None:
    """Print what tells distributions from the teacher's apart, or from the data's; nothing where that is unknown."""
    if all((row.to_data if data else row.to_teacher) is None for row in rows):
        return
    from gas.metrics.distribution import BRACKETS

    columns = ["solver", "NFE", *([] if data else ["Frechet to data"])]
    columns += [f"Frechet to {'real images' if data else 'teacher'}", "kernel distance"]
    columns += ["precision", "recall", "density", "coverage"]
    cells = [_data_cells(row) if data else _distribution_cells(row) for row in rows]
    print_table(title, columns, cells, strong=strong, caption=f"{BRACKETS}\n± is one standard error.")


def _distribution_cells(row: Comparison) -> list[str]:
    data = ""
    if row.frechet_data is not None and row.frechet_data_interval is not None:
        low, high = row.frechet_data_interval
        data = f"{row.frechet_data:.2f} [{low:.2f}, {high:.2f}]"
    # The teacher against itself says nothing.
    return [row.name, str(row.nfe), data, *_figures(None if row.psnr is None else row.to_teacher)]


def _data_cells(row: Comparison) -> list[str]:
    return [row.name, str(row.nfe), *_figures(row.to_data)]


def _figures(found: Distribution | None) -> list[str]:
    if found is None:
        return [""] * 6
    low, high = found.frechet_interval
    kernel = f"{found.kernel:.3f} ± {found.kernel_std:.3f}"
    shares = [""] * 4 if found.prdc is None else [f"{value:.3f}" for value in vars(found.prdc).values()]
    return [f"{found.frechet:.3f} [{low:.3f}, {high:.3f}]", kernel, *shares]
