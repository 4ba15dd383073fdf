"""Two sets of features compared in every way we know, with how sure each number is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gas.metrics.bootstrap import bootstrap
from gas.metrics.coverage import PRDC, prdc
from gas.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from gas.metrics.kernel import kernel_distance

__all__ = ["BRACKETS", "Distribution", "distribution", "frechet_interval"]

# What people have to know to read such intervals.
BRACKETS = (
    "The Frechet distance of few samples is too large. The interval in brackets (95%) has that taken away, and may lie "
    "below the distance."
)

_NEIGHBOURS = 5
_SUBSET = 1000
_SUBSETS = 50


@dataclass(frozen=True)
class Distribution:
    """How far samples are from a reference as a distribution.

    Args:
        frechet: Frechet distance, with the bias of its number of samples.
        frechet_interval: 95% interval of the distance, the bias taken away (:attr:`gas.metrics.Bootstrap.basic`), so
            that it may lie below ``frechet``; it stands for the samples' share of the chance, not the reference's.
        kernel: unbiased kernel distance (KID where features are Inception's).
        kernel_std: its standard error ``s sqrt(m / (n - m))``, from the standard deviation s over subsets of m of the
            n samples, which drawn without replacement vary by ``1/m - 1/n`` of what one sample does; where both laws
            are the same it is too large.
        prdc: precision, recall, density and coverage at k = 5, on the first samples of the larger set, as many as the
            smaller has: they depend on both counts. None with 5 samples or fewer.
    """

    frechet: float
    frechet_interval: tuple[float, float]
    kernel: float
    kernel_std: float
    prdc: PRDC | None


def frechet_interval(
    features: Tensor, reference: FeatureStatistics, *, resamples: int = 100
) -> tuple[float, tuple[float, float]]:
    """Return the Frechet distance of features ``(S, F)`` to a reference and its basic 95% bootstrap interval."""
    found = bootstrap(
        lambda rows: frechet_distance(feature_statistics(rows), reference), features, resamples=resamples
    )
    low, high = found.basic
    return found.estimate, (max(0.0, low), max(0.0, high))


def distribution(fake: Tensor, real: Tensor, *, resamples: int = 100) -> Distribution:
    """Compare features of samples ``(M, F)`` with those of a reference ``(N, F)``.

    Args:
        fake: of the samples, M >= 2.
        real: of the teacher or of real data, N >= 2.
        resamples: of the bootstrap.

    Raises:
        ValueError: for features that are not two finite matrices of one width.
    """
    reference, fewer = feature_statistics(real), min(len(fake), len(real))
    size = min(_SUBSET, max(2, fewer // 2))
    kernel = kernel_distance(fake, real, subset_size=size, subsets=_SUBSETS)
    return Distribution(
        *frechet_interval(fake, reference, resamples=resamples),
        kernel.estimate,
        kernel.std * math.sqrt(size / max(1, fewer - size)),
        prdc(fake[:fewer], real[:fewer], k=_NEIGHBOURS) if fewer > _NEIGHBOURS else None,
    )
