"""Kernel distance (KID) between two sets of features: an estimate without bias in the number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.errors import UserError

# A block of 8 MiB in float64: large enough for a fast product, small beside the features themselves.
_BLOCK = 2**20


@dataclass(frozen=True)
class KernelDistance:
    """Squared maximum mean discrepancy of two sets of features, from all samples and from subsets.

    Args:
        estimate: the unbiased estimate from all samples; zero in expectation for one law, hence also negative.
        mean: the mean of the same estimate over random subsets, which is how KID is usually reported.
        std: its unbiased standard deviation over those subsets: the noise of an estimate from ``subset_size``
            samples. It is not the error of ``estimate``, which is smaller, nor of ``mean``: subsets overlap.
    """

    estimate: float
    mean: float
    std: float


def kernel_distance(
    fake: Tensor,
    real: Tensor,
    *,
    degree: int = 3,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Return the kernel distance of two sets of features (KID where the features are Inception's).

    ``sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (n (n - 1))
    - 2 sum_{ij} k(x_i, y_j) / (m n)`` with ``k(x, y) = (x . y / F + 1)^degree``, in float64.

    Unlike the Fréchet distance it has no bias in the number of samples, so that numbers from unequal counts
    may be compared. It is not invariant to a shift of the features: the kernel has an origin.

    Args:
        fake: ``(M, F)`` features of samples, M >= 2.
        real: ``(N, F)`` features of the data, N >= 2, moved to the device of ``fake``.
        degree: of the polynomial kernel, at least 1; it sees differences in moments up to this one.
        subsets: number of random subsets, at least 2.
        subset_size: samples drawn from each set for a subset, without replacement, from 2 to min(M, N).
        seed: of the choice of subsets; the choice is the same on every device.

    Raises:
        UserError: for features that are not two finite matrices of one width, or an argument out of range.

    References:
        Binkowski et al., arXiv 1801.01401, section 4 (kernel, subsets); Gretton et al., JMLR 13 (2012),
        equation 3 (the unbiased estimate).

    >>> fake, real = torch.zeros(2, 1), torch.ones(2, 1)
    >>> kernel_distance(fake, real, subsets=2, subset_size=2).estimate  # 1 + 8 - 2
    7.0
    """
    fake, real = feature_sets(fake, real, least=2)
    most = min(len(fake), len(real))
    if degree < 1:
        raise UserError(f"degree must be at least 1, as a constant kernel tells nothing apart, got {degree}")
    if subsets < 2:
        raise UserError(f"subsets must be at least 2 for a standard deviation, got {subsets}")
    if not 2 <= subset_size <= most:
        raise UserError(
            f"subset_size must be from 2 to {most}, the samples of the smaller set, got {subset_size}; "
            "pass a smaller one, or more samples"
        )
    generator = torch.Generator().manual_seed(seed)
    draws = torch.empty(subsets, dtype=torch.float64)
    for s in range(subsets):
        x, y = (
            f[torch.randperm(len(f), generator=generator)[:subset_size].to(f.device)] for f in (fake, real)
        )
        draws[s] = _unbiased(x, y, degree)
    return KernelDistance(_unbiased(fake, real, degree), float(draws.mean()), float(draws.std()))


def feature_sets(fake: Tensor, real: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return features ``(M, F)`` and ``(N, F)``, at least ``least``, in float64 on the device of ``fake``."""
    for name, value in (("fake", fake), ("real", real)):
        if value.ndim != 2 or value.shape[1] == 0:
            raise UserError(
                f"{name} must have shape (S, F), one vector a sample, got {tuple(value.shape)}; "
                "flatten or pool the features of a sample"
            )
        if len(value) < least:
            raise UserError(f"{name} must hold at least {least} samples, got {len(value)}; draw more")
        bad = int((~value.isfinite()).any(dim=1).sum())
        if bad:
            raise UserError(f"{name} must be finite, got {bad} samples that are not; drop diverged ones")
    if fake.shape[1] != real.shape[1]:
        raise UserError(
            "fake and real must come from one feature network, got "
            f"{fake.shape[1]} and {real.shape[1]} features"
        )
    return fake.detach().to(torch.float64), real.detach().to(fake.device, torch.float64)


def _unbiased(x: Tensor, y: Tensor, degree: int) -> float:
    # Without the pairs of a sample with itself, which would bias the mean over pairs.
    within = [
        (_total(z, z, degree) - float((z.square().sum(dim=1) / z.shape[1] + 1).pow(degree).sum()))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(within) - 2 * _total(x, y, degree) / (len(x) * len(y))


def _total(x: Tensor, y: Tensor, degree: int) -> float:
    """Return ``sum_{ij} k(x_i, y_j)``, in blocks of rows so that the kernel matrix is never held whole."""
    blocks = torch.split(x, max(1, _BLOCK // len(y)))
    # Numbers, not tensors: a small tensor that outlives its block splits the memory the next would reuse.
    return math.fsum(float((block @ y.T / x.shape[1] + 1).pow(degree).sum()) for block in blocks)
