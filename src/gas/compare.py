"""Run several solvers from the same noise and measure them against the teacher and the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.metrics import (
    Distribution,
    FeatureStatistics,
    distribution,
    extract,
    feature_statistics,
    frechet_distance,
    frechet_interval,
    paired,
)
from gas.model import Model
from gas.pairs import Pairs
from gas.sample import sample
from gas.table import Table

__all__ = ["Comparison", "compare", "run"]


@dataclass(frozen=True)
class Comparison:
    """One solver on given pairs.

    Attributes:
        name: of the solver.
        nfe: network evaluations a sample.
        mse: mean squared error to the teacher, and half the width of its 95% interval.
        l1: mean absolute error to the teacher.
        psnr: peak signal-to-noise ratio to the teacher in dB, range 2, of ``mse``; none where that is zero.
        frechet_data: Frechet distance to real data, where the model has statistics of it.
        frechet_data_interval: its 95% interval, bias taken away.
        to_teacher: distances to the distribution of the teacher's samples, where the model has features.
        samples: pairs measured on.
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


@torch.no_grad()
def run(model: Model, pairs: Pairs, table: Table, *, batch: int = 64) -> Tensor:
    """Return a solver's samples ``(S, *)`` from the noise and labels of the pairs, on the CPU."""
    made = []
    for start in range(0, len(pairs), batch):
        part = pairs.subset(slice(start, start + batch))
        noise = part.noise.to(model.device)
        made.append(sample(model.bind(part.labels, pairs.guidance), noise, table.folded()).cpu())
    return torch.cat(made)


def compare(
    name: str,
    made: Tensor,
    pairs: Pairs,
    nfe: int,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    reference: FeatureStatistics | None = None,
) -> Comparison:
    """Measure samples against the teacher's, pair by pair and as a distribution.

    Args:
        name: what the solver is called.
        made: its samples ``(S, *)``, as :func:`run` returns them.
        pairs: the teacher's.
        nfe: network evaluations that a sample took.
        features: ``(B, *) -> (B, F)``, the space that distributions are compared in; without it they are not.
        reference: statistics of real data in that space.

    Raises:
        ValueError: when the shapes disagree.
    """
    error, half_width = paired.mean_interval(paired.mse(made, pairs.target))
    to_data, interval, to_teacher = None, None, None
    if features is not None:
        seen = extract(features, made)
        to_teacher = distribution(seen, extract(features, pairs.target))
        if reference is not None:
            to_data = frechet_distance(feature_statistics(seen), reference)
            interval = frechet_interval(seen, reference)
    return Comparison(
        name=name,
        nfe=nfe,
        mse=error,
        mse_half_width=half_width,
        l1=float(paired.l1(made, pairs.target).mean()),
        psnr=float(paired.psnr(made.flatten()[None], pairs.target.flatten()[None])[0]) if error else None,
        frechet_data=to_data,
        frechet_data_interval=interval,
        to_teacher=to_teacher,
        samples=len(pairs),
    )
