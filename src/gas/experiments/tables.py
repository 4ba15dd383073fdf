"""Tables of results: measures, their intervals, and which methods are surely best."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gas.display import csv_cell, significant
from gas.evaluation.evaluator import Comparison
from gas.experiments.store import Cell
from gas.metrics.distances import BRACKETS, Distribution
from gas.metrics.paired import mean_interval
from gas.training.validation import surely_positive

__all__ = ["MEASURES", "Entry", "Matrix", "Measure", "csv_text", "differences", "matrix"]

Interval = tuple[float, float]
Better = Literal["smaller", "larger", ""]


@dataclass(frozen=True)
class Measure:
    """One number of a comparison.

    Args:
        title: for people, with its unit.
        read: the number, or nothing where it was not measured.
        interval: its 95% interval, where it has one.
        better: which is better, or neither.
        losses: per sample, squared errors ``(S,)`` -> how bad each sample is by this measure: by these, solvers that
            ran from the same seeds are told apart, pair by pair.
        chance: an interval of what other samples would give, to tell solvers apart by where there are no pairs.
        scale: factor to show it in.
        digits: after the point.
    """

    title: str
    read: Callable[[Comparison], float | None]
    interval: Callable[[Comparison], Interval | None] = lambda c: None
    better: Better = "smaller"
    scale: float = 1.0
    digits: int = 3
    losses: Callable[[Tensor], Tensor] | None = None
    chance: Callable[[Comparison], Interval | None] = lambda c: None

    def text(self, comparison: Comparison) -> str:
        """Return number and interval for people: ``2.86 ± 1.10`` or ``2.01 [1.49, 2.02]``."""
        value, ends = self.read(comparison), self.interval(comparison)
        if value is None:
            return ""
        shown = self.shown(value)
        if ends is None:
            return shown
        low, high = ends
        if abs((high - value) - (value - low)) < 1e-9 * max(abs(value), 1e-12):
            return f"{shown} ± {self.shown((high - low) / 2, value)}"
        return f"{shown} [{self.shown(low, value)}, {self.shown(high, value)}]"

    def shown(self, value: float, beside: float | None = None) -> str:
        """Return one number for people: with its digits after the point, or three significant ones if it is small.

        What stands ``beside`` another number, as its interval, is written as that is.
        """
        scaled, other = self.scale * value, self.scale * (value if beside is None else beside)
        small = 0 < abs(other) < 10.0 ** (2 - self.digits)
        return significant(scaled, 3) if small else f"{scaled:.{self.digits}f}"


# The two estimators of a Frechet distance, as titles name them.
_PLAIN, _CORRECTED = "as published", "corrected for the number of samples"


# Half the width of a normal 95% interval, in standard errors.
_Z = 1.96


def _mse(c: Comparison) -> Interval:
    return c.mse - c.mse_half_width, c.mse + c.mse_half_width


def _of(
    whom: str,
    title: str,
    number: Callable[[Distribution], float | None],
    better: Better = "smaller",
    ends: Callable[[Distribution], Interval | None] = lambda d: None,
    chance: Callable[[Distribution, int], Interval | None] = lambda d, samples: None,
) -> Measure:
    def distances_of(c: Comparison) -> Distribution | None:
        distances: Distribution | None = getattr(c, f"to_{whom}")
        return distances

    def read(c: Comparison) -> float | None:
        distances = distances_of(c)
        return None if distances is None else number(distances)

    def interval(c: Comparison) -> Interval | None:
        distances = distances_of(c)
        return None if distances is None else ends(distances)

    def spread(c: Comparison) -> Interval | None:
        distances = distances_of(c)
        return None if distances is None else chance(distances, c.samples)

    people = "the teacher's samples" if whom == "teacher" else "real images"
    return Measure(title.format(people), read, interval, better, chance=spread)


def _frechet(whom: str, *, corrected: bool) -> Measure:
    """The Frechet distance as published, or without the bias of its number of samples and with an interval."""

    def ends(distances: Distribution) -> Interval | None:
        return distances.frechet_interval

    def chance(distances: Distribution, samples: int) -> Interval | None:
        return distances.frechet_interval

    if not corrected:
        return _of(whom, f"Frechet distance to {{}}, {_PLAIN}", lambda d: d.frechet, chance=_moved)
    title = f"Frechet distance to {{}}, {_CORRECTED}"
    return _of(whom, title, lambda d: d.frechet_corrected, ends=ends, chance=chance)


def _moved(distances: Distribution, samples: int) -> Interval | None:
    """The corrected distance's interval, around the distance with its bias."""
    if distances.frechet_interval is None or distances.frechet_corrected is None:
        return None
    bias = distances.frechet - distances.frechet_corrected
    low, high = distances.frechet_interval
    return low + bias, high + bias


def _data_moved(c: Comparison) -> Interval | None:
    if c.frechet_data is None or c.frechet_data_corrected is None or c.frechet_data_interval is None:
        return None
    low, high = c.frechet_data_interval
    bias = c.frechet_data - c.frechet_data_corrected
    return low + bias, high + bias


def _kernel(whom: str) -> Measure:
    def chance(distances: Distribution, samples: int) -> Interval | None:
        return distances.kernel - _Z * distances.kernel_std, distances.kernel + _Z * distances.kernel_std

    return _of(whom, "Kernel distance to {}", lambda d: d.kernel, chance=chance)


def _judged(name: str, title: str, better: Better, digits: int) -> Measure:
    """A mean over samples of what a published network says of each."""

    def interval(c: Comparison) -> Interval | None:
        value, half_width = c.more.get(name, (None, 0.0))
        return None if value is None else (value - half_width, value + half_width)

    def read(c: Comparison) -> float | None:
        return c.more.get(name, (None, 0.0))[0]

    return Measure(title, read, interval, better, digits=digits, chance=interval)


def _share(whom: str, title: str, name: str) -> Measure:
    """A share of the samples, or of the reference's: by chance it moves as that of as many draws."""

    def read(distances: Distribution) -> float | None:
        return None if distances.prdc is None else float(getattr(distances.prdc, name))

    def chance(distances: Distribution, samples: int) -> Interval | None:
        share = read(distances)
        if share is None:
            return None
        half = _Z * math.sqrt(max(0.0, share * (1 - share)) / samples)
        return share - half, share + half

    return _of(whom, title, read, "" if name == "density" else "larger", chance=chance)


MEASURES: dict[str, Measure] = {
    "mse": Measure(
        "Mean squared error to the teacher, x 1000", lambda c: c.mse, _mse, scale=1e3, losses=lambda e: e
    ),
    "mse-median": Measure(
        "Median over seeds of the squared error to the teacher, x 1000",
        lambda c: c.mse_median,
        scale=1e3,
        losses=Tensor.log10,  # a mean that, like a median, a few bad samples do not decide
    ),
    "l1": Measure(
        "Mean absolute error to the teacher, x 1000", lambda c: c.l1, scale=1e3, losses=Tensor.sqrt
    ),
    "psnr": Measure(
        "PSNR to the teacher, mean over seeds, dB",
        lambda c: c.psnr,
        better="larger",
        digits=2,
        losses=Tensor.log10,
    ),
    "lpips": _judged("lpips", "LPIPS to the teacher", "smaller", 4),
    "clip-score": _judged("clip-score", "CLIP score of the prompts", "larger", 2),
    "frechet-data": Measure(
        f"Frechet distance to the data's statistics, {_PLAIN}", lambda c: c.frechet_data, chance=_data_moved
    ),
    "frechet-data-corrected": Measure(
        f"Frechet distance to the data's statistics, {_CORRECTED}",
        lambda c: c.frechet_data_corrected,
        lambda c: c.frechet_data_interval,
        chance=lambda c: c.frechet_data_interval,
    ),
    "frechet": _frechet("teacher", corrected=False),
    "frechet-corrected": _frechet("teacher", corrected=True),
    "kernel": _kernel("teacher"),
    "precision": _share("teacher", "Precision on {}", "precision"),
    "recall": _share("teacher", "Recall of {}", "recall"),
    "density": _share("teacher", "Density on {}", "density"),
    "coverage": _share("teacher", "Coverage of {}", "coverage"),
    "frechet-real": _frechet("data", corrected=False),
    "frechet-real-corrected": _frechet("data", corrected=True),
    "kernel-real": _kernel("data"),
    "precision-real": _share("data", "Precision on {}", "precision"),
    "recall-real": _share("data", "Recall of {}", "recall"),
    "density-real": _share("data", "Density on {}", "density"),
    "coverage-real": _share("data", "Coverage of {}", "coverage"),
}

_LEGEND = {
    "pairs": "Bold: surely better than every other of its column, seed by seed (97.5%). Italic: the best of its column "
    "and what cannot be told from it.",
    "chance": "Bold: better than every other of its column, their 95% intervals apart. Italic: the best of its column "
    "and what cannot be told from it.",
    "": "",
}


@dataclass(frozen=True)
class Entry:
    """One number: its text, and ``"best"`` (surely, of its column), ``"near"`` (may be the best), or neither."""

    text: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Matrix:
    """A measure of all solvers at all NFE.

    Attributes:
        title: of the measure.
        nfes: columns.
        rows: label and an entry a column.
        teacher: the teacher's own number, with its NFE, where it says something.
        told_by: what solvers are told apart by: ``"pairs"`` of the same seeds, ``"chance"`` where there is only an
            interval of each, or nothing: then none is marked.
    """

    title: str
    nfes: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Entry]]]
    teacher: str = ""
    told_by: Literal["pairs", "chance", ""] = ""

    @property
    def notes(self) -> list[str]:
        """What people have to know to read the table, a line each."""
        bracketed = any("[" in entry.text for _, entries in self.rows for entry in entries)
        shown = {
            _LEGEND[self.told_by]: bool(self.told_by),
            BRACKETS: bracketed,
            f"The teacher: {self.teacher}.": bool(self.teacher),
        }
        return [note for note, applies in shown.items() if applies]


def matrix(cells: Sequence[Cell], measure: Measure) -> Matrix | None:
    """Return a measure of cells, or nothing where none was measured by it.

    The best of a column is marked as that only where it is surely better than every other; else it and all that cannot
    be told from it are marked alike. Without a way to tell, nothing is marked.

    Args:
        cells: of a comparison, the teacher's among them.
        measure: what to tell.
    """
    shown = [cell for cell in cells if cell.family != "teacher"]
    if all(cell.comparison is None or measure.read(cell.comparison) is None for cell in shown):
        return None
    nfes = sorted({cell.nfe for cell in shown})
    marks: dict[int, str] = {}
    for nfe in nfes:
        marks |= _marks([cell for cell in shown if cell.nfe == nfe], measure)
    entries = {(cell.label, cell.nfe): Entry(_text(cell, measure), marks.get(id(cell), "")) for cell in shown}
    labels = list(dict.fromkeys(cell.label for cell in shown))
    rows = [(label, [entries.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
    told_by = _told_by(measure) if marks else ""
    return Matrix(measure.title, nfes, rows, _teacher(cells, measure), told_by)


def differences(cells: Sequence[Cell], spec: str, measure: Measure) -> Matrix | None:
    """Return how much larger each squared error is than one solver's, sample by sample; nothing without that solver.

    Args:
        cells: of a comparison.
        spec: of the solver that others are held against.
        measure: of squared errors, for its scale.
    """
    base = {cell.nfe: cell for cell in cells if cell.spec == spec and cell.comparison is not None}
    shown = [
        cell
        for cell in cells
        if cell.family != "teacher" and cell.spec != spec and cell.nfe in base and cell.comparison is not None
    ]
    if not shown:
        return None
    nfes, entries = sorted({cell.nfe for cell in shown}), {}
    for cell in shown:
        mean, half = mean_interval(cell.errors.double() - base[cell.nfe].errors.double())
        entries[cell.label, cell.nfe] = Entry(
            f"{'+' if mean >= 0 else ''}{measure.shown(mean)} ± {measure.shown(half, mean)}"
        )
    labels = list(dict.fromkeys(cell.label for cell in shown))
    rows = [(label, [entries.get((label, nfe), Entry()) for nfe in nfes]) for label in labels]
    (label, *_) = (cell.label for cell in base.values())
    return Matrix(f"Squared error less that of {label}, sample by sample, x 1000", nfes, rows)


def _text(cell: Cell, measure: Measure) -> str:
    return "diverged" if cell.comparison is None else measure.text(cell.comparison)


def _told_by(measure: Measure) -> Literal["pairs", "chance"]:
    return "pairs" if measure.losses is not None else "chance"


def _marks(column: Sequence[Cell], measure: Measure) -> dict[int, str]:
    """The mark of each cell of a column that may be its best, by ``id``."""
    known = {id(cell): _value(cell, measure) for cell in column}
    ranked = sorted(
        (cell for cell in column if math.isfinite(known[id(cell)])), key=lambda cell: known[id(cell)]
    )
    if not measure.better or len(ranked) < 2 or not _can_tell(ranked[0], measure):
        return {}
    best, *others = ranked
    near = [cell for cell in others if not _surely_better(best, cell, measure)]
    return {id(best): "near" if near else "best", **{id(cell): "near" for cell in near}}


def _value(cell: Cell, measure: Measure) -> float:
    """The number to rank by, smaller is better; infinite where there is none."""
    value = None if cell.comparison is None else measure.read(cell.comparison)
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if measure.better == "larger" else value


def _can_tell(cell: Cell, measure: Measure) -> bool:
    return measure.losses is not None or (
        cell.comparison is not None and measure.chance(cell.comparison) is not None
    )


def _surely_better(best: Cell, other: Cell, measure: Measure) -> bool:
    """Whether one solver is better than another by more than chance: pair by pair, or by intervals that are apart."""
    if measure.losses is not None:
        return surely_positive(measure.losses(other.errors.double()) - measure.losses(best.errors.double()))
    interval, other_interval = (
        None if c.comparison is None else measure.chance(c.comparison) for c in (best, other)
    )
    if interval is None or other_interval is None:
        return False
    return interval[0] > other_interval[1] if measure.better == "larger" else interval[1] < other_interval[0]


def _teacher(cells: Sequence[Cell], measure: Measure) -> str:
    """The teacher is at no distance from itself, which tells nothing; its distance to data does."""
    for cell in cells:
        if cell.family == "teacher" and cell.comparison is not None:
            whole = measure.text(cell.comparison)
            to_data = "data" in measure.title or "real" in measure.title
            return f"{whole} ({cell.what}, {cell.nfe} calls)" if whole and to_data else ""
    return ""


def csv_text(cells: Sequence[Cell]) -> str:
    """Return all cells with every measure, unscaled, and the ends of its interval where it has one."""
    kept = ("spec", "label", "family", "nfe", "what", "evaluations", "stopped", "seconds")
    columns = [*kept, "samples"]
    for name in MEASURES:
        columns += [name, f"{name} low", f"{name} high"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, "command"])
    for cell in cells:
        row: list[object] = [getattr(cell, name) for name in kept]
        row.append("" if cell.comparison is None else cell.comparison.samples)
        for measure in MEASURES.values():
            value = None if cell.comparison is None else measure.read(cell.comparison)
            ends = None if cell.comparison is None else measure.interval(cell.comparison)
            row += [value, *(ends or ("", ""))]
        writer.writerow(map(csv_cell, [*row, cell.command]))
    return file.getvalue()
