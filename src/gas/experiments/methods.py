"""Methods that an experiment compares, and their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from gas.classical.registry import NAMED_GRIDS, SOLVERS, Classical
from gas.errors import Diverged, UserError
from gas.evaluation.evaluator import selection_fingerprint
from gas.experiments.experiment import Experiment
from gas.grids.analytic import GRIDS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.registry import SOLVERS as KINDS, kind_by_name
from gas.pairs.fingerprint import model_fingerprint
from gas.registry import named
from gas.table import Table, table_of
from gas.training.adversarial.setup import fit_adversarial
from gas.training.initialization import check_start, named_start
from gas.training.loop import FitRecord, default_keep, fit
from gas.training.trajectory_grid import gits

# Grids that are searched for or published rather than formulas: methods of their own.
SCHEDULES = ("gits", *(name for name in NAMED_GRIDS if name not in GRIDS))


@dataclass(frozen=True)
class SolverResult:
    """A table, or a module that returns one, with the fields of :class:`MethodResult` that its making decides."""

    solver: Table | nn.Module
    origin: str
    evaluations: int | None = None
    stopped: str = ""

    def table(self) -> Table:
        """Return the table to sample with, without gradient."""
        return table_of(self.solver)


# Training records, then the result.
Making = Iterator[FitRecord | SolverResult]


class Method(Protocol):
    """One row of an experiment, with the fields of :class:`MethodResult`; :meth:`make` continues from ``base``."""

    @property
    def spec(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def base(self) -> Method | None: ...

    def unavailable(self, experiment: Experiment, nfe: int) -> str:
        """Return why the method does not exist at this NFE, or an empty string."""

    def fingerprint(self, experiment: Experiment, nfe: int) -> dict[str, Any]:
        """Return everything that decides the solver, in plain JSON."""

    def make(self, experiment: Experiment, nfe: int, base: SolverResult | None) -> Making:
        """Make the solver for one NFE: yield training records, then the result."""


@dataclass(frozen=True)
class ClassicalMethod:
    """The best of some classical solvers, on the best grid or a given one; nothing is trained.

    Args:
        spec: as :func:`method_by_name` takes it.
        label: for reports.
        solvers: names of :data:`gas.classical.SOLVERS`, ranked on validation pairs.
        grid: a name of :data:`gas.classical.NAMED_GRIDS`, or ``"gits"``; empty for the best.
    """

    spec: str
    label: str
    solvers: tuple[str, ...]
    grid: str = ""
    base: Method | None = None

    @property
    def category(self) -> str:
        return "schedule" if self.grid in SCHEDULES else "classical"

    def unavailable(self, experiment: Experiment, nfe: int) -> str:
        """Some grids are published for one model and a few NFE; Heun's NFE is even."""
        model = experiment.model
        try:
            if self.solvers == ("heun",):
                Classical("heun", "log_snr", nfe, model.t_end)
            if self.grid and self.grid != "gits":
                NAMED_GRIDS[self.grid](model.schedule, nfe, model.t_end)
        except ValueError as error:
            return str(error)
        return ""

    def fingerprint(self, experiment: Experiment, nfe: int) -> dict[str, Any]:
        model = model_fingerprint(experiment.model)
        fingerprint = {**model, "solvers": list(self.solvers), "grid": self.grid}
        if len(self.solvers) > 1 or not self.grid:
            fingerprint["ranked"] = selection_fingerprint(experiment.ranking_pairs)
            fingerprint["loss"] = experiment.budget.loss
        if self.grid == "gits":
            fingerprint["guides"] = selection_fingerprint(experiment.guides)
        return fingerprint

    def make(self, experiment: Experiment, nfe: int, base: SolverResult | None) -> Making:
        model, rankings = experiment.model, experiment.rankings
        if not self.grid:
            classical = rankings.rank(nfe, self.solvers)[0][0]
        elif self.grid == "gits":
            classical = rankings.best_on(nfe, self.solvers, gits(model, experiment.guides, nfe))
        elif len(self.solvers) == 1:
            classical = Classical(self.solvers[0], self.grid, nfe, model.t_end)
        else:
            grid = NAMED_GRIDS[self.grid](model.schedule, nfe, model.t_end)
            classical = rankings.best_on(nfe, self.solvers, grid)
        origin = f"{classical.solver} / {self.grid or classical.grid}"
        yield SolverResult(classical.table(model.schedule), origin)


@dataclass(frozen=True)
class LearnedMethod:
    """A solver trained within the budget, the one that :func:`gas.fit` keeps.

    Args:
        spec: as :func:`method_by_name` takes it.
        label: for reports.
        kind: a key of :data:`gas.learned.SOLVERS`.
        start: ``"best"`` (the best classical solver on validation pairs, the same for all kinds), ``"uniform"`` (the
            paper's) or ``"SOLVER/GRID"``.
    """

    spec: str
    label: str
    kind: str
    start: str = "best"
    base: Method | None = None
    category = "learned"

    def unavailable(self, experiment: Experiment, nfe: int) -> str:
        """Starts at Heun are of an even NFE, and not every kind has one."""
        if self.start == "best":
            return ""
        try:
            start = named_start(self.start, nfe, experiment.model.t_end)
        except ValueError as error:
            return str(error)
        return "" if kind_by_name(self.kind).starts_at(start) else f"{self.kind} takes one step for each call"

    def fingerprint(self, experiment: Experiment, nfe: int) -> dict[str, Any]:
        keep = default_keep(experiment.budget.config)
        fingerprint = {"kind": self.kind, "start": self.start, "keep": keep, **experiment.fingerprint()}
        if self.start == "best":
            fingerprint["ranked"] = selection_fingerprint(experiment.ranking_pairs)
        return fingerprint

    def make(self, experiment: Experiment, nfe: int, base: SolverResult | None) -> Making:
        kind, start, budget = kind_by_name(self.kind), experiment.start(self.start, nfe), experiment.budget
        solver = kind.build(experiment.model.schedule, start)
        evaluations, stopped = 0, ""
        try:
            for record in fit(
                solver,
                experiment.model,
                experiment.train,
                validation=experiment.validation,
                loss=budget.loss,
                config=kind.training(budget.config),
                checkpoint=experiment.checkpoint(self.spec, nfe, self.fingerprint(experiment, nfe)),
            ):
                evaluations = record.evaluations
                yield record
        except Diverged as error:
            stopped = str(error)
        yield SolverResult(solver, start.label, evaluations, stopped)


@dataclass(frozen=True)
class AdversarialMethod:
    """GAS: the solver of ``base``, trained further against a discriminator."""

    spec: str
    label: str
    base: Method
    category = "learned"

    def unavailable(self, experiment: Experiment, nfe: int) -> str:
        """A discriminator needs real samples besides the batch that the solver learns from."""
        batch = experiment.budget.gas.batch
        if len(experiment.train) < 2 * batch:
            return f"a critic needs two batches of {batch} pairs to learn from, got {len(experiment.train)}"
        return self.base.unavailable(experiment, nfe)

    def fingerprint(self, experiment: Experiment, nfe: int) -> dict[str, Any]:
        adversary = experiment.adversary
        return {
            **self.base.fingerprint(experiment, nfe),
            "kind": "gas",
            "gas": experiment.budget.gas.config(),
            "critics": [discriminator.config() for discriminator in adversary.discriminators()],
            "unit": adversary.unit,
            "pairing": adversary.pairing,
        }

    def make(self, experiment: Experiment, nfe: int, base: SolverResult | None) -> Making:
        if base is None:
            raise UserError("GAS continues from GS, which has to be trained first")
        model, sets = experiment.model, (experiment.train, experiment.validation)
        solver = GeneralizedSolver.from_table(model.schedule, base.table(), model.t_end)
        checkpoint = experiment.checkpoint(self.spec, nfe, self.fingerprint(experiment, nfe))
        result = yield from fit_adversarial(
            experiment.adversary, solver, model, *sets, experiment.budget.loss, checkpoint
        )
        evaluations = (base.evaluations or 0) + result.evaluations
        yield SolverResult(solver, base.origin, evaluations, result.stopped)


# Groups of solvers of several orders or variants, of which the best on validation pairs is taken.
SOLVER_GROUPS: dict[str, tuple[str, ...]] = {"classical": tuple(SOLVERS)}
for _family in ("dpmpp", "unipc", "ipndm", "deis"):
    SOLVER_GROUPS[_family] = tuple(name for name in SOLVERS if name.startswith(f"{_family}-"))
_LABELS = {
    "classical": "best classical",
    "ddim": "DDIM = DPM-Solver++(1M)",
    "dpmpp": "DPM-Solver++",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "dpmpp-3m": "DPM-Solver++(3M)",
    "dpmpp-3m-corrected": "DPM-Solver++(3M), corrected",
    "unipc": "UniPC",
    "ipndm": "iPNDM",
    "deis": "DEIS",
    "heun": "Heun",
    "gits": "GITS",
    "dmn": "DMN",
    **{name: kind.title for name, kind in KINDS.items()},
    "gas": "GAS",
}


def method_by_name(spec: str, start: str = "best") -> Method:
    """Return the method of a name.

    - ``SOLVER`` of :data:`gas.classical.SOLVERS`, or a group of them (``unipc``): on the grid that is best for it;
    - ``SOLVER/GRID``: on that grid, ``SOLVER/gits`` on the one that GITS finds;
    - ``gits``, ``dmn`` or a published grid: with the classical solver that is best on it;
    - ``classical``: the best of all solvers and grids;
    - ``gs``, ``ld3`` and the other kinds of :data:`gas.learned.SOLVERS`, or ``gas``; ``NAME@START`` sets the start.

    ``start`` is that of learned solvers whose name does not set it.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    name, _, own_start = spec.partition("@")
    if name == "gas" or name in KINDS:
        check_start(own_start or start)
        kind, suffix = "gs" if name == "gas" else name, f", {own_start} start" if own_start else ""
        kind_spec = spec if name == kind else spec.replace("gas", "gs", 1)
        learned = LearnedMethod(kind_spec, _LABELS[kind] + suffix, kind, own_start or start)
        return AdversarialMethod(spec, f"GAS{suffix}", learned) if name == "gas" else learned
    if own_start:
        raise UserError(f"only learned solvers have a start (NAME@START), got {spec!r}")
    solver, slash, grid = spec.partition("/")
    if slash:
        named("grid", grid, {**NAMED_GRIDS, "gits": None})
    elif solver in SCHEDULES:
        return ClassicalMethod(spec, _LABELS.get(spec, spec), tuple(SOLVERS), spec)
    groups = {**{name: (name,) for name in SOLVERS}, **SOLVER_GROUPS}
    everything = {**groups, **dict.fromkeys((*SCHEDULES, *KINDS, "gas"), ())}
    solvers = groups.get(solver) or named("solver", solver, everything)
    label = _LABELS.get(solver, solver) + (f" / {grid}" if grid else "")
    return ClassicalMethod(spec, label, tuple(solvers), grid)
