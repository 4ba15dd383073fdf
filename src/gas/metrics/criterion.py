"""The Frechet distance as a selection criterion during training."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance

__all__ = ["FrechetCriterion"]


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
        self.features = features
        self.reference = (
            reference
            if isinstance(reference, FeatureStatistics)
            else feature_statistics(extract(features, reference))
        )

    def __call__(self, samples: Tensor) -> float:
        """Return the distance of samples ``(S, *)``, S >= 2; infinite if one is not finite."""
        if not bool(samples.isfinite().all()):
            return float("inf")
        return frechet_distance(feature_statistics(extract(self.features, samples)), self.reference)
