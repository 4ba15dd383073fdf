"""Second-order learning: a solver has a few dozen parameters, so its curvature is small enough to write down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gas import distributed
from gas.arguments import MAX_BATCH, MAX_SEED, integer, number
from gas.denoise import Denoiser
from gas.errors import Diverged, UserError
from gas.losses import FeatureLoss, Loss, is_sum_of_squares
from gas.models.protocol import Model
from gas.models.runtime import full_precision, without_tf32
from gas.pairs.dataset import Pairs
from gas.sampling import sample
from gas.table import Table
from gas.training.batching import check_counts, check_turns, in_turn, visited
from gas.training.inner_solve import floored, minimise
from gas.training.linearization import Normal, evaluations_of, normal_equations, numbers

__all__ = ["GaussNewton", "GaussNewtonSteps"]

_TRIES = 8
_FEWEST = 8
_DAMPING = (1e-6, 1e6)


@dataclass(frozen=True)
class GaussNewton:
    """Settings of damped, incremental Gauss-Newton, for losses that are sums of squares.

    Args:
        iterations: steps; each sees new pairs.
        batch: pairs of the first step.
        growth: factor by which every step sees more pairs than the one before.
        largest: most pairs a step.
        budget: most network evaluations that a step's Jacobian may take, while it sees at least 8 pairs: with many
            NFE, whose columns are many, steps see fewer pairs.
        memory: weight of what is known from earlier steps against the newest, in [0, 1).
        damping: of the first step, in units of the curvature's diagonal.
        validate_every: iterations between validations.
        seed: of the pairs' order.
        outlier: in medians of a step's losses: a pair with a larger loss counts in the step as if it had that one
            (Huber's weights). Few pairs carry much of the mean, and are those whose samples bend most. ``inf``
            counts all alike.
        alternate: iterations after which times and coefficients take turns; 0 learns all at once.

    Raises:
        ValueError: names the setting that is out of range.
    """

    iterations: int = 16
    batch: int = 24
    growth: float = 1.15
    largest: int = 192
    budget: int = 12_000
    memory: float = 0.7
    damping: float = 1e-3
    validate_every: int = 2
    seed: int = 0
    outlier: float = 10.0
    alternate: int = 0

    def __post_init__(self) -> None:
        check_counts(self)
        integer("largest", self.largest, 1, MAX_BATCH)
        integer("budget", self.budget, 1, MAX_SEED)
        number("damping", self.damping, "(0, inf)")
        number("outlier", self.outlier, "[1, inf]")
        number("growth", self.growth, "[1, inf)")
        number("memory", self.memory, "[0, 1)")

    def pairs_of(self, iteration: int, available: int, cost: int = 0) -> int:
        """Return how many pairs an iteration sees, each of which costs so many network evaluations."""
        most = min(self.largest, available, max(_FEWEST, self.budget // max(cost, 1)))
        # Compared as logarithms: the power itself leaves the range of floats after some thousand iterations.
        if math.log(self.batch) + iteration * math.log(self.growth) >= math.log(most):
            return most
        return int(self.batch * self.growth**iteration)


class GaussNewtonSteps:
    """Minimises ``mean |f(student) - f(teacher)|^2`` by Levenberg-Marquardt steps on a running quadratic model.

    Each step linearises the samples of its pairs in the numbers q of the folded table, and adds
    ``sum |r_k + J_k (q - q_k)|^2`` to what earlier steps knew, faded by ``memory``: the model's minimum is that of many
    more pairs than one step could pay for (an extended Kalman filter, seen from the side of its inverse covariance).
    Its damped minimum over the solver's parameters, along which q is followed exactly, is taken if the step's own
    pairs agree, else damping grows. So a step does not depend on how a solver is parameterised, as far as the descent
    to that minimum gets.
    Derivatives are differences of answers, so a model of less precision is asked in full, and CUDA without TF32.

    References:
        Levenberg (1944), Marquardt (1963); Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35
        (1964); Bertsekas, "Incremental least squares methods and the extended Kalman filter", SIAM J. Optim. 6 (1996),
        equations 8 to 12.
    """

    def __init__(
        self, solver: nn.Module, model: Model, pairs: Pairs, loss: Loss, config: GaussNewton
    ) -> None:
        if not is_sum_of_squares(loss):
            raise UserError(
                f"Gauss-Newton needs a loss that is a sum of squares (l2 or a FeatureLoss), got {loss}"
            )
        self.solver, self.model, self.pairs, self.loss, self.config = (
            solver,
            full_precision(model),
            pairs,
            loss,
            config,
        )
        self.features = loss.features if isinstance(loss, FeatureLoss) else None
        self.learned = {name: p for name, p in solver.named_parameters() if p.requires_grad}
        check_turns(self.learned, config.alternate)
        size = len(self._numbers(self._parameters()))
        self.curvature = torch.zeros(size, size, dtype=torch.float64)
        self.gradient = torch.zeros(size, dtype=torch.float64)
        self.weight, self.damping = 0.0, config.damping
        self.iteration, self.evaluations = 0, 0
        self.cost = evaluations_of(solver().nfe)

    def averaged(self) -> nn.Module:
        """Return the solver to validate: the running model averages already."""
        return self.solver

    def step(self) -> float:
        """Take one step; return the loss of its pairs before it."""
        before = sum(self.config.pairs_of(i, len(self.pairs), self.cost) for i in range(self.iteration))
        count = self.config.pairs_of(self.iteration, len(self.pairs), self.cost)
        chosen = self.pairs.subset(visited(len(self.pairs), before, count, self.config.seed))
        x = chosen.noise.to(self.model.device)
        table = self._table(self._parameters()).detach()
        with without_tf32():
            normal = normal_equations(
                self._bind(chosen), x, chosen.target, table, self.features, self.config.outlier
            )
        loss = float(normal.losses.mean())
        if not math.isfinite(loss) or not bool(normal.curvature.isfinite().all()):
            raise Diverged(
                f"iteration {self.iteration}: the samples, or how they move, are not finite (loss {loss:g}); "
                "start from another solver"
            )
        self.evaluations += normal.evaluations
        q, keep = numbers(table), self.config.memory
        self.curvature = keep * self.curvature + count * normal.curvature
        self.gradient = keep * self.gradient + count * (normal.gradient - normal.curvature @ q)
        self.weight = keep * self.weight + count
        self._move(q, chosen, x, normal)
        self.iteration += 1
        return loss

    def _move(self, q: Tensor, chosen: Pairs, x: Tensor, newest: Normal) -> None:
        """Go to the damped minimum of the running model, with more damping until the step's pairs agree."""
        p, free, loss = self._parameters(), self._free(), newest.loss
        curvature = self.curvature / self.weight
        gradient = curvature @ q + self.gradient / self.weight
        metric = torch.diag(floored(curvature.diagonal()))
        for _ in range(_TRIES):
            damped = curvature + self.damping * metric
            # By one process: rounding, which differs among machines, decides which of its steps are taken.
            there = distributed.broadcast(partial(minimise, self._numbers, p, gradient, damped, free))
            reached, move = self._loss_at(there, chosen, x, newest.weights), self._numbers(there) - q
            promised = -float(2 * newest.gradient @ move + move @ newest.curvature @ move)
            # What is good for all pairs so far may cost the newest ones a little.
            if reached < 1.02 * loss:
                self._put(there)
                if loss - reached > 0.75 * promised:
                    self.damping = max(self.damping / 5, _DAMPING[0])
                elif loss - reached < 0.25 * promised:
                    self.damping = min(self.damping * 2, _DAMPING[1])
                return
            self.damping = min(self.damping * 5, _DAMPING[1])

    def _free(self) -> Tensor:
        """Indices of the parameters whose turn it is."""
        turns = [
            torch.full((parameter.numel(),), in_turn(name, self.iteration, self.config.alternate))
            for name, parameter in self.learned.items()
        ]
        return torch.cat(turns).nonzero()[:, 0]

    def report(self) -> dict[str, float]:
        """Return the damping, in units of the curvature's diagonal."""
        return {"damping": self.damping}

    def identity(self) -> dict[str, Any]:
        """Return what decides this training's bits."""
        return {"GaussNewton": asdict(self.config)}

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs to go on with the same bits."""
        return {
            "solver": self.solver.state_dict(),
            "curvature": self.curvature,
            "gradient": self.gradient,
            "weight": self.weight,
            "damping": self.damping,
            "iteration": self.iteration,
            "evaluations": self.evaluations,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.solver.load_state_dict(state["solver"])
        self.curvature, self.gradient = state["curvature"], state["gradient"]
        self.weight, self.damping = state["weight"], state["damping"]
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]

    def _bind(self, chosen: Pairs) -> Callable[[slice], Denoiser]:
        def bind(part: slice) -> Denoiser:
            return self.model.bind(chosen.subset(part).labels, self.pairs.guidance)

        return bind

    @torch.no_grad()
    def _loss_at(self, p: Tensor, chosen: Pairs, x: Tensor, weights: Tensor) -> float:
        try:
            table = self._table(p)
        except ValueError:  # numbers that are no table: as bad as can be
            return math.inf
        bind, folded = self._bind(chosen), table.folded()

        @torch.no_grad()
        def losses(part: slice) -> Tensor:
            made = sample(bind(part), x[part], folded)
            return self.loss(made, chosen.subset(part).target.to(made))

        self.evaluations += len(chosen) * table.nfe
        parts = (
            distributed.shard_slices(len(chosen))
            if len(chosen) >= distributed.world_size()
            else [slice(None)]
        )
        found = torch.cat(list(distributed.map_sharded(losses, parts))).cpu()
        value = float((weights * found).mean())
        return value if math.isfinite(value) else math.inf

    def _parameters(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.learned.values()).detach()

    def _table(self, p: Tensor) -> Table:
        """The solver's table at parameters ``p``, differentiable in them."""
        parts = p.split([parameter.numel() for parameter in self.learned.values()])
        named = {
            name: part.view_as(old) for (name, old), part in zip(self.learned.items(), parts, strict=True)
        }
        table: Table = functional_call(self.solver, named, ())
        return table

    def _numbers(self, p: Tensor) -> Tensor:
        return numbers(self._table(p))

    @torch.no_grad()
    def _put(self, p: Tensor) -> None:
        nn.utils.vector_to_parameters(p, self.learned.values())
