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

# Half the width of a normal 95% interval, in standard errors.
_Z = 1.96


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


def _distances(
    target: Target,
    title: str,
    read: Callable[[Distribution, int], float | None],
    *,
    better: Better = "smaller",
    interval: Callable[[Distribution, int], Interval | None] = lambda distances, samples: None,
    chance: Callable[[Distribution, int], Interval | None] = lambda distances, samples: None,
) -> Measure:
    """A number of the distances to the teacher's samples or to real images, from them and the number of samples."""

    def of_metrics(function: Callable[[Distribution, int], T | None]) -> Callable[[SolverMetrics], T | None]:
        def apply(metrics: SolverMetrics) -> T | None:
            distances = metrics.to_teacher if target == "teacher" else metrics.to_data
            return None if distances is None else function(distances, metrics.samples)

        return apply

    name = "the teacher's samples" if target == "teacher" else "real images"
    return Measure(
        title=title.format(name),
        read=of_metrics(read),
        interval=of_metrics(interval),
        better=better,
        target=target,
        chance=of_metrics(chance),
    )


# The two estimators of a Frechet distance, as titles name them.
_PLAIN, _CORRECTED = "as published", "corrected for the number of samples"


def _frechet(target: Target) -> Measure:
    """The Frechet distance as published."""
    return _distances(
        target,
        f"Frechet distance to {{}}, {_PLAIN}",
        lambda d, samples: d.frechet,
        chance=lambda d, samples: _biased(d.frechet, d.frechet_corrected, d.frechet_interval),
    )


def _frechet_corrected(target: Target) -> Measure:
    """The Frechet distance without the bias of its number of samples, with an interval."""
    return _distances(
        target,
        f"Frechet distance to {{}}, {_CORRECTED}",
        lambda d, samples: d.frechet_corrected,
        interval=lambda d, samples: d.frechet_interval,
        chance=lambda d, samples: d.frechet_interval,
    )


def _biased(value: float | None, corrected: float | None, interval: Interval | None) -> Interval | None:
    """The corrected distance's interval, moved to the distance with its bias."""
    if value is None or corrected is None or interval is None:
        return None
    bias = value - corrected
    return interval[0] + bias, interval[1] + bias


def _kernel(target: Target) -> Measure:
    def chance(distances: Distribution, samples: int) -> Interval:
        return distances.kernel - _Z * distances.kernel_std, distances.kernel + _Z * distances.kernel_std

    return _distances(target, "Kernel distance to {}", lambda d, samples: d.kernel, chance=chance)


def _share(target: Target, title: str, name: str) -> Measure:
    """A share of the samples or of the reference; its interval is that of as many independent draws."""

    def read(distances: Distribution, samples: int) -> float | None:
        return None if distances.prdc is None else float(getattr(distances.prdc, name))

    def chance(distances: Distribution, samples: int) -> Interval | None:
        share = read(distances, samples)
        if share is None:
            return None
        half_width = _Z * math.sqrt(max(0.0, share * (1 - share)) / samples)
        return share - half_width, share + half_width

    return _distances(target, title, read, better="" if name == "density" else "larger", chance=chance)


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
    "frechet": _frechet("teacher"),
    "frechet-corrected": _frechet_corrected("teacher"),
    "kernel": _kernel("teacher"),
    "precision": _share("teacher", "Precision on {}", "precision"),
    "recall": _share("teacher", "Recall of {}", "recall"),
    "density": _share("teacher", "Density on {}", "density"),
    "coverage": _share("teacher", "Coverage of {}", "coverage"),
    "frechet-real": _frechet("data"),
    "frechet-real-corrected": _frechet_corrected("data"),
    "kernel-real": _kernel("data"),
    "precision-real": _share("data", "Precision on {}", "precision"),
    "recall-real": _share("data", "Recall of {}", "recall"),
    "density-real": _share("data", "Density on {}", "density"),
    "coverage-real": _share("data", "Coverage of {}", "coverage"),
}

_NEAR = "Italic: the best of its column and all that cannot be told from it."
_LEGENDS = {
    "pairs": f"Bold: surely better than every other of its column, seed by seed (97.5%). {_NEAR}",
    "intervals": f"Bold: better than every other of its column, their 95% intervals apart. {_NEAR}",
}


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
        teacher: the teacher's own number with its NFE, where it is of interest.
        test: how entries are compared: ``"pairs"`` of the same seeds, their ``"intervals"``, or not at all (no marks).
    """

    title: str
    nfes: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    teacher: str = ""
    test: Literal["pairs", "intervals", ""] = ""

    @classmethod
    def of(cls, title: str, entries: Mapping[tuple[str, int], Entry], **fields: Any) -> PivotTable:
        """Return the table of entries by label and NFE."""
        nfes = sorted({nfe for _, nfe in entries})
        labels = dict.fromkeys(label for label, _ in entries)
        rows = [(label, [entries.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
        return cls(title, nfes, rows, **fields)

    @property
    def notes(self) -> list[str]:
        """How to read the table, one line each."""
        bracketed = any("[" in entry.text for _, entries in self.rows for entry in entries)
        return [
            *([_LEGENDS[self.test]] if self.test else []),
            *([BRACKETS] if bracketed else []),
            *([f"The teacher: {self.teacher}."] if self.teacher else []),
        ]


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
    entries = {(r.label, r.nfe): Entry(_text(r, measure), marks.get(id(r), "")) for r in methods}
    test = ("pairs" if measure.losses is not None else "intervals") if marks else ""
    return PivotTable.of(measure.title, entries, teacher=_teacher_text(results, measure), test=test)


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


def _text(result: MethodResult, measure: Measure) -> str:
    return "diverged" if result.metrics is None else measure.text(result.metrics)


def _marks(column: Sequence[MethodResult], measure: Measure) -> dict[int, str]:
    """The mark of each result of a column that may be its best, by ``id``."""
    costs = {id(result): _cost(result, measure) for result in column}
    ranked = sorted((r for r in column if math.isfinite(costs[id(r)])), key=lambda r: costs[id(r)])
    if not measure.better or len(ranked) < 2:
        return {}
    best, *others = ranked
    if measure.losses is None and _chance(best, measure) is None:
        return {}
    near = [other for other in others if not _surely_better(best, other, measure)]
    return {id(best): "near" if near else "best", **{id(result): "near" for result in near}}


def _cost(result: MethodResult, measure: Measure) -> float:
    """The number to rank by, smaller is better; infinite where there is none."""
    value = None if result.metrics is None else measure.read(result.metrics)
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if measure.better == "larger" else value


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


def _teacher_text(results: Sequence[MethodResult], measure: Measure) -> str:
    """The teacher's distance to data; its distance to itself is zero."""
    for result in results:
        if result.category == "teacher" and result.metrics is not None and measure.target == "data":
            text = measure.text(result.metrics)
            return f"{text} ({result.origin}, {result.nfe} calls)" if text else ""
    return ""


def csv_text(results: Sequence[MethodResult]) -> str:
    """Return all results with every measure, unscaled, and the ends of its interval where it has one."""
    keys = ("spec", "label", "family", "nfe", "what", "evaluations", "stopped", "seconds")
    columns = [column for name in MEASURES for column in (name, f"{name} low", f"{name} high")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*keys, "samples", *columns, "command"])
    for result in results:
        row, metrics = result.row(), result.metrics
        values: list[object] = [row[key] for key in keys]
        values.append("" if metrics is None else metrics.samples)
        for measure in MEASURES.values():
            value, interval = (
                (None, None) if metrics is None else (measure.read(metrics), measure.interval(metrics))
            )
            values += [value, *(interval or ("", ""))]
        writer.writerow(map(csv_cell, [*values, result.command]))
    return file.getvalue()
