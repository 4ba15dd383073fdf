"""The plan of a training: pairs and steps of each phase under a budget, and the network evaluations they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from gas.arguments import MAX_BATCH, MAX_SEED, integer
from gas.errors import UserError
from gas.training.gauss_newton import MEASURED_PAIRS, GaussNewton
from gas.training.initialization import StartSearch
from gas.training.linearization import evaluations_of, evaluations_of_measurement

# The training of the winner of the start search, which is near its minimum already: more steps that remember more of
# earlier pairs, and count pairs of larger loss in full. A validation, which costs as much as one of the first steps,
# only has to show that a training has not gone wrong.
FINISH = GaussNewton(iterations=18, batch=16, growth=1.1, forgetting=0.8, validate_every=3, outlier=30.0)

# A training that a person waits for: fewer steps, and a start chosen on few validation pairs.
QUICK, QUICK_SEARCH = (
    GaussNewton(iterations=8, batch=20, growth=1.2, largest=20),
    StartSearch(validation_pairs=16),
)

# The training of a learned table for a copy of its model: few steps of many pairs, all of which count to the end, as
# the table is near the minimum of most of them. mnist, NFE 4, int4: 88 pairs, drawn uniformly, take 11.8 to 9.8 on
# validation (x 1000).
_FURTHER = GaussNewton(iterations=6, batch=40, growth=1.2, forgetting=0.98, validate_every=1, outlier=30.0)


def steps_after(search: StartSearch) -> GaussNewton:
    """Return the settings of the training from a start that was chosen so."""
    if search.continues:
        return _FURTHER
    return FINISH if search.start == "best" else GaussNewton()


# Validation pairs that a budget pays for at most.
_VALIDATION = 256

# Power of a budget's share that validation pairs shrink with, less than others: of few, a gain is not sure, as single
# pairs carry much of the mean. digits, NFE 4, 8,000 evaluations: 117 pairs keep a table of 1.56 (x 1000, on unseen
# seeds), where 74 kept the classical one of 6.82.
_CERTAINTY = 0.3

# Share of a full training above which all candidates are raced. digits, NFE 4: after 1,100 evaluations from each of two
# starts, losses on unseen seeds are 2.3 and 6.3 (x 1000), after 8,000 they are 1.2 and 4.9: the start decides.
_RACED = 0.05

# Bisections of the share of a full training that a budget pays for: to a millionth.
_BISECTIONS = 20


@dataclass(frozen=True)
class Phase:
    """Network calls of a phase, each of a batch, and the evaluations of single samples in them."""

    calls: int
    evaluations: int

    def __add__(self, other: Phase) -> Phase:
        return Phase(self.calls + other.calls, self.evaluations + other.evaluations)

    @classmethod
    def of(cls, calls: int, rows: int, batch: int = 64) -> Phase:
        """Return a phase that calls the network so often for every one of some rows."""
        return cls(calls * -(-rows // batch), calls * rows)


@dataclass(frozen=True)
class TrainingPlan:
    """What :func:`gas.distill` does for one NFE.

    Args:
        nfe: network evaluations a sample.
        solvers: number of classical solvers to rank.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by.
        search: how the start is chosen.
        config: settings of the training.
    """

    nfe: int
    solvers: int
    pairs: int
    validation: int
    search: StartSearch = field(default_factory=StartSearch)
    config: GaussNewton = FINISH

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases in their order: ``ranking``, ``start`` (the short runs), ``training`` and ``validation``.

        The number of trials of a step is not known beforehand: one is assumed.
        """
        search, some = self.search, min(self.search.validation_pairs, self.validation)
        ranking, measured, count = Phase(0, 0), 0, self.solvers
        for most, size in search.rounds:
            count = count if most is None else min(count, most)
            stop = self.validation if size is None else max(measured, min(size, self.validation))
            further = stop - measured
            ranking += Phase.of(count * (self.nfe - 1) + 1, further) if further else Phase(0, 0)
            measured = stop
        start = Phase(0, 0)
        for running, first in self._runs:
            steps = range(first, first + search.steps)
            run = sum((self._step(i) for i in steps), Phase.of(self.nfe, some))
            start += Phase(running * run.calls, running * run.evaluations)
        steps = range(self._raced, self._raced + self.config.iterations)
        reports = {i + 1 for i in steps if (i + 1) % self.config.validate_every == 0} | {steps.stop}
        return {
            "ranking": ranking,
            "start": start,
            "training": sum((self._step(i) for i in steps), Phase(0, 0)),
            "validation": Phase.of(self.nfe * (1 + len(reports)), self.validation),
        }

    @property
    def step_pairs(self) -> tuple[int, ...]:
        """Pairs of each step after the short runs."""
        steps = range(self._raced, self._raced + self.config.iterations)
        return tuple(self._sizes(i)[0] for i in steps)

    @property
    def steps(self) -> int:
        """Gauss-Newton steps of all candidates and of the training."""
        runs = sum(running for running, _ in self._runs)
        return runs * self.search.steps + self.config.iterations

    @property
    def total(self) -> Phase:
        """All phases together."""
        return sum(self.phases.values(), Phase(0, 0))

    @property
    def _runs(self) -> list[tuple[int, int]]:
        """Candidates of each round of short runs, and the iteration that the round starts from."""
        if self.search.start != "best":
            return []
        most = self.search.candidates
        return [(most, 0)] if most == 1 else [(most, 0), (2, self.search.steps)]

    @property
    def _raced(self) -> int:
        return len(self._runs) * self.search.steps

    def _step(self, iteration: int) -> Phase:
        count, pool = self._sizes(iteration)
        step = Phase.of(self.nfe, pool, batch=count) + Phase.of(
            evaluations_of(self.nfe) + self.nfe, count, batch=MAX_BATCH
        )
        return step if iteration else step + Phase.of(evaluations_of_measurement(self.nfe), MEASURED_PAIRS)

    def _sizes(self, iteration: int) -> tuple[int, int]:
        config = self.search.first_steps(self.config)
        return config.sizes_of(iteration, self.pairs, evaluations_of(self.nfe))

    def within(self, budget: int) -> TrainingPlan:
        """Return the plan of the same training on fewer pairs that takes at most so many evaluations.

        Raises:
            ValueError: when the budget does not pay for a ranking, one step and a validation.
        """
        integer("budget (network evaluations)", budget, 1, MAX_SEED)
        least = self._scaled(0.0).total.evaluations
        if budget < least:
            raise UserError(
                f"budget must be at least {least:,} network evaluations at NFE {self.nfe}, for a ranking, one step "
                f"and a validation, got {budget:,}"
            )
        if self._scaled(1.0).total.evaluations <= budget:
            return self._scaled(1.0)
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self._scaled(middle).total.evaluations <= budget:
                low = middle
            else:
                high = middle
        plan = longer = self._scaled(low)
        while longer.total.evaluations <= budget:  # sizes are rounded: steps use what is left
            plan = longer
            longer = replace(plan, config=replace(plan.config, iterations=plan.config.iterations + 1))
        return plan

    def _scaled(self, share: float) -> TrainingPlan:
        """Return the plan that takes about this share of the evaluations: fewer pairs in fewer steps."""
        root, search, config = math.sqrt(share), self.search, self.config
        raced = min(1.0, math.sqrt(share / _RACED))
        return replace(
            self,
            validation=min(self.validation, max(16, round(_VALIDATION * share**_CERTAINTY))),
            search=replace(
                search,
                screening_pairs=max(1, round(search.screening_pairs * share**0.75)),
                shortlist=max(4, round(search.shortlist * root)),
                validation_pairs=max(8, round(search.validation_pairs * root)),
                finalists=max(2, round(search.finalists * root)),
                candidates=max(1, round(search.candidates * raced)),
                steps=max(1, round(search.steps * raced)),
            ),
            config=replace(
                config,
                iterations=max(1, round(config.iterations * share**0.25)),
                batch=max(3, round(config.batch * root)),
                growth=1 + (config.growth - 1) * root,
                validate_every=max(
                    config.validate_every, min(config.iterations, round(max(share, 0.01) ** -1.2))
                ),
            ),
        )
