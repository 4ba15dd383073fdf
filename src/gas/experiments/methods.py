"""Methods that an experiment compares, and their names."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gas.classical.registry import NAMED_GRIDS, SOLVERS, Classical
from gas.errors import Diverged, UserError
from gas.experiments.experiment import Setting, ends_of
from gas.grids.analytic import GRIDS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.registry import SOLVERS as KINDS, kind_by_name
from gas.registry import named
from gas.table import Table, table_of
from gas.training.adversarial.setup import fit_adversarial
from gas.training.loop import FitRecord, fit
from gas.training.trajectory_grid import gits

__all__ = [
    "FAMILIES",
    "SCHEDULES",
    "Adversarial",
    "Contestant",
    "Learned",
    "Made",
    "OnGrid",
    "contestant_by_name",
]

# Grids that are found or published, not formulas: rows of their own.
SCHEDULES = ("gits", *(name for name in NAMED_GRIDS if name not in GRIDS))


@dataclass(frozen=True)
class Made:
    """A solver with what it came from and what it cost.

    Attributes:
        solver: a table, or a module that returns one.
        what: classical solver and grid: its own, or the one that learning started from.
        evaluations: network evaluations of learning, as :class:`gas.FitRecord` counts; none where nothing is.
        stopped: why learning ended early, if it did.
    """

    solver: Table | nn.Module
    what: str
    evaluations: int | None = None
    stopped: str = ""

    def table(self) -> Table:
        """Return the table to sample with, without gradient."""
        return table_of(self.solver)


class Contestant(Protocol):
    """One row of a comparison.

    Attributes:
        spec: how it is asked for.
        label: what people call it.
        family: ``"classical"``, ``"schedule"`` or ``"learned"``.
        after: what has to be made first, and is then handed to :meth:`make`.
    """

    @property
    def spec(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def after(self) -> Contestant | None: ...

    def lacks(self, setting: Setting, nfe: int) -> str:
        """Return why there is none of this NFE, or nothing."""

    def needs(self, setting: Setting, nfe: int) -> dict[str, Any]:
        """Return everything that decides the solver, in plain JSON."""

    def make(self, setting: Setting, nfe: int, before: Made | None) -> Generator[FitRecord, None, Made]:
        """Make the solver of one NFE, reporting how learning goes."""


@dataclass(frozen=True)
class OnGrid:
    """The best of some classical solvers, on the best grid or a given one: nothing is learned.

    Args:
        spec: as in :func:`gas.experiments.contestant_by_name`.
        label: for people.
        solvers: names of :data:`gas.classical.SOLVERS`; the validation pairs choose.
        grid: a name of :data:`gas.classical.NAMED_GRIDS`, or ``"gits"``; empty for whichever is best.
    """

    spec: str
    label: str
    solvers: tuple[str, ...]
    grid: str = ""
    after: Contestant | None = None

    @property
    def family(self) -> str:
        return "schedule" if self.grid in SCHEDULES else "classical"

    def lacks(self, setting: Setting, nfe: int) -> str:
        """Some grids are published for one model and a few NFE; Heun's NFE is even."""
        try:
            if self.solvers == ("heun",):
                Classical("heun", "log_snr", nfe, setting.model.t_end)
            if self.grid and self.grid != "gits":
                NAMED_GRIDS[self.grid](setting.model.schedule, nfe, setting.model.t_end)
        except ValueError as error:
            return str(error)
        return ""

    def needs(self, setting: Setting, nfe: int) -> dict[str, Any]:
        told: dict[str, Any] = {**setting.source(), "solvers": list(self.solvers), "grid": self.grid}
        if len(self.solvers) > 1 or not self.grid:
            some = setting.validation.subset(slice(0, setting.budget.rank))
            told |= {"ranked": ends_of(some), "loss": setting.budget.loss}
        if self.grid == "gits":
            told["guides"] = ends_of(setting.train.subset(slice(0, setting.budget.guides)))
        return told

    def make(self, setting: Setting, nfe: int, before: Made | None) -> Generator[FitRecord, None, Made]:
        yield from ()
        classical, grid = self._chosen(setting, nfe)
        return Made(classical.table(setting.model.schedule), f"{classical.solver} / {grid}")

    def _chosen(self, setting: Setting, nfe: int) -> tuple[Classical, str]:
        """Return the solver, and what its grid is called."""
        if not self.grid:
            (best, _), *_ = setting.rankings.rank(nfe, self.solvers)
            return best, best.grid
        if len(self.solvers) == 1 and self.grid != "gits":
            return Classical(self.solvers[0], self.grid, nfe, setting.model.t_end), self.grid
        return setting.rankings.best_on(nfe, self.solvers, self._times(setting, nfe)), self.grid

    def _times(self, setting: Setting, nfe: int) -> Tensor:
        if self.grid == "gits":
            return gits(setting.model, setting.train.subset(slice(0, setting.budget.guides)), nfe)
        return NAMED_GRIDS[self.grid](setting.model.schedule, nfe, setting.model.t_end)


@dataclass(frozen=True)
class Learned:
    """A solver learned within the budget; at its best on the validation pairs.

    Args:
        spec: as in :func:`gas.experiments.contestant_by_name`.
        label: for people.
        kind: a key of :data:`gas.learned.SOLVERS`.
        start: ``"best"`` (classical solver on the validation pairs, the same for all kinds), ``"uniform"`` (the
            paper's) or ``"SOLVER/GRID"``.
    """

    spec: str
    label: str
    kind: str
    start: str = "best"
    after: Contestant | None = None
    family = "learned"

    def lacks(self, setting: Setting, nfe: int) -> str:
        return ""

    def needs(self, setting: Setting, nfe: int) -> dict[str, Any]:
        told = {"kind": self.kind, "start": self.start, **setting.told()}
        if self.start == "best":
            told["ranked"] = ends_of(setting.validation.subset(slice(0, setting.budget.rank)))
        return told

    def make(self, setting: Setting, nfe: int, before: Made | None) -> Generator[FitRecord, None, Made]:
        kind, start = kind_by_name(self.kind), setting.start(self.start, nfe)
        solver = kind.build(setting.model.schedule, start)
        checkpoint = setting.checkpoint(self.spec, nfe, self.needs(setting, nfe))
        spent, stopped = 0, ""
        try:
            for record in fit(
                solver,
                setting.model,
                setting.train,
                validation=setting.validation,
                loss=setting.budget.loss,
                config=kind.training(setting.budget.config),
                checkpoint=checkpoint,
            ):
                spent = record.evaluations
                yield record
        except Diverged as error:
            stopped = str(error)
        return Made(solver, start.label, spent, stopped)


@dataclass(frozen=True)
class Adversarial:
    """GAS: GS within the budget, which then goes on against a critic.

    Args:
        spec: as in :func:`gas.experiments.contestant_by_name`.
        label: for people.
        after: the GS it goes on from.
    """

    spec: str
    label: str
    after: Learned
    family = "learned"

    def lacks(self, setting: Setting, nfe: int) -> str:
        """A critic needs reals beside the batch that the solver learns from."""
        batch = setting.budget.gas.batch
        if len(setting.train) < 2 * batch:
            return f"a critic needs two batches of {batch} pairs to learn from, got {len(setting.train)}"
        return self.after.lacks(setting, nfe)

    def needs(self, setting: Setting, nfe: int) -> dict[str, Any]:
        adversary = setting.adversary
        critics = [critic.config() for critic in adversary.discriminators()]
        told = {"critics": critics, "unit": adversary.unit, "pairing": adversary.pairing}
        return {**self.after.needs(setting, nfe), "kind": "gas", "gas": setting.budget.gas.config(), **told}

    def make(self, setting: Setting, nfe: int, before: Made | None) -> Generator[FitRecord, None, Made]:
        if before is None:
            raise UserError("GAS goes on from GS, which has to be made first")
        model, start = setting.model, setting.start(self.after.start, nfe)
        solver = GeneralizedSolver.from_table(model.schedule, before.table(), model.t_end)
        checkpoint = setting.checkpoint(self.spec, nfe, self.needs(setting, nfe))
        outcome = yield from fit_adversarial(
            setting.adversary,
            solver,
            model,
            setting.train,
            setting.validation,
            setting.budget.loss,
            checkpoint,
        )
        spent = (before.evaluations or 0) + outcome.evaluations
        return Made(solver, start.label, spent, outcome.stopped)


# Solvers of one name and several orders or variants, of which the validation pairs choose.
FAMILIES: dict[str, tuple[str, ...]] = {
    name: tuple(solver for solver in SOLVERS if solver.startswith(f"{name}-"))
    for name in ("dpmpp", "unipc", "ipndm", "deis")
}
_ALL = {"classical": tuple(SOLVERS)}
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
    "ld3": "LD3",
    "s4s": "S4S",
    "s4s-pc": "S4S + PC",
    "s4s-alt": "S4S-Alt",
    "bns": "BNS",
    "gs-free": "GS without theory",
    "gs": "GS",
    "gas": "GAS",
}


def contestant_by_name(spec: str, start: str = "best") -> Contestant:
    """Return what a name asks for.

    - ``SOLVER`` of :data:`gas.classical.SOLVERS`, or a family of them (``unipc``): on the grid that is best for it;
    - ``SOLVER/GRID``: on that grid, ``SOLVER/gits`` on the one that GITS finds;
    - ``gits``, ``dmn`` or a published grid: whichever classical solver is best on it;
    - ``classical``: the best of all solvers and grids;
    - ``gs``, ``ld3`` and the other kinds of :data:`gas.learned.SOLVERS`, or ``gas``, with ``@START`` from a start of
      its own.

    Args:
        spec: the name.
        start: of learned solvers that do not say.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    name, _, own = spec.partition("@")
    if name == "gas":
        return Adversarial(spec, _labelled(name, own), _learned("gs", own, start))
    if name in KINDS:
        return _learned(name, own, start)
    if own:
        raise UserError(f"only learned solvers have a start (NAME@START), got {spec!r}")
    solver, slash, grid = spec.partition("/")
    if slash:
        named("grid", grid, {**NAMED_GRIDS, "gits": None})
    elif solver in SCHEDULES:
        return OnGrid(spec, _LABELS.get(spec, spec), tuple(SOLVERS), spec)
    groups = {**{one: (one,) for one in SOLVERS}, **FAMILIES, **_ALL}
    everything = {**groups, **dict.fromkeys((*SCHEDULES, *KINDS, "gas"), ())}
    solvers = groups.get(solver) or named("solver", solver, everything)
    label = _LABELS.get(solver, solver) + (f" / {grid}" if grid else "")
    return OnGrid(spec, label, tuple(solvers), grid)


def _learned(kind: str, own: str, start: str) -> Learned:
    return Learned(f"{kind}@{own}" if own else kind, _labelled(kind, own), kind, own or start)


def _labelled(name: str, own: str) -> str:
    return _LABELS.get(name, name) + (f", {own} start" if own else "")
