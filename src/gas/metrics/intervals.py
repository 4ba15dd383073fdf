"""Confidence intervals: over samples (bootstrap, jackknife) and over training seeds (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.errors import UserError

__all__ = ["Bootstrap", "bootstrap", "jackknife", "seed_interval"]

# A statistic of fewer rows than this cannot be told from its noise.
_LEAST = 4


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """A statistic of a sample and of its resamples.

    Args:
        estimate: the statistic ``d`` of the sample.
        replicates: ``(R,)`` float64, the statistic ``d*`` of each resample.
        level: coverage of the intervals.
    """

    estimate: float
    replicates: Tensor
    level: float

    @property
    def percentile(self) -> tuple[float, float]:
        """The quantiles ``(q_lo, q_hi)`` of ``d*``: for a statistic without bias in the number of samples."""
        tail = (1 - self.level) / 2
        low, high = self.replicates.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return low, high

    @property
    def basic(self) -> tuple[float, float]:
        """The centered interval ``(2 d - q_hi, 2 d - q_lo)``: for a biased statistic, as a Fréchet distance."""
        low, high = self.percentile
        return 2 * self.estimate - high, 2 * self.estimate - low

    @property
    def bias(self) -> float:
        """``mean d* - d``, which estimates how far ``d`` itself is above the truth on average."""
        return float(self.replicates.mean()) - self.estimate

    @property
    def std(self) -> float:
        """The standard deviation of ``d*``, which estimates the standard error of ``d``."""
        return float(self.replicates.std())


def bootstrap(
    statistic: Callable[[Tensor], float | Tensor],
    features: Tensor,
    *,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Return a statistic of a sample and of its bootstrap resamples.

    ``d = statistic(features)`` and ``d*_r = statistic(features[i_1..i_S])`` with rows drawn with replacement.
    The spread of ``d*`` about ``d`` stands for that of ``d`` about the truth.

    The Fréchet distance of S samples is too large, by about ``1 / S``; a resample is to the sample as
    the sample is to the law, so ``d*`` is too large once more, by about the same. Its percentile interval sits
    two biases above the truth and can miss it always. The basic interval mirrors ``d*`` at ``d``, which takes
    both away, and need not hold ``d`` itself: :func:`jackknife` gives an estimate without the bias and the interval
    around it. To compare two solvers, compare equal S and seeds instead: the biases cancel.

    Resampling repeats rows. A statistic that compares rows of this sample with each other takes a repeat for
    a close neighbor: a kernel distance loses its unbiasedness, the recall of resampled samples and
    the precision, density and coverage against resampled data drop. No interval repairs that.

    Args:
        statistic: one number for rows ``(S, *)``, for instance
            ``lambda f: frechet_distance(feature_statistics(f), reference)``.
        features: ``(S, *)``, one row a sample, S >= 2.
        resamples: number R of resamples, at least 2; the ends of an interval need a few hundred.
        seed: of the resampling; the rows drawn are the same on every device.
        level: coverage of the intervals, within (0, 1).

    Returns:
        The estimate, with both intervals. A resample whose statistic is not finite is not hidden: it shows.

    Raises:
        ValueError: for fewer than two rows or resamples, a level outside (0, 1), or a statistic that is not
            one number.

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 10 (bias) and 13
        (percentile); Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 5.2 (basic).

    >>> result = bootstrap(torch.mean, torch.arange(10.0), resamples=500)
    >>> result.estimate, result.percentile[0] < 4.5 < result.percentile[1]
    (4.5, True)
    """
    if features.ndim == 0 or len(features) < 2:
        raise UserError(f"features must hold at least 2 rows (S, *), got shape {tuple(features.shape)}")
    if resamples < 2:
        raise UserError(f"resamples must be at least 2, and a few hundred for an interval, got {resamples}")
    _require_level(level)
    generator = torch.Generator().manual_seed(seed)
    estimate = _number(statistic(features))
    replicates = torch.empty(resamples, dtype=torch.float64)
    for r in range(resamples):
        rows = torch.randint(len(features), (len(features),), generator=generator)
        replicates[r] = _number(statistic(features[rows.to(features.device)]))
    return Bootstrap(estimate, replicates, level)


def jackknife(
    statistic: Callable[[Tensor], float | Tensor],
    count: int,
    *,
    groups: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a statistic without its bias in the number of samples, and the half width of its interval.

    Rows are divided at random into G groups of equal size. With ``d`` the statistic of all rows and ``d_g`` that of
    all but group g, the estimate is ``G d - (G - 1) mean_g d_g``, which removes a bias proportional to ``1 / S``,
    and the half width is ``t sqrt((G - 1) / G sum_g (d_g - mean d_g)^2)`` with Student's t of ``G - 1`` degrees of
    freedom. The variance is too large on average rather than too small (Efron and Stein), most where the statistic is
    degenerate, as a distance between equal laws is. No row is ever repeated, unlike in :func:`bootstrap`.

    Args:
        statistic: one number for the indices ``(K,)`` of the rows that are left.
        count: number S of rows, at least 4.
        groups: number G of groups, at least 2; 20 of them cost 21 evaluations of the statistic, and t is 2.09.
        seed: of the division.
        level: coverage, within (0, 1).

    Raises:
        ValueError: for fewer than four rows or two groups, a level outside (0, 1), or a statistic that is not one
            number.

    References:
        Quenouille, Biometrika 43 (1956); Efron and Stein, Annals of Statistics 9 (1981); Shao and Wu, Annals of
        Statistics 17 (1989), for groups.

    >>> x = torch.arange(10.0)
    >>> estimate, half_width = jackknife(lambda rows: x[rows].var(correction=0), 10, groups=10)  # biased by 9/10
    >>> round(estimate, 3), round(float(x.var()), 3)
    (9.167, 9.167)
    """
    if count < _LEAST or groups < 2:
        raise UserError(f"a jackknife needs at least 4 rows and 2 groups, got {count} and {groups}")
    _require_level(level)
    # Two rows at least have to be left, which a covariance needs; of eight rows on, all but one are enough.
    groups = min(groups, count if count >= 2 * _LEAST else count // 2)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    left = torch.empty(groups, dtype=torch.float64)
    for g, group in enumerate(order.tensor_split(groups)):
        rest = torch.ones(count, dtype=torch.bool)
        rest[group] = False
        left[g] = _number(statistic(rest.nonzero().flatten()))
    estimate = groups * _number(statistic(torch.arange(count))) - (groups - 1) * float(left.mean())
    error = math.sqrt((groups - 1) / groups * float((left - left.mean()).square().sum()))
    return estimate, _student_quantile(level, groups - 1) * error


def seed_interval(values: Tensor | Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean over training seeds and the half width of its confidence interval: ``t s / sqrt(n)``.

    ``s^2`` is the unbiased variance and ``t`` the quantile ``(1 + level) / 2`` of Student's t with ``n - 1``
    degrees of freedom, which for a few seeds is much wider than normal theory: 4.30 against 1.96 for three.

    Args:
        values: ``(n,)`` numbers, one a training run, n >= 2. A value that is not finite is not hidden: it
            makes the half width NaN.
        level: coverage, within (0, 1).

    Returns:
        ``(mean, half_width)``.

    Raises:
        ValueError: for fewer than two values, another shape, or a level outside (0, 1).

    References:
        Student, Biometrika 6 (1908).

    >>> mean, half_width = seed_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half_width, 3)
    (2.0, 2.484)
    """
    numbers = torch.as_tensor(values, dtype=torch.float64).detach()
    if numbers.ndim != 1 or len(numbers) < 2:
        raise UserError(
            f"values must be a vector of at least two numbers, one a seed, got shape {tuple(numbers.shape)}"
        )
    _require_level(level)
    t = _student_quantile(level, len(numbers) - 1)
    return float(numbers.mean()), t * float(numbers.std()) / math.sqrt(len(numbers))


def _student_quantile(level: float, freedom: int) -> float:
    """Return ``t`` with ``P(|T| <= t) = level``, by bisection over the angle ``atan(t / sqrt(freedom))``."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _student_within(angle: float, freedom: int) -> float:
    """Return ``P(|T| <= sqrt(freedom) tan(angle))``, a finite sum for whole degrees of freedom.

    References:
        Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 (odd) and 26.7.4 (even).
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for j in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * j / (j + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _number(value: float | Tensor) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UserError(f"statistic must return one number, got shape {tuple(value.shape)}; reduce it")
    return float(value)


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level must lie within (0, 1), for instance 0.95, got {level}")
