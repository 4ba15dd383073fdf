"""Fréchet distance between the Gaussians fitted to two sets of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.errors import UserError


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean ``(F,)`` and unbiased covariance ``(F, F)`` of ``count`` feature vectors, float64 on the CPU.

    Raises:
        UserError: when shapes disagree, a value is not finite, ``cov`` is not symmetric, or ``count < 2``.
    """

    mean: Tensor
    cov: Tensor
    count: int

    def __post_init__(self) -> None:
        for name in ("mean", "cov"):
            value = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64)
            object.__setattr__(self, name, value)
        size = len(self.mean) if self.mean.ndim == 1 else 0
        if size == 0:
            raise UserError(f"mean must be a vector (F,) of features, got shape {tuple(self.mean.shape)}")
        if self.cov.shape != (size, size):
            shape = tuple(self.cov.shape)
            raise UserError(f"cov must have shape ({size}, {size}) for this mean, got {shape}")
        for name in ("mean", "cov"):
            _require_finite(name, getattr(self, name))
        if not torch.allclose(self.cov, self.cov.T, rtol=1e-6, atol=1e-9 * float(self.cov.abs().max())):
            raise UserError("cov must be symmetric; pass (cov + cov.T) / 2 if it is so up to rounding")
        if self.count < 2:
            raise UserError(f"count must be at least 2, as a covariance needs two vectors, got {self.count}")


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Return the mean and the unbiased covariance of feature vectors.

    ``mean = sum_k f_k / N``, ``cov = sum_k (f_k - mean)(f_k - mean)^T / (N - 1)``, in float64, of finite ``(N, F)``
    with N >= 2.

    >>> statistics = feature_statistics(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> statistics.mean.tolist(), statistics.cov.tolist()
    ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise UserError(f"features must have shape (N, F), one vector a sample, got {tuple(features.shape)}")
    if len(features) < 2:
        raise UserError(f"features must hold at least 2 vectors for a covariance, got {len(features)}")
    _require_finite("features", features)
    values = features.detach().to("cpu", torch.float64)
    mean = values.mean(dim=0)
    centered = values - mean
    return FeatureStatistics(mean, centered.T @ centered / (len(values) - 1), len(values))


def frechet_distance(p: FeatureStatistics, q: FeatureStatistics) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians, the "FID" of their features.

    ``|mu_p - mu_q|^2 + tr(S_p + S_q - 2 (S_p S_q)^{1/2})``. With symmetric eigendecompositions
    ``S = B B^T`` the last trace, ``tr (S_p^{1/2} S_q S_p^{1/2})^{1/2}``, is the sum of the singular values
    of ``B_p^T B_q``: no root of an asymmetric matrix, no complex numbers, and singular covariances
    (fewer samples than features) need no jitter.

    The distance of two finite samples of one law is positive and shrinks like 1/N: compare equal counts.

    References:
        Dowson and Landau, J. Multivariate Analysis 12 (1982); Heusel et al., arXiv 1706.08500, equation 6.

    >>> p = FeatureStatistics(torch.zeros(1), torch.eye(1), count=2)
    >>> q = FeatureStatistics(torch.ones(1), 4 * torch.eye(1), count=2)
    >>> frechet_distance(p, q)
    2.0
    """
    if len(p.mean) != len(q.mean):
        raise UserError(f"both must be of one feature network, got {len(p.mean)} and {len(q.mean)} features")
    cross = torch.linalg.svdvals(_factor(p.cov).T @ _factor(q.cov)).sum()
    distance = (p.mean - q.mean).square().sum() + p.cov.trace() + q.cov.trace() - 2 * cross
    return max(float(distance), 0.0)


def extract(features: Callable[[Tensor], Tensor], x: Tensor, batch: int = 256) -> Tensor:
    """Return ``features(x)``, computed ``batch`` samples at a time and without gradient.

    Args:
        features: a network ``(B, *) -> (B, F)``; put it in evaluation mode first.
        x: samples, shape ``(N, *)``, N >= 1.
        batch: samples a call, at least 1.

    Raises:
        UserError: for an empty ``x``, ``batch < 1``, or an answer that is not one vector a sample.
    """
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}")
    if x.ndim == 0 or len(x) == 0:
        raise UserError(f"x must hold at least one sample (N, *), got shape {tuple(x.shape)}")
    answers = []
    with torch.no_grad():
        for chunk in torch.split(x, batch):
            answer = features(chunk)
            if answer.ndim != 2 or len(answer) != len(chunk):
                raise UserError(
                    f"features must answer ({len(chunk)}, F), one vector a sample, got "
                    f"{tuple(answer.shape)}; pool or flatten the trailing dimensions"
                )
            answers.append(answer)
    return torch.cat(answers)


class FrechetCriterion:
    """Frechet distance of samples to a reference, for selecting the best iterate of adversarial training.

    A solver trained against a discriminator may turn noise into another sample than its teacher does, as long as it is
    equally good. A paired error counts that as a loss, the distance of the two distributions does not. With the same
    noise for every candidate, the bias in the number of samples cancels, and differences between candidates are far
    less noisy than the distances themselves.

    Args:
        features: ``(B, *) -> (B, F)``.
        reference: samples ``(N, *)`` of the teacher, or statistics of its features or of real data's.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], reference: Tensor | FeatureStatistics) -> None:
        if isinstance(reference, Tensor):
            reference = feature_statistics(extract(features, reference))
        self.features, self.reference = features, reference

    def __call__(self, samples: Tensor) -> float:
        """Return the distance of samples ``(S, *)``, S >= 2; infinite if one is not finite."""
        if not bool(samples.isfinite().all()):
            return float("inf")
        return frechet_distance(feature_statistics(extract(self.features, samples)), self.reference)


def _factor(cov: Tensor) -> Tensor:
    """Return ``B (F, F)`` with ``B B^T = cov``; eigenvalues that rounding cannot tell from zero are zero."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    floor = len(cov) * torch.finfo(torch.float64).eps * float(values[-1].clamp(min=0))
    root: Tensor = vectors * values.where(values > floor, torch.zeros_like(values)).sqrt()
    return root


def _require_finite(name: str, value: Tensor) -> None:
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise UserError(f"{name} must be finite, got {bad} values that are not; drop diverged samples first")
