"""All distances between two sets of features, with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gas.errors import UserError
from gas.metrics.coverage import PRDC, prdc
from gas.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from gas.metrics.intervals import jackknife
from gas.metrics.kernel import kernel_distance

# The note under every table that shows intervals in brackets.
BRACKETS = (
    "Frechet distances with an interval in brackets (95%, jackknife) are corrected for the bias of few samples, which "
    "makes the plain Frechet distance (FID as published) too large; below 3 samples a feature there is none."
)

# Least number of samples, and of samples per feature, for the jackknife. It removes the bias of order 1/S only; below,
# the rest shows: 64 samples of 200 features, from the reference's own law, get a distance of 96 [88, 103].
_LEAST = 4
_LEAST_A_FEATURE = 3

# k = 5 as in Naeem et al.; subsets of 1,000 as in Binkowski et al.
_NEIGHBORS = 5
_SUBSET = 1000
_SUBSETS = 50


@dataclass(frozen=True)
class Distribution:
    """Distances between the distributions of samples and a reference.

    Args:
        frechet: Frechet distance as published (FID's formula), biased upwards in the number of samples.
        kernel: unbiased kernel distance (KID where features are Inception's).
        kernel_std: its standard error ``s sqrt(m / (n - m))``, from the standard deviation s over subsets of m of the
            n samples, which drawn without replacement vary by ``1/m - 1/n`` of what one sample does; where both laws
            are the same it is too large.
        prdc: precision, recall, density and coverage at k = 5, on the first samples of the larger set, as many as the
            smaller has: they depend on both counts. None with 5 samples or fewer.
        frechet_corrected: the distance without that bias (:func:`frechet_interval`); ``None`` below 4 samples, or 3 per
            feature.
        frechet_interval: 95% interval around ``frechet_corrected``. It covers the sampling error of the samples, and
            that of the reference only where both are pairs.
    """

    frechet: float
    kernel: float
    kernel_std: float
    prdc: PRDC | None
    frechet_corrected: float | None = None
    frechet_interval: tuple[float, float] | None = None


def frechet_interval(
    features: Tensor, reference: FeatureStatistics | Tensor
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the Frechet distance without its bias in the number of samples, and the 95% interval around it.

    Both are the jackknife's (:func:`gas.metrics.jackknife`), cut off at zero, where no distance is less: the estimate
    always lies within the interval. The bias is removed to first order in ``1 / S``.

    Args:
        features: ``(S, F)`` of the samples. Both are ``None`` with ``S < 4`` or ``S < 3 F``, where the jackknife fails.
        reference: statistics, taken as exact; or features ``(S, F)`` of the teacher's samples of
            the same noise, row by row, which are left out together with their partners.
    """
    if len(features) < max(_LEAST, _LEAST_A_FEATURE * features.shape[1]):
        return None, None

    def distance(rows: Tensor) -> float:
        other = reference if isinstance(reference, FeatureStatistics) else feature_statistics(reference[rows])
        return frechet_distance(feature_statistics(features[rows]), other)

    estimate, half_width = jackknife(distance, len(features))
    return max(0.0, estimate), (max(0.0, estimate - half_width), max(0.0, estimate + half_width))


def distribution(fake: Tensor, real: Tensor, *, paired: bool = False) -> Distribution:
    """Compare features of samples ``(M, F)`` with those of the teacher or of real data ``(N, F)``, M and N at least 2.

    ``paired`` says that row k of both comes from the same noise, as a solver's and its teacher's samples do. They are
    not independent then, and the interval of the Frechet distance leaves them out together.

    Raises:
        UserError: for features that are not two finite matrices of one width, or pairs of unequal number.
    """
    if paired and len(fake) != len(real):
        raise UserError(f"paired features must be as many, row by row, got {len(fake)} and {len(real)}")
    reference, fewer = feature_statistics(real), min(len(fake), len(real))
    size = min(_SUBSET, max(2, fewer // 2))
    kernel = kernel_distance(fake, real, subset_size=size, subsets=_SUBSETS)
    corrected, interval = frechet_interval(fake, real if paired else reference)
    return Distribution(
        frechet=frechet_distance(feature_statistics(fake), reference),
        kernel=kernel.estimate,
        kernel_std=kernel.std * math.sqrt(size / max(1, fewer - size)),
        prdc=prdc(fake[:fewer], real[:fewer], k=_NEIGHBORS) if fewer > _NEIGHBORS else None,
        frechet_corrected=corrected,
        frechet_interval=interval,
    )
