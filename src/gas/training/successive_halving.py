"""Successive halving: solvers in short runs of training, of which each round takes the best on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gas.errors import Diverged
from gas.losses import Loss
from gas.pairs.dataset import Pairs
from gas.table import table_of
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.validation import evaluate, typical

# A few steps tell minima apart, as the first ones gain most. They forget faster than a full training, which starts
# without their model of the loss.
SHORT_RUN = GaussNewton(iterations=3, batch=8, validate_every=3)

# Candidates that are trained for a second round.
_SECOND_ROUND = 2

K = TypeVar("K")
R = TypeVar("R")


@dataclass
class Candidate(Generic[K]):
    """A solver in training, with its best state so far: steps on few pairs may also lead away from it.

    Attributes:
        key: of the candidate among the others.
        steps: its optimizer.
        typical: its least typical loss so far (:func:`gas.training.validation.typical`).
        loss: its mean loss there.
        state: of the optimizer there; ``None`` before a run that did not diverge.
    """

    key: K
    steps: GaussNewtonSteps
    typical: float = math.inf
    loss: float = math.inf
    state: dict[str, Any] | None = None

    def short_run(self, steps: int, validation: Pairs, distance: Loss, limit: float) -> int:
        """Train and validate; return the network evaluations. A run that diverges changes nothing."""
        before, cost = self.steps.evaluations, len(validation) * self.steps.nfe
        limit += before - cost
        if before + self.steps.step_cost() > limit:
            return 0
        try:
            for _ in range(steps):
                if self.steps.evaluations + self.steps.step_cost() > limit:
                    break
                self.steps.step(limit)
        except Diverged:
            return self.steps.evaluations - before
        losses = evaluate(self.steps.model, validation, table_of(self.steps.solver), distance)
        if (value := typical(losses)) < self.typical:
            self.typical, self.loss = value, float(losses.mean())
            self.state = copy.deepcopy(self.steps.state())
        return self.steps.evaluations - before + cost


def halve(
    running: list[Candidate[K]],
    steps: int,
    further: int,
    validation: Pairs,
    distance: Loss,
    report: Callable[[K, float, int, int, int], R],
    limit: float = math.inf,
) -> Generator[R, None, tuple[Candidate[K], int]]:
    """Train all candidates for a round and the best two for further ones; return the winner and the evaluations.

    Yields:
        ``report(key, loss, run, runs, evaluations)`` of a candidate after each short run, with that run's evaluations.
    """
    sizes = [len(running), *[min(_SECOND_ROUND, len(running))] * further]
    spent, run = 0, 0
    for size in sizes:
        running = running[:size]
        for candidate in running:
            run += 1
            cost = candidate.short_run(steps, validation, distance, limit - spent)
            spent += cost
            yield report(candidate.key, candidate.loss, run, sum(sizes), cost)
        running.sort(key=lambda candidate: candidate.typical)
    return running[0], spent
