"""Confidence intervals: of a mean (normal theory, Student's t), a median, and a biased statistic (jackknife)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import torch
from scipy.special import bdtr, stdtrit
from torch import Tensor

from gas.errors import UserError

# A statistic of fewer rows than this cannot be told from its noise.
_LEAST = 4


def jackknife(
    statistic: Callable[[Tensor], float | Tensor], count: int, *, groups: int = 20
) -> tuple[float, float]:
    """Return a statistic without its bias in the number of samples, and the half width of its 95% interval.

    Rows are divided at random into G groups of equal size. With ``d`` the statistic of all rows and ``d_g`` that of
    all but group g, the estimate is ``G d - (G - 1) mean_g d_g``, which removes a bias proportional to ``1 / S``,
    and the half width is ``t sqrt((G - 1) / G sum_g (d_g - mean d_g)^2)`` with Student's t of ``G - 1`` degrees of
    freedom. The variance is too large on average rather than too small (Efron and Stein), most where the statistic is
    degenerate, as a distance between equal laws is.

    Args:
        statistic: one number for the indices ``(K,)`` of the rows that are left.
        count: number S of rows, at least 4.
        groups: number G of groups, at least 2; 20 of them cost 21 evaluations of the statistic, and t is 2.09.

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
    # Two rows at least have to be left, which a covariance needs; of eight rows on, all but one are enough.
    groups = min(groups, count if count >= 2 * _LEAST else count // 2)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    left = torch.empty(groups, dtype=torch.float64)
    for g, group in enumerate(order.tensor_split(groups)):
        rest = torch.ones(count, dtype=torch.bool)
        rest[group] = False
        left[g] = float(statistic(rest.nonzero().flatten()))
    estimate = groups * float(statistic(torch.arange(count))) - (groups - 1) * float(left.mean())
    error = math.sqrt((groups - 1) / groups * float((left - left.mean()).square().sum()))
    return estimate, float(stdtrit(groups - 1, 0.975)) * error


def seed_interval(values: Tensor | Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean over training seeds and the half width of its confidence interval: ``t s / sqrt(n)``.

    ``s^2`` is the unbiased variance and ``t`` the quantile ``(1 + level) / 2`` of Student's t (Biometrika 6, 1908) with
    ``n - 1`` degrees of freedom, much wider for a few seeds than normal theory: 4.30 against 1.96 for three.

    Args:
        values: ``(n,)`` numbers, n >= 2; one that is not finite makes the half width NaN.
        level: coverage, within (0, 1).

    >>> mean, half_width = seed_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half_width, 3)
    (2.0, 2.484)
    """
    return _interval(values, level, lambda n, p: float(stdtrit(n - 1, p)))


def mean_interval(values: Tensor | Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return a mean and the half width of its confidence interval: ``z s / sqrt(n)``, as :func:`seed_interval`.

    ``z`` is the normal quantile of ``(1 + level) / 2``, for the tens of independent samples and more that paired errors
    come in.

    >>> mean, half_width = mean_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half_width, 3)
    (2.0, 1.132)
    """
    return _interval(values, level, lambda _, p: NormalDist().inv_cdf(p))


def median_interval(
    values: Tensor | Sequence[float], level: float = 0.95
) -> tuple[float, tuple[float, float] | None]:
    """Return a median and its confidence interval, which holds for every continuous distribution.

    The interval lies between the k-th smallest and the k-th largest of n independent values, with the largest k for
    which ``P(Binomial(n, 1/2) < k) <= (1 - level) / 2`` (David and Nagaraja, Order Statistics, 2003, section 7.1). Too
    few values have none: 0.95 needs six.

    >>> median_interval([float(x) for x in range(1, 11)])
    (5.5, (2.0, 9.0))
    >>> median_interval([1.0, 2.0, 4.0])
    (2.0, None)
    """
    numbers = _numbers(values, level).sort().values
    count = len(numbers)
    median = float(numbers[(count - 1) // 2] + numbers[count // 2]) / 2
    k = int((bdtr(np.arange(count // 2), count, 0.5) <= (1 - level) / 2).sum())
    return median, (float(numbers[k - 1]), float(numbers[-k])) if k else None


def _interval(
    values: Tensor | Sequence[float], level: float, quantile: Callable[[int, float], float]
) -> tuple[float, float]:
    numbers = _numbers(values, level)
    z = quantile(len(numbers), (1 + level) / 2)
    return float(numbers.mean()), z * float(numbers.std()) / math.sqrt(len(numbers))


def _numbers(values: Tensor | Sequence[float], level: float) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).detach()
    if numbers.ndim != 1 or len(numbers) < 2:
        raise UserError(f"values must be a vector of at least two numbers, got shape {tuple(numbers.shape)}")
    if not 0 < level < 1:
        raise UserError(f"level must lie within (0, 1), for instance 0.95, got {level}")
    return numbers
