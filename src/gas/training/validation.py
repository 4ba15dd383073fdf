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
from gas.metrics.intervals import bootstrap, seed_interval
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, check_conditions
from gas.pairs.teacher import Solver
from gas.sampling import sample
from gas.table import Table, table_on

__all__ = ["PairLosses", "evaluate", "surely_positive"]


def evaluate(
    model: Model, pairs: Pairs, table: Solver, loss: Callable[[Tensor, Tensor], Tensor], *, batch: int = 64
) -> Tensor:
    """Return the loss of every pair ``(S,)``, float64, of a solver's samples against the teacher's.

    Raises:
        ValueError: when the pairs were made with other conditions than the model's.
    """
    return PairLosses(model, pairs, loss, batch).losses(table_on(table, model.schedule))


# Gains of which resamples vary too little.
_FEW = 16


def surely_positive(gains: Tensor) -> bool:
    """Whether the mean of independent gains ``(n,)`` is positive by more than chance: 97.5% of its resamples' are.

    Few pairs may carry most of a mean. Standard errors would call a gain on every pair chance where it is very large on
    one; of resamples nearly all show it, and those without the one still do. Resamples of fewer than 16 vary too
    little, so that Student's interval has to lie above zero too; of one gain nothing is sure.

    An infinite gain, over a solver that diverged, counts as the largest finite one; NaN is no gain.
    """
    if len(gains) < 2 or not bool((gains > -math.inf).all()):  # nor is NaN
        return False
    finite = gains[gains.isfinite()].abs()
    gains = gains.clamp(max=float(finite.max()) if len(finite) else 1.0)
    if len(gains) < _FEW:
        mean, half_width = seed_interval(gains, level=0.95)
        if mean <= half_width:
            return False
    return bootstrap(torch.mean, gains, resamples=1000, level=0.95).percentile[0] > 0


@dataclass
class PairLosses:
    """Losses of tables on the same pairs, whose first prediction, at x_T, all that start there share.

    Args:
        model: that made the pairs.
        pairs: the teacher's.
        loss: ``(B, *), (B, *) -> (B,)``.
        batch: samples a call of the model.

    Raises:
        ValueError: when the pairs were made with other conditions than the model's.
    """

    model: Model
    pairs: Pairs
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: int
    _first: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_conditions(self.model, self.pairs)

    def losses(self, table: Table) -> Tensor:
        """Return the loss of every pair; several processes share the batches."""
        starts = range(0, len(self.pairs), self.batch)
        return torch.cat(list(distributed.map_sharded(lambda start: self._losses_from(start, table), starts)))

    @torch.no_grad()
    def _losses_from(self, start: int, table: Table) -> Tensor:
        part = self.pairs.subset(slice(start, start + self.batch))
        noise = part.noise.to(self.model.device)
        denoise = self._remembering(self.model.bind(part.labels, self.pairs.guidance), start)
        made = sample(denoise, noise, table.folded())
        return self.loss(made, part.target.to(made)).double().cpu()

    def _remembering(self, denoise: Denoiser, start: int) -> Denoiser:
        """A denoiser for one run, whose first call is made at x_T."""
        calls = itertools.count()

        def remembering(x: Tensor, t: Tensor) -> Tensor:
            if next(calls) or float(t.detach()) != 1.0:
                return denoise(x, t)
            if start not in self._first:
                # A copy: a network may write its next answer over this one.
                self._first[start] = denoise(x, t).clone()
            return self._first[start]

        return remembering
