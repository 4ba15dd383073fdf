"""Gauss-Newton: second-order training of a solver, whose few dozen parameters have a small curvature matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import MAX_BATCH, MAX_SEED, integer, number
from gas.errors import Diverged, UserError
from gas.losses import FeatureLoss, Loss, is_sum_of_squares
from gas.models.protocol import Model
from gas.models.runtime import full_precision, without_tf32
from gas.pairs.dataset import Pairs
from gas.sampling import sample
from gas.table import Table
from gas.training.adversarial.losses import Discriminator
from gas.training.batching import check_counts, check_turns, in_turn, visited
from gas.training.importance import draw
from gas.training.inner_solve import MAX_DAMPING, MIN_DAMPING, floored
from gas.training.linearization import (
    Differences,
    LinearizedSteps,
    Normal,
    evaluations_of,
    evaluations_of_measurement,
    joined,
    normal_equations,
)

# Trials of a step. Damping grows fivefold from one to the next, so eight reach from the default 1e-3 to 400, where the
# step is next to none.
_TRIALS = 8

# Pairs that a step sees at least, whatever its budget: they decide whether it is taken.
_MIN_PAIRS = 8

# Pairs that noise and curvature are measured on: over the hundreds of entries of two samples, root mean squares are
# right to a tenth, which moves a step by a twentieth.
MEASURED_PAIRS = 2

# The running model is of all pairs so far: a step that is good for them may cost the newest ones a little.
_TOLERANCE = 1.02

# Gain ratio (actual over predicted decrease) above and below which damping changes, as in Fletcher, "A modified
# Marquardt subroutine for non-linear least squares", AERE R6799 (1971); the factors /5, *2, *5 are ours.
_GOOD_RATIO, _POOR_RATIO = 0.75, 0.25


@dataclass(frozen=True)
class GaussNewton:
    """Settings of damped, incremental Gauss-Newton, for losses that are sums of squares.

    Args:
        iterations: steps; each sees new pairs.
        batch: pairs of the first step.
        growth: factor by which the number of pairs grows from step to step.
        largest: most pairs a step.
        budget: most network evaluations of a step's Jacobian, as long as it sees at least 8 pairs: many NFE have many
            columns, so steps see fewer pairs.
        forgetting: forgetting factor: weight of earlier steps against the newest, in [0, 1).
        damping: of the first step, in units of the curvature's diagonal.
        validate_every: iterations between validations.
        seed: of the pairs' order.
        outlier: bound of a pair's loss, in medians of the pool's losses: a pair with a larger loss is weighted down to
            it (Huber's weights). A few pairs carry much of the mean, and their samples are the least linear. ``inf``
            weights all pairs alike.
        oversampling: pairs whose losses are measured for each pair of a step, which is drawn by them
            (:func:`gas.training.importance.draw`); 1 takes them as they come.
        alternate: iterations after which times and coefficients take turns; 0 trains all at once.

    Raises:
        ValueError: names the setting that is out of range.
    """

    iterations: int = 16
    batch: int = 16
    growth: float = 1.15
    largest: int = 192
    budget: int = 12_000
    forgetting: float = 0.7
    damping: float = 1e-3
    validate_every: int = 2
    seed: int = 0
    outlier: float = 10.0
    oversampling: int = 4
    alternate: int = 0

    def __post_init__(self) -> None:
        check_counts(self)
        integer("largest", self.largest, 1, MAX_BATCH)
        integer("oversampling", self.oversampling, 1, MAX_BATCH)
        integer("budget", self.budget, 1, MAX_SEED)
        number("damping", self.damping, "(0, inf)")
        number("outlier", self.outlier, "[1, inf]")
        number("growth", self.growth, "[1, inf)")
        number("forgetting", self.forgetting, "[0, 1)")

    def pairs_of(self, iteration: int, available: int, cost: int = 0) -> int:
        """Return how many pairs an iteration sees, if each costs so many network evaluations."""
        most = min(self.largest, available, max(_MIN_PAIRS, self.budget // max(cost, 1)))
        # Compared as logarithms: the power itself leaves the range of floats after some thousand iterations.
        if math.log(self.batch) + iteration * math.log(self.growth) >= math.log(most):
            return most
        return int(self.batch * self.growth**iteration)

    def sizes_of(self, iteration: int, available: int, cost: int = 0) -> tuple[int, int]:
        """Return :meth:`pairs_of`, and how many pairs these are drawn from."""
        count = self.pairs_of(iteration, available, cost)
        return count, min(available, self.oversampling * count)

    def config(self) -> dict[str, Any]:
        """Return the settings in plain JSON, as solver files record them: ``forgetting`` is ``memory`` there."""
        settings = {name: None if x == math.inf else x for name, x in asdict(self).items()}
        return {"memory" if name == "forgetting" else name: x for name, x in settings.items()}

    def optimizer(
        self, discriminators: Sequence[Discriminator] = (), pairing: str = "independent", **arguments: Any
    ) -> GaussNewtonSteps:
        """Return an optimizer with these settings; further arguments as in :class:`GaussNewtonSteps`.

        Raises:
            ValueError: when there are discriminators, whose loss is no sum of squares.
        """
        if discriminators:
            raise UserError(
                "discriminators need config=gas.Adam(...): Gauss-Newton minimizes sums of squares only"
            )
        return GaussNewtonSteps(config=self, **arguments)


@dataclass(frozen=True)
class Batch:
    """Pairs of one guidance scale that a step linearizes, their weights, and the losses of all they are drawn from."""

    pairs: Pairs
    weights: Tensor
    losses: Tensor


class GaussNewtonSteps(LinearizedSteps):
    """Minimizes ``mean |f(student) - f(teacher)|^2`` by Levenberg-Marquardt steps on a running quadratic model.

    Each step linearizes the samples of its pairs in the numbers q of the folded table, and adds
    ``sum |r_k + J_k (q - q_k)|^2`` to the sum of earlier steps, which fades by ``forgetting``. The model's minimum is
    that of many more pairs than one step could pay for (an extended Kalman filter in information form). A few pairs
    carry much of the loss, so the pairs of a step are drawn by their losses from a larger pool, whose mean they
    estimate. The model's damped minimum over the solver's parameters, with q(p) followed exactly, is accepted if these
    pairs agree; else damping grows. A step does not depend on a solver's parameterization, as far as the descent to
    that minimum gets.
    Derivatives are differences of predictions, with steps for the noise that is measured before the first step; a
    :class:`gas.models.PreciseModel` still runs in full precision, and CUDA without TF32, which are less noisy.

    Args:
        solver: changed in place.
        model: whose denoiser to call.
        pairs: teacher pairs.
        loss: :func:`gas.losses.l2` or a :class:`gas.losses.FeatureLoss`.
        config: settings.

    Raises:
        ValueError: for another loss.

    References:
        Levenberg (1944), Marquardt (1963); Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35
        (1964); Bertsekas, "Incremental least squares methods and the extended Kalman filter", SIAM J. Optim. 6 (1996),
        equations 8 to 12.
    """

    config: GaussNewton
    _STATE = ("curvature", "gradient", *LinearizedSteps._STATE)

    def __init__(
        self, solver: nn.Module, model: Model, pairs: Pairs, loss: Loss, config: GaussNewton
    ) -> None:
        if not is_sum_of_squares(loss):
            raise UserError(
                f"Gauss-Newton needs a loss that is a sum of squares (l2 or a FeatureLoss), got {loss}"
            )
        super().__init__(solver, full_precision(model), pairs, config)
        self.loss, self.damping = loss, config.damping
        self.features = _widened(loss.features) if isinstance(loss, FeatureLoss) else None
        check_turns(self.learned, config.alternate)
        size = len(self._numbers(self._parameters()))
        self.curvature = torch.zeros(size, size, dtype=torch.float64)
        self.gradient = torch.zeros(size, dtype=torch.float64)

    def step_cost(self) -> int:
        """Return the network evaluations of the next step: its Jacobian, one trial, and at first the measurement."""
        measured = self.differences is not None
        extra = 0 if measured else MEASURED_PAIRS * evaluations_of_measurement(self.nfe)
        count, pool = self._sizes(self.iteration)
        return extra + self._pair_cost() * count + self.nfe * pool

    def step(self, limit: float = math.inf) -> float:
        """Take one step; return the mean loss, before it, of the pairs that its own are drawn from.

        Args:
            limit: of :attr:`evaluations`, beyond which no further trial is made.

        Raises:
            Diverged: when the samples or their derivatives are not finite.
        """
        differences = self._measured_differences()
        count, pool = self._sizes(self.iteration)
        # Central differences may turn out to be needed when a limit has room for forward ones.
        room = (limit - self.evaluations) / (self._pair_cost() * count + self.nfe * pool)
        if room < 1:
            count, pool = max(1, int(room * count)), max(1, int(room * pool))
        before = sum(self._sizes(i)[1] for i in range(self.iteration))
        p = self._parameters()
        with without_tf32():
            drawn = self._drawn(p, visited(len(self.pairs), before, pool, self.config.seed), count / pool)
            normals = {batch.pairs.guidance: self._normal(p, batch, differences) for batch in drawn}
        normal = joined(normals, self.scales) if len(self.scales) > 1 else normals[self.scales[0]]
        self.evaluations += normal.evaluations
        if not bool(normal.curvature.isfinite().all()):
            raise self._diverged("how the samples move is not finite")
        q, fade = self._numbers(p), self.config.forgetting
        self.curvature = fade * self.curvature + count * normal.curvature
        self.gradient = fade * self.gradient + count * (normal.gradient - normal.curvature @ q)
        self.weight = fade * self.weight + count
        parts = [batch.pairs for batch in drawn]
        spent = self.nfe * sum(map(len, parts))
        self._move(q, normal, lambda p: self._loss_at(p, parts, normal.weights), limit - spent)
        self.iteration += 1
        return float(torch.cat([batch.losses for batch in drawn]).mean())

    def _sizes(self, iteration: int) -> tuple[int, int]:
        """Return the pairs of a step, and how many they are drawn from."""
        return self.config.sizes_of(iteration, len(self.pairs), self._pair_cost() - self.nfe)

    def _drawn(self, p: Tensor, index: Tensor, share: float) -> list[Batch]:
        """Return a share of some pairs by guidance scale, drawn by their losses at parameters ``p``."""
        drawn = []
        for part in self.pairs.subset(index).by_scale():
            table, count = self._table(p, part.guidance).detach().folded(), max(1, round(share * len(part)))
            # No more at once than a trial of the step, and as many whatever the number of processes: the same draw.
            slices = [slice(i, i + count) for i in range(0, len(part), count)]
            losses = self._losses(part, table, slices)
            if not bool(losses.isfinite().all()):
                raise self._diverged(f"the samples are not finite (loss {float(losses.mean()):g})")
            # A prime stride, as in :func:`visited`.
            seed = self.config.seed * 1_000_003 + self.iteration
            # In one process: rounding, which differs among machines, decides which pairs are drawn.
            picked = distributed.broadcast(partial(draw, losses, count, self.config.outlier, seed))
            pairs = part.subset(picked.index)
            # On the model's device at once: every trial of a step starts from this noise.
            pairs = replace(pairs, noise=pairs.noise.to(self.model.device))
            drawn.append(Batch(pairs, picked.weights, losses))
        return drawn

    def _diverged(self, problem: str) -> Diverged:
        return Diverged(f"iteration {self.iteration}: {problem}; start from another solver")

    def _normal(self, p: Tensor, batch: Batch, differences: Differences) -> Normal:
        """Return the normal equations of pairs of one guidance scale at parameters ``p``."""
        pairs, table = batch.pairs, self._table(p, batch.pairs.guidance).detach()
        bind = partial(self._bind, pairs)
        return normal_equations(
            bind, pairs.noise, pairs.target, table, differences, self.features, batch.weights
        )

    def _pair_cost(self) -> int:
        """Return the network evaluations of a pair in a step's Jacobian and one trial."""
        central = self.differences is not None and self.differences.central
        return evaluations_of(self.nfe, central=central) + self.nfe

    def _measured_differences(self) -> Differences:
        """Return the steps of all differences, chosen on the first few pairs before the first step."""
        if self.differences is not None:
            return self.differences
        few, *_ = self.pairs.subset(visited(len(self.pairs), 0, MEASURED_PAIRS, self.config.seed)).by_scale()
        return self._measure(few, self.features)

    def _move(self, q: Tensor, newest: Normal, loss_at: Callable[[Tensor], float], limit: float) -> None:
        """Go to the damped minimum of the running model, with more damping until the step's pairs agree."""
        p, free, loss = self._parameters(), self._free(), newest.loss
        curvature = self.curvature / self.weight
        gradient = curvature @ q + self.gradient / self.weight
        metric = torch.diag(floored(curvature.diagonal()))
        for _ in range(_TRIALS):
            if self.evaluations > limit:
                break
            trial = self._minimum(p, gradient, curvature + self.damping * metric, free)
            trial_loss, move = loss_at(trial), self._numbers(trial) - q
            predicted = -float(2 * newest.gradient @ move + move @ newest.curvature @ move)
            if trial_loss < _TOLERANCE * loss:
                with torch.no_grad():
                    nn.utils.vector_to_parameters(trial, self.learned.values())
                if loss - trial_loss > _GOOD_RATIO * predicted:
                    self.damping = max(self.damping / 5, MIN_DAMPING)
                elif loss - trial_loss < _POOR_RATIO * predicted:
                    self.damping = min(self.damping * 2, MAX_DAMPING)
                return
            self.damping = min(self.damping * 5, MAX_DAMPING)
        # No trial was accepted: the solver stays, and the next step starts from this damping.

    def _free(self) -> Tensor:
        """Return indices of the parameters whose turn it is."""
        turns = [
            torch.full((parameter.numel(),), in_turn(name, self.iteration, self.config.alternate))
            for name, parameter in self.learned.items()
        ]
        return torch.cat(turns).nonzero()[:, 0]

    def report(self) -> dict[str, float]:
        """Return the damping, in units of the curvature's diagonal, and what the predictions' noise costs.

        ``noise`` is that of a prediction as a share of it, ``derivative_error`` the relative error that it leaves in
        derivatives: medians, as in :class:`gas.training.linearization.Differences`.
        """
        report, measured = {"damping": self.damping}, self.differences
        if measured is not None:
            report |= {"noise": measured.noise, "derivative_error": measured.error}
        return report

    @torch.no_grad()
    def _loss_at(self, p: Tensor, parts: Sequence[Pairs], weights: Tensor) -> float:
        """Return the weighted mean loss of a step's pairs at parameters ``p``; infinite where it is not finite."""
        try:
            tables = [self._table(p, batch.guidance).folded() for batch in parts]
        except ValueError:  # no table has these numbers
            return math.inf
        losses = [self._losses(*each, _shares(each[0])) for each in zip(parts, tables, strict=True)]
        mean = float((weights * torch.cat(losses)).mean())
        return mean if math.isfinite(mean) else math.inf

    def _losses(self, batch: Pairs, folded: Table, parts: Sequence[slice]) -> Tensor:
        """Return the losses of pairs of one guidance scale; processes share the parts."""

        @torch.no_grad()
        def losses(part: slice) -> Tensor:
            samples = sample(self._bind(batch, part), batch.noise[part].to(self.model.device), folded)
            return self.loss(samples, batch.target[part].to(samples))

        self.evaluations += len(batch) * folded.nfe
        return torch.cat(list(distributed.map_sharded(losses, parts))).cpu()


def _widened(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return features in the dtype of the samples, or wider: a half has too few bits for their differences."""
    return lambda x: (extracted := features(x)).to(torch.promote_types(extracted.dtype, x.dtype))


def _shares(batch: Pairs) -> list[slice]:
    """Return the parts of a batch that processes take."""
    return distributed.shard_slices(len(batch)) if len(batch) >= distributed.world_size() else [slice(None)]
