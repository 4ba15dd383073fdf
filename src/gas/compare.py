"""Run several solvers from the same noise and measure them against the teacher and the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.metrics import FeatureStatistics, extract, feature_statistics, frechet_distance, paired
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
        frechet_teacher: Frechet distance to the teacher's samples, where the model has features.
        samples: pairs measured on.
    """

    name: str
    nfe: int
    mse: float
    mse_half_width: float
    l1: float
    psnr: float | None
    frechet_data: float | None
    frechet_teacher: float | None
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
        features: ``(B, *) -> (B, F)``, the space of Frechet distances; without it there are none.
        reference: statistics of real data in that space.

    Raises:
        ValueError: when the shapes disagree.
    """
    error, half_width = paired.mean_interval(paired.mse(made, pairs.target))
    to_data, to_teacher = None, None
    if features is not None:
        statistics = feature_statistics(extract(features, made))
        to_teacher = frechet_distance(statistics, feature_statistics(extract(features, pairs.target)))
        to_data = None if reference is None else frechet_distance(statistics, reference)
    return Comparison(
        name=name,
        nfe=nfe,
        mse=error,
        mse_half_width=half_width,
        l1=float(paired.l1(made, pairs.target).mean()),
        psnr=float(paired.psnr(made.flatten()[None], pairs.target.flatten()[None])[0]) if error else None,
        frechet_data=to_data,
        frechet_teacher=to_teacher,
        samples=len(pairs),
    )
