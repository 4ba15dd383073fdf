"""What a comparison tells of a cell, by name: how it is read, how sure it is, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gas.compare import Comparison
from gas.metrics import Distribution

__all__ = ["MEASURES", "Measure"]

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
        scale: factor to show it in.
        digits: after the point.
    """

    title: str
    read: Callable[[Comparison], float | None]
    interval: Callable[[Comparison], Interval | None] = lambda c: None
    better: Better = "smaller"
    scale: float = 1.0
    digits: int = 3

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
            return f"{shown} ± {self.shown((high - low) / 2)}"
        return f"{shown} [{self.shown(low)}, {self.shown(high)}]"

    def shown(self, value: float) -> str:
        """Return one number for people."""
        return f"{self.scale * value:.{self.digits}f}"


def _mse(c: Comparison) -> Interval:
    return c.mse - c.mse_half_width, c.mse + c.mse_half_width


def _of(
    whom: str, title: str, number: Callable[[Distribution], float | None], better: Better = "smaller"
) -> Measure:
    def found(c: Comparison) -> Distribution | None:
        told: Distribution | None = getattr(c, f"to_{whom}")
        return told

    def read(c: Comparison) -> float | None:
        seen = found(c)
        return None if seen is None else number(seen)

    def interval(c: Comparison) -> Interval | None:
        seen = found(c)
        # Samples of the teacher's own noise are no independent ones: resampling one side says nothing of chance.
        if seen is None or whom == "teacher" or not title.startswith("Frechet"):
            return None
        return seen.frechet_interval

    people = "the teacher's samples" if whom == "teacher" else "real images"
    return Measure(f"{title} {people}", read, interval, better)


def _judged(name: str, title: str, better: Better, digits: int) -> Measure:
    """A mean over samples of what a published network says of each."""

    def interval(c: Comparison) -> Interval | None:
        value, half_width = c.more.get(name, (None, 0.0))
        return None if value is None else (value - half_width, value + half_width)

    return Measure(title, lambda c: c.more.get(name, (None, 0.0))[0], interval, better, digits=digits)


def _share(name: str) -> Callable[[Distribution], float | None]:
    return lambda found: None if found.prdc is None else float(getattr(found.prdc, name))


MEASURES: dict[str, Measure] = {
    "mse": Measure("Mean squared error to the teacher, x 1000", lambda c: c.mse, _mse, scale=1e3),
    "l1": Measure("Mean absolute error to the teacher, x 1000", lambda c: c.l1, scale=1e3),
    "psnr": Measure("PSNR to the teacher, dB", lambda c: c.psnr, better="larger", digits=2),
    "lpips": _judged("lpips", "LPIPS to the teacher", "smaller", 4),
    "clip-score": _judged("clip-score", "CLIP score of the prompts", "larger", 2),
    "frechet-data": Measure(
        "Frechet distance to the data's statistics",
        lambda c: c.frechet_data,
        lambda c: c.frechet_data_interval,
    ),
    "frechet": _of("teacher", "Frechet distance to", lambda d: d.frechet),
    "kernel": _of("teacher", "Kernel distance to", lambda d: d.kernel),
    "precision": _of("teacher", "Precision on", _share("precision"), better="larger"),
    "recall": _of("teacher", "Recall of", _share("recall"), better="larger"),
    "density": _of("teacher", "Density on", _share("density"), better=""),
    "coverage": _of("teacher", "Coverage of", _share("coverage"), better="larger"),
    "frechet-real": _of("data", "Frechet distance to", lambda d: d.frechet),
    "kernel-real": _of("data", "Kernel distance to", lambda d: d.kernel),
    "precision-real": _of("data", "Precision on", _share("precision"), better="larger"),
    "recall-real": _of("data", "Recall of", _share("recall"), better="larger"),
    "density-real": _of("data", "Density on", _share("density"), better=""),
    "coverage-real": _of("data", "Coverage of", _share("coverage"), better="larger"),
}
