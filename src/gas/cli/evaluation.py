"""Helpers of the commands that evaluate solvers: progress, per-sample metrics, warnings and tables on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gas.cli.options import FeatureOptions, check_space
from gas.cli.screen import note, print_table, tracked
from gas.display import significant

if TYPE_CHECKING:
    from gas.evaluation.evaluator import SolverMetrics
    from gas.evaluation.spaces import FeatureSpace
    from gas.metrics.distances import Distribution
    from gas.models.protocol import Model
    from gas.solver_file import Artefact

__all__ = [
    "load_space",
    "print_distributions",
    "print_metrics",
    "teacher_progress",
    "warn_of_provenance",
]


def teacher_progress(batches: Sequence[int]) -> Iterable[int]:
    """Show a progress bar of the teacher's batches."""
    return tracked("teacher", batches, len(batches))


def load_space(model: Model, options: FeatureOptions) -> FeatureSpace:
    """Load the feature space of the options, with a progress bar of real images."""
    from gas.evaluation.spaces import feature_space

    check_space(options.features, options.weights)
    return feature_space(
        model,
        options.features,
        options.weights,
        reference=options.reference,
        real=options.real,
        progress=lambda batches, count: tracked("real images", batches, count),
    )


def warn_of_provenance(artefact: Artefact, model: Model, seeds: range | None = None) -> None:
    """Print the warnings of :func:`gas.evaluation.solver_files.provenance_warnings`."""
    from gas.evaluation.solver_files import provenance_warnings

    for warning in provenance_warnings(artefact, model, seeds):
        note(f": {warning}", label="warning")


def print_metrics(title: str, rows: Sequence[SolverMetrics], *, strong: str = "GS") -> None:
    """Print solvers' errors to the teacher, Frechet distances and per-sample metrics as a table."""
    columns = ["solver", "NFE", "forward passes", "MSE to teacher", "median", "L1", "PSNR dB"]
    columns += ["Frechet to data", "to teacher"]
    cells = [
        [*_cells(row), *(f"{significant(mean)} ± {significant(half, 2)}" for mean, half in row.more.values())]
        for row in rows
    ]
    _print_filled(title, [*columns, *rows[0].more], cells, strong)


def print_distributions(
    title: str, rows: Sequence[SolverMetrics], *, strong: str = "GS", data: bool = False
) -> None:
    """Print distances to the teacher's distribution, or to real images; nothing where they were not measured."""
    if all((row.to_data if data else row.to_teacher) is None for row in rows):
        return
    from gas.metrics.distances import BRACKETS

    columns = ["solver", "NFE", *([] if data else ["Frechet to data"])]
    columns += [f"Frechet to {'real images' if data else 'teacher'}", "kernel distance"]
    columns += ["precision", "recall", "density", "coverage"]
    cells = [_data_cells(row) if data else _teacher_cells(row) for row in rows]
    _print_filled(title, columns, cells, strong, caption=f"{BRACKETS}\n± is one standard error.")


def _print_filled(
    title: str, columns: list[str], rows: list[list[str]], strong: str, caption: str | None = None
) -> None:
    """Print a table without its empty columns."""
    filled = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
    cells = [[row[i] for i in filled] for row in rows]
    print_table(title, [columns[i] for i in filled], cells, strong=strong, caption=caption)


def _cells(row: SolverMetrics) -> list[str]:
    data = "" if row.frechet_data is None else significant(row.frechet_data)
    passes = "" if row.forward_passes is None else str(row.forward_passes)
    if row.mse == 0:  # the teacher itself
        return [row.name, str(row.nfe), passes, "", "", "", "", data, ""]
    return [
        row.name,
        str(row.nfe),
        passes,
        f"{significant(row.mse)} ± {significant(row.mse_half_width, 2)}",
        "" if row.mse_median is None else significant(row.mse_median),
        significant(row.l1),
        "" if row.psnr is None else f"{row.psnr:.1f}",
        data,
        "" if row.to_teacher is None else significant(row.to_teacher.frechet),
    ]


def _teacher_cells(row: SolverMetrics) -> list[str]:
    data = _corrected(row.frechet_data_corrected, row.frechet_data_interval)
    return [row.name, str(row.nfe), data, *_distances(None if row.mse == 0 else row.to_teacher)]


def _data_cells(row: SolverMetrics) -> list[str]:
    return [row.name, str(row.nfe), *_distances(row.to_data)]


def _distances(distances: Distribution | None) -> list[str]:
    if distances is None:
        return [""] * 6
    kernel = f"{significant(distances.kernel)} ± {significant(distances.kernel_std, 2)}"
    prdc = distances.prdc
    shares = [""] * 4 if prdc is None else [f"{value:.3f}" for value in vars(prdc).values()]
    return [_corrected(distances.frechet_corrected, distances.frechet_interval), kernel, *shares]


def _corrected(value: float | None, interval: tuple[float, float] | None) -> str:
    """A bias-corrected estimate with its interval; empty below the least number of samples."""
    if value is None or interval is None:
        return ""
    low, high = interval
    return f"{significant(value)} [{significant(low)}, {significant(high)}]"
