"""What a distribution of samples is judged by while a solver learns."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance

__all__ = ["FrechetCriterion"]


class FrechetCriterion:
    """Frechet distance of samples to a reference, for choosing the best of a training by.

    A solver that is trained against a critic may make another sample than its teacher from the same noise,
    as long as it is as good: a paired error would call that a loss. The distance of the two distributions
    does not. On the same noise throughout, its bias in the number of samples is the same for every candidate, and
    differences between candidates are far less noisy than the distances themselves.

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

    def __call__(self, made: Tensor) -> float:
        """Return the distance of samples ``(S, *)``, S >= 2; infinite where one is not finite."""
        if not bool(made.isfinite().all()):
            return float("inf")
        return frechet_distance(feature_statistics(extract(self.features, made)), self.reference)
