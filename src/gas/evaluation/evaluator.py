"""The evaluator: errors to the teacher pair by pair, and distances between distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from gas.evaluation.spaces import FeatureSpace, feature_space
from gas.features.per_sample import SampleMetric
from gas.metrics import paired
from gas.metrics.distances import Distribution, distribution, frechet_interval
from gas.metrics.frechet import feature_statistics, frechet_distance
from gas.metrics.intervals import mean_interval, median_interval
from gas.metrics.statistics import extract_all
from gas.models.protocol import Model, data_range_of, passes_of
from gas.pairs.dataset import Pairs

# Samples per call of the feature network, and the unit of work that ranks share. Fixed, as its size decides the bits.
_BATCH = 256


@dataclass(frozen=True)
class SolverMetrics:
    """Measurements of one solver on the evaluator's pairs.

    Attributes:
        name: of the solver.
        nfe: network evaluations per sample.
        forward_passes: of the network per sample, where guidance is on and a prediction needs two.
        mse: mean squared error to the teacher.
        mse_half_width: half the width of its 95% interval.
        l1: mean absolute error to the teacher.
        psnr: mean over samples of the peak signal-to-noise ratio to the teacher in dB; ``None`` where the model's data
            has no range, or a sample equals the teacher's.
        frechet_data: Frechet distance to the statistics of real data, where there are any.
        frechet_data_interval: 95% interval around ``frechet_data_corrected``.
        to_teacher: distances to the distribution of the teacher's samples, where there are features.
        samples: number of samples measured.
        to_data: distances to real images, where they were given; their statistics alone give ``frechet_data`` only.
        more: per-sample metrics by name: mean over samples, and half the width of its 95% interval.
        mse_median: median over samples of their squared errors, which the few worst samples do not decide.
        mse_median_interval: its 95% interval; ``None`` below 6 samples.
        frechet_data_corrected: ``frechet_data`` without its bias in the number of samples; ``None`` below 4 samples.
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
    mse_median_interval: tuple[float, float] | None = None
    frechet_data_corrected: float | None = None
    forward_passes: int | None = None


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures solvers on the same pairs; the features of the teacher's samples are computed once.

    Args:
        pairs: teacher pairs that no solver has learned or was chosen from.
        space: the features in which distributions are compared; by default they are not.
        sample_metrics: metrics of each sample, reported as means.
        data_range: largest minus smallest value of the data, for PSNR (:func:`gas.models.data_range_of`).
        passes: forward passes of the network in one guided prediction.
    """

    pairs: Pairs
    space: FeatureSpace = field(default_factory=FeatureSpace)
    sample_metrics: Sequence[SampleMetric] = ()
    data_range: float | None = None
    passes: int = 2

    @classmethod
    def for_model(
        cls, model: Model, pairs: Pairs, space: FeatureSpace | None = None, **kwargs: Any
    ) -> Evaluator:
        """Return an evaluator with the model's data range and, by default, in the model's own features."""
        space = feature_space(model) if space is None else space
        passes = passes_of(model, pairs.guidance)
        return cls(pairs, space, data_range=data_range_of(model), passes=passes, **kwargs)

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides a measurement besides the samples, in plain JSON."""
        files = {key: value for metric in self.sample_metrics for key, value in metric.fingerprint.items()}
        return {"unseen": selection_fingerprint(self.pairs), **self.space.fingerprint, **files}

    @cached_property
    def _teacher_features(self) -> Tensor | None:
        return self._features_of(self.pairs.target)

    def _features_of(self, samples: Tensor) -> Tensor | None:
        features = self.space.features
        return None if features is None else extract_all(features, samples.split(_BATCH))

    def measure(self, name: str, samples: Tensor, nfe: int, *, branched: bool = False) -> SolverMetrics:
        """Measure samples ``(S, *)`` from the noise of the pairs, pair by pair and as a distribution.

        ``name`` and ``nfe`` are recorded as they are; ``branched`` says that each evaluation was one forward pass.
        """
        pairs, space = self.pairs, self.space
        guided = pairs.guidance != 1.0 and self.passes > 1
        errors = paired.mse(samples, pairs.target)
        mse, mse_half_width = mean_interval(errors)
        mse_median, mse_median_interval = median_interval(errors)
        distance, corrected, interval, to_teacher, to_data = None, None, None, None, None
        features, teacher_features = self._features_of(samples), self._teacher_features
        if features is not None and teacher_features is not None:
            to_teacher = distribution(features, teacher_features, paired=True)
            if space.reference is not None:
                distance = frechet_distance(feature_statistics(features), space.reference)
                corrected, interval = frechet_interval(features, space.reference)
            if space.real is not None:
                to_data = distribution(features, space.real)
        return SolverMetrics(
            name=name,
            nfe=nfe,
            mse=mse,
            mse_half_width=mse_half_width,
            l1=float(paired.l1(samples, pairs.target).mean()),
            psnr=paired.mean_psnr(errors, self.data_range),
            frechet_data=distance,
            frechet_data_interval=interval,
            to_teacher=to_teacher,
            samples=len(pairs),
            to_data=to_data,
            more={each.name: mean_interval(each.function(samples, pairs)) for each in self.sample_metrics},
            mse_median=mse_median,
            mse_median_interval=mse_median_interval,
            frechet_data_corrected=corrected,
            forward_passes=nfe * (1 if branched else self.passes) if guided else None,
        )


def selection_fingerprint(pairs: Pairs) -> dict[str, Any]:
    """Return which pairs these are, in plain JSON."""
    return {
        "recipe": pairs.manifest.get("recipe_sha256", ""),
        "count": len(pairs),
        "seeds": [int(pairs.seeds[0]), int(pairs.seeds[-1])],
        "guidance": pairs.guidance,
    }
