"""Validation: the losses of a table on teacher pairs, and whether an improvement is more than chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gas import distributed
from gas.denoise import Denoiser
from gas.losses import ROUNDING
from gas.metrics.intervals import seed_interval
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, check_conditions
from gas.pairs.teacher import Solver
from gas.sampling import sample
from gas.table import Table, table_on


def evaluate(
    model: Model, pairs: Pairs, table: Solver, loss: Callable[[Tensor, Tensor], Tensor], *, batch: int = 64
) -> Tensor:
    """Return the loss of every pair ``(S,)``, float64, between a solver's samples and the teacher's.

    Raises:
        ValueError: when the pairs were made under other conditions than the model's.
    """
    return PairLosses(model, pairs, loss, batch, reuse=False).losses(table_on(table, model.schedule))


# Resamples of fewer gains than this vary too little: a bootstrap interval of so few is too narrow.
_FEW_GAINS = 16


def surely_better(losses: Tensor, than: Tensor) -> bool:
    """Whether losses ``(S,)`` are lower than others of the same pairs, by more than chance.

    Either the mean gain is surely positive, or the typical one is, the mean of ``log(than / losses)``, and the mean
    gain probably, in four resamples of five: one pair of hundreds may carry a mean, and leave it unsure however many
    others gain.
    """
    gains = than - losses
    if surely_positive(gains):
        return True
    ratios = (than.clamp(min=ROUNDING) / losses.clamp(min=ROUNDING)).log()
    return surely_positive(gains, confidence=0.8) and surely_positive(ratios)


def typical(losses: Tensor) -> float:
    """Return the geometric mean of some pairs' losses ``(S,)``; infinite unless all are finite.

    It ranks candidates on few pairs, where the mean would be that of the worst one or two.
    """
    if not bool(losses.isfinite().all()):
        return math.inf
    return float(losses.double().clamp(min=ROUNDING).log().mean().exp())


def surely_positive(gains: Tensor, *, confidence: float = 0.975) -> bool:
    """Whether the mean of independent gains ``(n,)`` is positive with so much bootstrap confidence.

    Per-pair gains are heavy-tailed: a few pairs may carry most of the mean. A t-interval can then miss an improvement
    that every pair shows, so the mean is bootstrapped. Below 16 gains, Student's interval has to lie above zero too;
    a single gain is never sure.

    An infinite gain, over a solver that diverged, counts as the largest finite one; NaN is no gain.
    """
    if len(gains) < 2 or not bool((gains > -math.inf).all()):  # false for NaN
        return False
    finite = gains[gains.isfinite()].abs()
    gains = gains.clamp(max=float(finite.max()) if len(finite) else 1.0)
    if len(gains) < _FEW_GAINS:
        mean, half_width = seed_interval(gains, level=0.95)
        if mean <= half_width:
            return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(gains), (1000, len(gains)), generator=generator)
    return float(gains.cpu()[rows].mean(1).quantile(1 - confidence)) > 0


@dataclass
class PairLosses:
    """Losses of tables on the same pairs. All tables that start at x_T share its first prediction.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs.
        loss: ``(B, *), (B, *) -> (B,)``.
        batch: samples a network call.
        reuse: keep the first predictions for further tables.

    Raises:
        ValueError: when the pairs were made under other conditions than the model's.
    """

    model: Model
    pairs: Pairs
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: int
    reuse: bool = True
    _first: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_conditions(self.model, self.pairs)

    def losses(self, table: Table) -> Tensor:
        """Return the loss of every pair ``(S,)``; several processes share the batches."""
        starts, folded = range(0, len(self.pairs), self.batch), table.folded()
        return torch.cat(
            list(distributed.map_sharded(lambda start: self._losses_from(start, folded), starts))
        )

    @torch.no_grad()
    def _losses_from(self, start: int, table: Table) -> Tensor:
        part = self.pairs.subset(slice(start, start + self.batch))
        denoise = self.model.bind(part.labels, self.pairs.guidance)
        if self.reuse and table.branches is None and -1 not in (table.residuals or ()):
            denoise = self._with_first_prediction(denoise, start)
        samples = sample(denoise, part.noise.to(self.model.device), table)
        return self.loss(samples, part.target.to(samples)).double().cpu()

    def _with_first_prediction(self, denoise: Denoiser, start: int) -> Denoiser:
        """Return a denoiser for one run that reuses this batch's prediction at x_T.

        The batches are fixed, so the first state of the run is this batch's noise whatever the table: its offset is
        key enough.
        """
        calls = itertools.count()

        def cached(x: Tensor, t: Tensor) -> Tensor:
            if next(calls) or float(t.detach()) != 1.0:
                return denoise(x, t)
            if start not in self._first:
                # A copy: the network may write its next prediction over this one.
                self._first[start] = denoise(x, t).clone()
            return self._first[start]

        return cached
