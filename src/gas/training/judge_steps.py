"""Steps against a judge: the largest score of linearized samples within a trust region, without its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gas.arguments import MAX_NFE, MAX_SEED, MAX_SEEDS, integer, number
from gas.errors import Diverged
from gas.features.judges import Judge, scores_of
from gas.models.protocol import Model
from gas.models.runtime import without_tf32
from gas.pairs.dataset import Pairs
from gas.sampling import sample
from gas.training.batching import check_counts, visited
from gas.training.inner_solve import MAX_DAMPING, MIN_DAMPING, floored
from gas.training.linearization import (
    LinearizedSteps,
    evaluations_of,
    evaluations_of_measurement,
    featured,
    linearize,
    residual_of,
    tangent_slices,
)

# Trials of a step: damping grows fivefold from one to the next, from 1e-3 to 15, where the step is next to none.
_TRIALS, _DAMPING, _GROWTH = 6, 1e-3, 5.0

# Samples that the curvature of the network and of the judge are measured on; a judge that grades coarsely changes the
# score of few of them.
_MEASURED = 8


@dataclass(frozen=True)
class JudgeAscent:
    """Settings of :func:`gas.training.distill_judge`.

    Args:
        iterations: steps.
        batch: noises a step.
        radius: largest squared distance to the reference, in units of the start's; ``inf`` leaves only the guard.
        step: most of that distance that one step may add, in the same units.
        forgetting: weight of earlier steps against the newest, in [0, 1).
        pool: noises that steps walk through.
        samples: other noises, that solvers are chosen and guarded on.
        reference_nfe: network evaluations of the classical solver that makes the reference, where no pairs do.
        validate_every: steps between two choices.
        budget: most network evaluations, everything counted.
        seed: of the order of noises.

    Raises:
        UserError: names the setting that is out of range.
    """

    iterations: int = 12
    batch: int = 64
    radius: float = 1.5
    step: float = 0.25
    forgetting: float = 0.7
    pool: int = 256
    samples: int = 256
    reference_nfe: int = 20
    validate_every: int = 2
    budget: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self)
        integer("pool", self.pool, 1, MAX_SEEDS)
        integer("samples", self.samples, 16, MAX_SEEDS)
        integer("reference_nfe", self.reference_nfe, 1, MAX_NFE)
        integer("budget", self.budget, 1, MAX_SEED)
        number("radius", self.radius, "(0, inf]")
        number("step", self.step, "(0, inf)")
        number("forgetting", self.forgetting, "[0, 1)")


@dataclass(frozen=True)
class _Linear:
    """A batch at some numbers: mean score and distance, and their derivatives in the numbers ``(P,)``, ``(P, P)``."""

    score: float
    slope: Tensor
    distance: float
    gradient: Tensor
    curvature: Tensor


class JudgeSteps(LinearizedSteps):
    """Maximizes a mean score within a mean squared distance to a reference.

    In the numbers q of the folded table, ``score = g . q`` and ``distance = q . C q + 2 b . q + c``, each a mean over
    batches that fades by ``forgetting``. The step maximizes the score where the distance is at most the bound, and at
    most a step more than now: ``q = (C + damping)^-1 (g / 2m - b)``, with the multiplier m by bisection. The batch's
    own scores and distances decide whether it is taken; else damping grows.

    Args:
        solver: changed in place.
        model: whose denoiser to call.
        judge: of the samples.
        pairs: the reference.
        unit: distance of the start.
        config: radius and step in that unit, and the rest.
    """

    config: JudgeAscent
    _STATE = ("mean", "bound", *LinearizedSteps._STATE)

    def __init__(
        self, solver: nn.Module, model: Model, judge: Judge, pairs: Pairs, unit: float, config: JudgeAscent
    ) -> None:
        super().__init__(solver, model, pairs, config)
        self.judge, self.unit, self.bound, self.damping = judge, unit, config.radius * unit, _DAMPING
        # The running model, a :class:`_Linear` by name.
        self.mean: dict[str, Any] = {}

    def report(self) -> dict[str, float]:
        """Return no logs: those of a choice are its criterion's."""
        return {}

    def step_cost(self) -> int:
        """Return the network evaluations of the next step at most."""
        count = min(self.config.batch, len(self.pairs))
        measured = 0 if self.differences else _MEASURED * evaluations_of_measurement(self.nfe)
        central = (
            self.differences is None or self.differences.central
        )  # before the measurement, either may come
        return measured + count * (evaluations_of(self.nfe, central=central) + _TRIALS * self.nfe)

    def step(self, limit: float = math.inf) -> float:
        """Take one step, within any limit that has room for its :meth:`step_cost`; return minus its mean score before.

        Raises:
            Diverged: when the samples, or derivatives of them or their scores, are not finite.
            JudgeError: when the judge fails.
        """
        count = min(self.config.batch, len(self.pairs))
        index = visited(len(self.pairs), self.iteration * count, count, self.config.seed)
        batch, p = self.pairs.subset(index), self._parameters()
        with without_tf32():
            newest = self._linearized(p, batch)
        self._add(newest, self._numbers(p))
        self._move(p, newest, batch)
        self.iteration += 1
        return -newest.score

    def _linearized(self, p: Tensor, batch: Pairs) -> _Linear:
        """Linearize scores and distances of a batch, by differences of the network and of the judge."""
        table, noise = self._table(p, batch.guidance).detach(), batch.noise.to(self.model.device)
        few, parts = batch.view(slice(0, _MEASURED)), []
        differences = self.differences or self._measure(few, self._scored(few, slice(None)))
        for part in tangent_slices(noise, table):
            x, tangents, spent = linearize(self._bind(batch, part), noise[part], table, differences)
            scores, slopes = featured(self._scored(batch, part), x, tangents, differences)
            residual, columns = residual_of(x, tangents, batch.target[part].to(x))
            self.evaluations += spent
            gradients = (columns @ residual[..., None])[..., 0]
            values = (scores, slopes.T, residual.square().sum(1), gradients, columns @ columns.mT)
            parts.append([value.cpu().double() for value in values])
        score, slope, distance, gradient, curvature = (
            torch.cat(each).mean(0) for each in zip(*parts, strict=True)
        )
        if not all(bool(value.isfinite().all()) for value in (slope, curvature, distance)):
            raise Diverged("the samples, or how they or their scores move, are not finite")
        return _Linear(
            score=float(score), slope=slope, distance=float(distance), gradient=gradient, curvature=curvature
        )

    def _add(self, newest: _Linear, q: Tensor) -> None:
        """Add a batch to the running model, whose distances are of q = 0."""
        gradient = newest.gradient - newest.curvature @ q
        distance = newest.distance - 2 * newest.gradient @ q + q @ newest.curvature @ q
        parts = {**vars(newest), "gradient": gradient, "distance": float(distance)}
        fade = self.config.forgetting * self.weight
        self.weight = fade + 1
        if self.mean:
            parts = {name: (fade * self.mean[name] + x) / self.weight for name, x in parts.items()}
        self.mean = parts

    def _move(self, p: Tensor, newest: _Linear, batch: Pairs) -> None:
        """Go to the best score of the running model in the trust region, with more damping until the batch agrees."""
        q, mean = self._numbers(p), _Linear(**self.mean)
        gradient = mean.curvature @ q + mean.gradient
        now = float(mean.distance + 2 * mean.gradient @ q + q @ mean.curvature @ q)
        bound = min(self.bound, now + self.config.step * self.unit)
        free = torch.arange(len(p))
        for _ in range(_TRIALS):
            damped = mean.curvature + self.damping * torch.diag(floored(mean.curvature.diagonal()))
            pull = gradient - mean.slope / (2 * _multiplier(mean, gradient, damped, bound - now))
            trial = self._minimum(p, pull, damped, free)
            score, distance = self._measured(trial, batch)
            room = 1.25 * max(bound - now, 0.05 * self.unit)
            rises = score > newest.score and distance <= newest.distance + room
            if rises or (now > bound and distance < newest.distance):
                nn.utils.vector_to_parameters(trial, self.learned.values())
                self.damping = max(self.damping / _GROWTH, MIN_DAMPING)
                return
            self.damping = min(self.damping * _GROWTH, MAX_DAMPING)

    @torch.no_grad()
    def _measured(self, p: Tensor, batch: Pairs) -> tuple[float, float]:
        """Return the mean score and distance of a batch at parameters; of samples that are not finite the worst."""
        try:
            table = self._table(p, batch.guidance).folded()
        except ValueError:  # no table has these numbers
            return -math.inf, math.inf
        self.evaluations += len(batch) * self.nfe
        whole = slice(0, len(batch))
        x = sample(self._bind(batch, whole), batch.noise.to(self.model.device), table)
        if not bool(x.isfinite().all()):
            return -math.inf, math.inf
        distance = float((x - batch.target.to(x)).double().square().mean())
        return float(self._scored(batch, whole)(x).mean()), distance

    def _scored(self, batch: Pairs, part: slice) -> Callable[[Tensor], Tensor]:
        labels = None if batch.labels is None else batch.labels[part]
        return lambda x: scores_of(self.judge, x, labels)


def _multiplier(mean: _Linear, gradient: Tensor, damped: Tensor, room: float) -> float:
    """Return the m at which the step ``damped^-1 (slope / 2m - gradient)`` adds ``room`` to the distance.

    The distance falls with m, to that of the step without a score; if even that adds more, m is the largest.
    """
    back = torch.linalg.solve(damped, gradient)
    ahead = torch.linalg.solve(damped, mean.slope) / 2
    low, high = -40.0, 40.0  # of log m: whatever the units of a score
    for _ in range(60):
        middle = (low + high) / 2
        step = math.exp(-middle) * ahead - back
        added = float(2 * gradient @ step + step @ mean.curvature @ step)
        low, high = (middle, high) if added > room else (low, middle)
    return math.exp(high)
