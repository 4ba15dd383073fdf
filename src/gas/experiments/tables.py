"""Tables of results: measures, their intervals, and which methods are surely best."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gas.display import csv_cell, significant, with_interval
from gas.evaluation.evaluator import SolverMetrics
from gas.experiments.store import MethodResult
from gas.metrics.distances import BRACKETS
from gas.metrics.intervals import mean_interval
from gas.training.validation import surely_positive

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
        scale: factor in reports.
        losses: squared errors ``(S,)`` -> loss of each sample by this measure. Solvers that ran from the same seeds are
            then compared pair by pair.
        chance: an interval of what other samples would give, for comparisons without pairs.
    """

    title: str
    read: Callable[[SolverMetrics], float | None]
    interval: Callable[[SolverMetrics], Interval | None] = lambda metrics: None
    better: Better = "smaller"
    target: Target = "teacher"
    scale: float = 1.0
    losses: Callable[[Tensor], Tensor] | None = None
    chance: Callable[[SolverMetrics], Interval | None] = lambda metrics: None

    def text(self, metrics: SolverMetrics) -> str:
        """Return number and interval for reports: ``2.9 ± 1.1`` or ``2.01 [1.49, 2.02]``; three digits without one."""
        value, interval = self.read(metrics), self.interval(metrics)
        if value is None or interval is None:
            return "" if value is None else significant(self.scale * value, 3)
        return with_interval(self.scale * value, *(self.scale * end for end in interval))


def _at(path: str) -> Callable[[SolverMetrics], Any]:
    """The value at a path of attributes; ``None`` where one of them is ``None``."""

    def read(metrics: SolverMetrics) -> Any:
        value: Any = metrics
        for name in path.split("."):
            value = None if value is None else getattr(value, name)
        return value

    return read


def _around(value: float | None, half_width: float) -> Interval | None:
    return None if value is None else (value - half_width, value + half_width)


def _frechet(name: str, title: str, target: Target, value: str, corrected: str) -> dict[str, Measure]:
    """Both estimators of a Frechet distance, by their paths."""
    interval = _at(f"{corrected.removesuffix('_corrected')}_interval")

    def biased(metrics: SolverMetrics) -> Interval | None:
        """The corrected distance's interval, moved to the distance with its bias."""
        ends = interval(metrics)
        bias = ends and _at(value)(metrics) - _at(corrected)(metrics)
        return ends and (ends[0] + bias, ends[1] + bias)

    plain = Measure(f"{title}, as published", _at(value), target=target, chance=biased)
    title = f"{title}, corrected for the number of samples"
    fields: dict[str, Any] = {"interval": interval, "chance": interval, "target": target}
    return {name: plain, f"{name}-corrected": Measure(title, _at(corrected), **fields)}


def _distances(target: Target, suffix: str, others: str) -> dict[str, Measure]:
    """Measures of the distances to the teacher's samples or to real images, by their names with a suffix."""
    path = f"to_{target}"

    def kernel(metrics: SolverMetrics) -> Interval | None:
        return _around(_at(f"{path}.kernel")(metrics), 1.96 * (_at(f"{path}.kernel_std")(metrics) or 0.0))

    measures = {
        **_frechet(
            "frechet", f"Frechet distance to {others}", target, f"{path}.frechet", f"{path}.frechet_corrected"
        ),
        "kernel": Measure(
            f"Kernel distance to {others}", _at(f"{path}.kernel"), target=target, chance=kernel
        ),
    }
    shares: dict[str, tuple[str, Better]] = {
        "precision": ("Precision on", "larger"),
        "recall": ("Recall of", "larger"),
        "density": ("Density on", ""),
        "coverage": ("Coverage of", "larger"),
    }
    for name, (title, better) in shares.items():
        measures[name] = _share(f"{title} {others}", f"{path}.prdc.{name}", better, target)
    return {f"{name}{suffix}": measure for name, measure in measures.items()}


def _share(title: str, path: str, better: Better, target: Target) -> Measure:
    """A share of samples or of data, with the interval of as many independent draws for chance."""
    read = _at(path)

    def chance(metrics: SolverMetrics) -> Interval | None:
        value = read(metrics)
        variance = 0.0 if value is None else max(0.0, value * (1 - value)) / metrics.samples
        return _around(value, 1.96 * math.sqrt(variance))

    return Measure(title, read, better=better, target=target, chance=chance)


def _per_sample(name: str, title: str, better: Better) -> Measure:
    """A mean over samples of a per-sample metric."""

    def interval(metrics: SolverMetrics) -> Interval | None:
        return _around(*metrics.more.get(name, (None, 0.0)))

    return Measure(title, lambda m: m.more.get(name, (None, 0.0))[0], interval, better, chance=interval)


MEASURES: dict[str, Measure] = {
    "mse": Measure(
        "Mean squared error to the teacher, x 1000",
        lambda m: m.mse,
        lambda m: _around(m.mse, m.mse_half_width),
        scale=1e3,
        losses=lambda errors: errors,
    ),
    "mse-median": Measure(
        "Median over seeds of the squared error to the teacher, x 1000",
        lambda m: m.mse_median,
        lambda m: m.mse_median_interval,
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
        losses=Tensor.log10,
    ),
    "lpips": _per_sample("lpips", "LPIPS to the teacher", "smaller"),
    "clip-score": _per_sample("clip-score", "CLIP score of the prompts", "larger"),
    **_frechet(
        "frechet-data",
        "Frechet distance to the data's statistics",
        "data",
        "frechet_data",
        "frechet_data_corrected",
    ),
    **_distances("teacher", "", "the teacher's samples"),
    **_distances("data", "-real", "real images"),
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
    """A measure of all methods (rows: label, and an entry for each column) at all NFE (columns)."""

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
    """Return the table of a measure, or ``None`` where no result but the teacher's has it.

    The best of a column is marked as such only where it is surely better than every other; otherwise it and all that
    cannot be told from it are marked alike.
    """
    methods = [result for result in results if result.category != "teacher"]
    if all(_value(result, measure) is None for result in methods):
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
    """Return how much larger squared errors are than those of method ``spec``, sample by sample, scaled as ``measure``.

    ``None`` without that method, or without another.
    """
    base = {r.nfe: r for r in results if r.spec == spec and r.metrics is not None}
    entries = {}
    for result in results:
        other = base.get(result.nfe)
        if result.category == "teacher" or result.spec == spec or other is None or result.metrics is None:
            continue
        mean, half_width = mean_interval(result.errors.double() - other.errors.double())
        ends = (measure.scale * (mean + side * half_width) for side in (-1, 1))
        entries[result.label, result.nfe] = Entry(with_interval(measure.scale * mean, *ends, sign="+"))
    if not entries:
        return None
    label = next(iter(base.values())).label
    return PivotTable.of(f"Squared error less that of {label}, sample by sample, x 1000", entries)


def _value(result: MethodResult, measure: Measure) -> float | None:
    return None if result.metrics is None else measure.read(result.metrics)


def _marks(column: Sequence[MethodResult], measure: Measure) -> dict[int, str]:
    """The mark of each result of a column that may be its best, by ``id``."""
    values = {id(result): _value(result, measure) for result in column}
    costs = {
        key: -value if measure.better == "larger" else value
        for key, value in values.items()
        if value is not None and math.isfinite(value)
    }
    ranked = sorted((result for result in column if id(result) in costs), key=lambda r: costs[id(r)])
    if not measure.better or len(ranked) < 2:
        return {}
    best, *others = ranked
    if measure.losses is None and (best.metrics is None or measure.chance(best.metrics) is None):
        return {}
    near = [other for other in others if not _surely_better(best, other, measure)]
    return {id(best): "near" if near else "best", **{id(result): "near" for result in near}}


def _surely_better(best: MethodResult, other: MethodResult, measure: Measure) -> bool:
    """Whether one method is better than another by more than chance: pair by pair, or by disjoint intervals."""
    if measure.losses is not None:
        return surely_positive(measure.losses(other.errors.double()) - measure.losses(best.errors.double()))
    interval, other_interval = (r.metrics and measure.chance(r.metrics) for r in (best, other))
    if not interval or not other_interval:
        return False
    return interval[0] > other_interval[1] if measure.better == "larger" else interval[1] < other_interval[0]


def csv_text(results: Sequence[MethodResult]) -> str:
    """Return all results with every measure, unscaled, and the ends of its interval where it has one."""
    keys = ("spec", "label", "category", "nfe", "origin", "evaluations", "stopped", "seconds")
    columns = [column for name in MEASURES for column in (name, f"{name} low", f"{name} high")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*keys, "forward passes", "samples", *columns, "command"])
    for result in results:
        metrics = result.metrics
        row = [getattr(result, key) for key in keys]
        row += ["", ""] if metrics is None else [metrics.forward_passes, metrics.samples]
        for measure in MEASURES.values():
            interval = None if metrics is None else measure.interval(metrics)
            row += [_value(result, measure), *(interval or ("", ""))]
        writer.writerow(map(csv_cell, [*row, result.command]))
    return file.getvalue()
