"""Run several solvers from the same noise and measure them against the teacher and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from gas.errors import UserError
from gas.metrics import paired
from gas.metrics.distances import Distribution, distribution, frechet_interval
from gas.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from gas.metrics.statistics import extract_all
from gas.pairs.dataset import Pairs

__all__ = ["Comparison", "Yardstick", "compare"]

# Samples whose features are taken at once; several processes share such parts.
_FEATURES = 256


@dataclass(frozen=True)
class Comparison:
    """One solver on given pairs.

    Attributes:
        name: of the solver.
        nfe: network evaluations a sample.
        mse: mean squared error to the teacher, and half the width of its 95% interval.
        l1: mean absolute error to the teacher.
        psnr: mean over samples of their peak signal-to-noise ratio to the teacher in dB; none where the model's data
            has no range, or a sample is the teacher's own.
        frechet_data: Frechet distance to real data, where the model has statistics of it.
        frechet_data_interval: 95% interval around ``frechet_data_corrected``.
        to_teacher: distances to the distribution of the teacher's samples, where the model has features.
        to_data: the same to real images, where they were given; statistics alone tell no more than ``frechet_data``.
        samples: pairs measured on.
        more: by name, what :attr:`Yardstick.judges` say: mean over samples, and half the width of its 95% interval.
        mse_median: median over samples of their squared errors, which the few worst samples do not decide.
        frechet_data_corrected: ``frechet_data`` without its bias in the number of samples; none of fewer than 4.
    """

    name: str
    nfe: int
    mse: float
    mse_half_width: float
    l1: float
    psnr: float | None
    frechet_data: float | None
    frechet_data_interval: tuple[float, float] | None
    to_teacher: Distribution | None
    samples: int
    to_data: Distribution | None = None
    more: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    mse_median: float | None = None
    frechet_data_corrected: float | None = None


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What samples are measured against, its features taken once for all that are measured.

    Args:
        pairs: the teacher's.
        features: ``(B, *) -> (B, F)``, the space that distributions are compared in; without it they are not.
        reference: statistics of real data in that space.
        real: features ``(R, F)`` of real data, for what statistics cannot tell.
        judges: by name, ``(samples, pairs) -> (S,)``: what else is told of each sample, as a mean.
        data_range: largest minus smallest value that data takes, as :func:`gas.models.data_range_of` says of a model:
            that of PSNR, which is left out without it.
    """

    pairs: Pairs
    features: Callable[[Tensor], Tensor] | None = None
    reference: FeatureStatistics | None = None
    real: Tensor | None = None
    judges: Mapping[str, Callable[[Tensor, Pairs], Tensor]] = field(default_factory=dict)
    data_range: float | None = None

    @cached_property
    def _teacher(self) -> Tensor:
        return self._seen(self.pairs.target)

    def _seen(self, x: Tensor) -> Tensor:
        if self.features is None:
            raise UserError("a Yardstick needs features to compare distributions in")
        return extract_all(self.features, x.split(_FEATURES))

    def measure(self, name: str, made: Tensor, nfe: int) -> Comparison:
        """Measure samples against the teacher's, pair by pair and as a distribution.

        Args:
            name: what the solver is called.
            made: its samples ``(S, *)`` of the pairs' noise, as :func:`run` returns them.
            nfe: network evaluations that a sample took.

        Raises:
            ValueError: when the shapes disagree.
        """
        pairs = self.pairs
        errors = paired.mse(made, pairs.target)
        error, half_width = paired.mean_interval(errors)
        distance, corrected, interval, to_teacher, to_data = None, None, None, None, None
        if self.features is not None:
            seen = self._seen(made)
            to_teacher = distribution(seen, self._teacher, paired=True)
            if self.reference is not None:
                distance = frechet_distance(feature_statistics(seen), self.reference)
                corrected, interval = frechet_interval(seen, self.reference)
            if self.real is not None:
                to_data = distribution(seen, self.real)
        return Comparison(
            name=name,
            nfe=nfe,
            mse=error,
            mse_half_width=half_width,
            l1=float(paired.l1(made, pairs.target).mean()),
            psnr=paired.mean_psnr(errors, self.data_range),
            frechet_data=distance,
            frechet_data_interval=interval,
            to_teacher=to_teacher,
            samples=len(pairs),
            to_data=to_data,
            more={name: paired.mean_interval(judge(made, pairs)) for name, judge in self.judges.items()},
            mse_median=float(errors.median()),
            frechet_data_corrected=corrected,
        )


def compare(
    name: str,
    made: Tensor,
    pairs: Pairs,
    nfe: int,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    reference: FeatureStatistics | None = None,
    data_range: float | None = None,
) -> Comparison:
    """Measure the samples of one solver; of several, by one :class:`Yardstick`, whose arguments these are."""
    return Yardstick(pairs, features, reference, data_range=data_range).measure(name, made, nfe)
