"""Tables of results: measures, their intervals, and which methods are surely best."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from gas.display import csv_cell, significant
from gas.evaluation.evaluator import SolverMetrics
from gas.experiments.store import MethodResult
from gas.metrics.distances import BRACKETS, Distribution
from gas.metrics.intervals import mean_interval
from gas.training.validation import surely_positive

__all__ = ["MEASURES", "Entry", "Measure", "PivotTable", "csv_text", "difference_table", "pivot_table"]

T = TypeVar("T")
Interval = tuple[float, float]
Better = Literal["smaller", "larger", ""]
Target = Literal["teacher", "data"]


@dataclass(frozen=True)
class Measure:
    """One number of a solver's metrics.

    Args:
        title: for reports, with its unit.
        read: the number, or ``None`` where it was not measured.
        interval: its 95% interval, where it has one.
        better: which direction is better, if either.
        target: what samples are compared with; the teacher's own number is of interest for ``"data"`` only.
        losses: squared errors ``(S,)`` -> loss of each sample by this measure. Solvers that ran from the same seeds are
            then compared pair by pair.
        chance: an interval of what other samples would give, for comparisons without pairs.
        scale: factor in reports.
        digits: after the decimal point.
    """

    title: str
    read: Callable[[SolverMetrics], float | None]
    interval: Callable[[SolverMetrics], Interval | None] = lambda metrics: None
    better: Better = "smaller"
    target: Target = "teacher"
    scale: float = 1.0
    digits: int = 3
    losses: Callable[[Tensor], Tensor] | None = None
    chance: Callable[[SolverMetrics], Interval | None] = lambda metrics: None

    def text(self, metrics: SolverMetrics) -> str:
        """Return number and interval for reports: ``2.86 ± 1.10`` or ``2.01 [1.49, 2.02]``."""
        value, interval = self.read(metrics), self.interval(metrics)
        if value is None:
            return ""
        text = self.format(value)
        if interval is None:
            return text
        low, high = interval
        if abs((high - value) - (value - low)) < 1e-9 * max(abs(value), 1e-12):
            return f"{text} ± {self.format((high - low) / 2, value)}"
        return f"{text} [{self.format(low, value)}, {self.format(high, value)}]"

    def format(self, value: float, beside: float | None = None) -> str:
        """Return a number with its digits after the decimal point, or three significant ones if it is small.

        The ends of an interval are formatted like the number ``beside`` them.
        """
        scaled, other = self.scale * value, self.scale * (value if beside is None else beside)
        small = 0 < abs(other) < 10.0 ** (2 - self.digits)
        return significant(scaled, 3) if small else f"{scaled:.{self.digits}f}"


# The two estimators of a Frechet distance, as titles name them.
_PLAIN, _CORRECTED = "as published", "corrected for the number of samples"


def _distances(target: Target, suffix: str) -> dict[str, Measure]:
    """Measures of the distances to the teacher's samples or to real images, by their names with a suffix."""
    reference = "the teacher's samples" if target == "teacher" else "real images"

    def of_metrics(function: Callable[[Distribution, int], T | None]) -> Callable[[SolverMetrics], T | None]:
        def apply(metrics: SolverMetrics) -> T | None:
            distances = metrics.to_teacher if target == "teacher" else metrics.to_data
            return None if distances is None else function(distances, metrics.samples)

        return apply

    def measure(title: str, read: Any, chance: Any, better: Better = "smaller", **fields: Any) -> Measure:
        title = title.format(reference)
        return Measure(
            title, of_metrics(read), better=better, target=target, chance=of_metrics(chance), **fields
        )

    frechet, corrected = (f"Frechet distance to {{}}, {estimator}" for estimator in (_PLAIN, _CORRECTED))
    interval = of_metrics(lambda d, _: d.frechet_interval)
    measures = {
        "frechet": measure(
            frechet,
            lambda d, _: d.frechet,
            lambda d, _: _biased(d.frechet, d.frechet_corrected, d.frechet_interval),
        ),
        "frechet-corrected": measure(
            corrected, lambda d, _: d.frechet_corrected, lambda d, _: d.frechet_interval, interval=interval
        ),
        "kernel": measure(
            "Kernel distance to {}", lambda d, _: d.kernel, lambda d, _: _around(d.kernel, d.kernel_std)
        ),
        "precision": measure("Precision on {}", *_share("precision"), "larger"),
        "recall": measure("Recall of {}", *_share("recall"), "larger"),
        "density": measure("Density on {}", *_share("density"), ""),
        "coverage": measure("Coverage of {}", *_share("coverage"), "larger"),
    }
    return {f"{name}{suffix}": measure for name, measure in measures.items()}


def _share(name: str) -> tuple[Any, Any]:
    """A share of the samples or of the reference, and the interval of as many independent draws."""

    def read(distances: Distribution, samples: int) -> float | None:
        return None if distances.prdc is None else float(getattr(distances.prdc, name))

    def chance(distances: Distribution, samples: int) -> Interval | None:
        value = read(distances, samples)
        return None if value is None else _around(value, math.sqrt(max(0.0, value * (1 - value)) / samples))

    return read, chance


def _around(value: float, standard_error: float) -> Interval:
    """A normal 95% interval."""
    return value - 1.96 * standard_error, value + 1.96 * standard_error


def _biased(value: float | None, corrected: float | None, interval: Interval | None) -> Interval | None:
    """The corrected distance's interval, moved to the distance with its bias."""
    if value is None or corrected is None or interval is None:
        return None
    bias = value - corrected
    return interval[0] + bias, interval[1] + bias


def _per_sample(name: str, title: str, better: Better, digits: int) -> Measure:
    """A mean over samples of a per-sample metric."""

    def read(metrics: SolverMetrics) -> float | None:
        return metrics.more.get(name, (None, 0.0))[0]

    def interval(metrics: SolverMetrics) -> Interval | None:
        value, half_width = metrics.more.get(name, (None, 0.0))
        return None if value is None else (value - half_width, value + half_width)

    return Measure(title, read, interval, better, digits=digits, chance=interval)


MEASURES: dict[str, Measure] = {
    "mse": Measure(
        "Mean squared error to the teacher, x 1000",
        lambda m: m.mse,
        lambda m: (m.mse - m.mse_half_width, m.mse + m.mse_half_width),
        scale=1e3,
        losses=lambda errors: errors,
    ),
    "mse-median": Measure(
        "Median over seeds of the squared error to the teacher, x 1000",
        lambda m: m.mse_median,
        scale=1e3,
        losses=Tensor.log10,  # a mean that, like a median, a few bad samples do not decide
    ),
    "l1": Measure(
        "Mean absolute error to the teacher, x 1000", lambda m: m.l1, scale=1e3, losses=Tensor.sqrt
    ),
    "psnr": Measure(
        "PSNR to the teacher, mean over seeds, dB",
        lambda m: m.psnr,
        better="larger",
        digits=2,
        losses=Tensor.log10,
    ),
    "lpips": _per_sample("lpips", "LPIPS to the teacher", "smaller", 4),
    "clip-score": _per_sample("clip-score", "CLIP score of the prompts", "larger", 2),
    "frechet-data": Measure(
        f"Frechet distance to the data's statistics, {_PLAIN}",
        lambda m: m.frechet_data,
        target="data",
        chance=lambda m: _biased(m.frechet_data, m.frechet_data_corrected, m.frechet_data_interval),
    ),
    "frechet-data-corrected": Measure(
        f"Frechet distance to the data's statistics, {_CORRECTED}",
        lambda m: m.frechet_data_corrected,
        lambda m: m.frechet_data_interval,
        target="data",
        chance=lambda m: m.frechet_data_interval,
    ),
    **_distances("teacher", ""),
    **_distances("data", "-real"),
}

_NEAR = "Italic: the best of its column and all that cannot be told from it."
_BY_PAIRS = "Bold: surely better than every other of its column, seed by seed (97.5%)."
_BY_INTERVALS = "Bold: better than every other of its column, their 95% intervals apart."


@dataclass(frozen=True)
class Entry:
    """One number: its text, and ``"best"`` (surely, of its column), ``"near"`` (may be the best), or neither."""

    text: str = ""
    mark: str = ""


@dataclass(frozen=True)
class PivotTable:
    """A measure of all methods (rows) at all NFE (columns).

    Attributes:
        title: of the measure.
        nfes: columns.
        rows: label, and an entry for each column.
        notes: how to read the table, one line each.
    """

    title: str
    nfes: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls, title: str, entries: Mapping[tuple[str, int], Entry], notes: Sequence[str] = ()
    ) -> PivotTable:
        """Return the table of entries by label and NFE."""
        nfes = sorted({nfe for _, nfe in entries})
        labels = dict.fromkeys(label for label, _ in entries)
        rows = [(label, [entries.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
        return cls(title, nfes, rows, notes)


def pivot_table(results: Sequence[MethodResult], measure: Measure) -> PivotTable | None:
    """Return the table of a measure, or ``None`` where no result has it.

    The best of a column is marked as such only where it is surely better than every other; otherwise it and all that
    cannot be told from it are marked alike.

    Args:
        results: of an experiment, the teacher's among them.
        measure: the number to show.
    """
    methods = [result for result in results if result.category != "teacher"]
    if all(result.metrics is None or measure.read(result.metrics) is None for result in methods):
        return None
    marks: dict[int, str] = {}
    for nfe in {result.nfe for result in methods}:
        marks |= _marks([result for result in methods if result.nfe == nfe], measure)
    entries = {}
    for result in methods:
        text = "diverged" if result.metrics is None else measure.text(result.metrics)
        entries[result.label, result.nfe] = Entry(text, marks.get(id(result), ""))
    notes = [f"{_BY_INTERVALS if measure.losses is None else _BY_PAIRS} {_NEAR}"] if marks else []
    notes += [BRACKETS] if any("[" in entry.text for entry in entries.values()) else []
    for result in results:  # the teacher's distance to data; its distance to itself is zero
        if result.category == "teacher" and result.metrics is not None and measure.target == "data":
            text = measure.text(result.metrics)
            notes += [f"The teacher: {text} ({result.origin}, {result.nfe} calls)."] if text else []
    return PivotTable.of(measure.title, entries, notes)


def difference_table(results: Sequence[MethodResult], spec: str, measure: Measure) -> PivotTable | None:
    """Return how much larger squared errors are than one method's, sample by sample; ``None`` without that method.

    Args:
        results: of an experiment.
        spec: of the method to compare with.
        measure: of squared errors, for its scale.
    """
    base = {r.nfe: r for r in results if r.spec == spec and r.metrics is not None}
    entries = {}
    for result in results:
        other = base.get(result.nfe)
        if result.category == "teacher" or result.spec == spec or other is None or result.metrics is None:
            continue
        mean, half_width = mean_interval(result.errors.double() - other.errors.double())
        sign = "+" if mean >= 0 else ""
        text = f"{sign}{measure.format(mean)} ± {measure.format(half_width, mean)}"
        entries[result.label, result.nfe] = Entry(text)
    if not entries:
        return None
    label = next(iter(base.values())).label
    return PivotTable.of(f"Squared error less that of {label}, sample by sample, x 1000", entries)


def _marks(column: Sequence[MethodResult], measure: Measure) -> dict[int, str]:
    """The mark of each result of a column that may be its best, by ``id``."""
    sign = -1 if measure.better == "larger" else 1
    values = {id(r): measure.read(r.metrics) for r in column if r.metrics is not None}
    costs = {key: sign * value for key, value in values.items() if value is not None and math.isfinite(value)}
    ranked = sorted((result for result in column if id(result) in costs), key=lambda r: costs[id(r)])
    if not measure.better or len(ranked) < 2:
        return {}
    best, *others = ranked
    if measure.losses is None and _chance(best, measure) is None:
        return {}
    near = [other for other in others if not _surely_better(best, other, measure)]
    return {id(best): "near" if near else "best", **{id(result): "near" for result in near}}


def _chance(result: MethodResult, measure: Measure) -> Interval | None:
    return None if result.metrics is None else measure.chance(result.metrics)


def _surely_better(best: MethodResult, other: MethodResult, measure: Measure) -> bool:
    """Whether one method is better than another by more than chance: pair by pair, or by disjoint intervals."""
    if measure.losses is not None:
        return surely_positive(measure.losses(other.errors.double()) - measure.losses(best.errors.double()))
    interval, other_interval = _chance(best, measure), _chance(other, measure)
    if interval is None or other_interval is None:
        return False
    return interval[0] > other_interval[1] if measure.better == "larger" else interval[1] < other_interval[0]


def csv_text(results: Sequence[MethodResult]) -> str:
    """Return all results with every measure, unscaled, and the ends of its interval where it has one."""
    keys = ("spec", "label", "category", "nfe", "origin", "evaluations", "stopped", "seconds")
    columns = [column for name in MEASURES for column in (name, f"{name} low", f"{name} high")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*keys, "samples", *columns, "command"])
    for result in results:
        metrics = result.metrics
        row = [getattr(result, key) for key in keys] + ["" if metrics is None else metrics.samples]
        for measure in MEASURES.values():
            interval = None if metrics is None else measure.interval(metrics)
            row += [None if metrics is None else measure.read(metrics), *(interval or ("", ""))]
        writer.writerow(map(csv_cell, [*row, result.command]))
    return file.getvalue()
