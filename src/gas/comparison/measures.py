"""What a comparison tells of a cell, by name: how it is read, how sure it is, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gas.compare import Comparison
from gas.display import significant
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
