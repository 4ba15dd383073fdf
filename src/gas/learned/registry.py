"""Learned solvers by name: how each is built from the classical solver that it starts at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from gas.classical.registry import Classical
from gas.errors import UserError
from gas.learned.bns import BNS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.ld3 import LD3
from gas.learned.s4s import S4S
from gas.registry import named
from gas.schedule import Schedule
from gas.table import Table

if TYPE_CHECKING:
    from gas.training.adam import Adam
    from gas.training.gauss_newton import GaussNewton

Config = TypeVar("Config", bound="Adam | GaussNewton")

# Phases of an alternating training: times, coefficients, times and so on, three of each.
_TURNS = 6


@dataclass(frozen=True)
class LearnedStart:
    """A learned table to start at, in place of a classical solver."""

    learned: Table
    t_end: float

    def table(self, schedule: Schedule) -> Table:
        """Return the table."""
        return self.learned


@dataclass(frozen=True)
class Kind:
    """A parameterization of a learned solver: ``build`` makes the module that starts at a classical or learned one."""

    title: str  # for reports
    build: Callable[[Schedule, Classical | LearnedStart], nn.Module]
    repeats: bool = True  # whether it can start at a solver with repeated times, as Heun's
    alternates: bool = False  # whether times and coefficients are learned in turns
    lasting: bool = False  # whether it keeps the formula of the classical solver, on learned times

    def starts_at(self, classical: Classical) -> bool:
        """Return whether :attr:`build` can start at this solver."""
        return self.repeats or classical.solver != "heun"

    def training(self, config: Config) -> Config:
        """Return the config with this kind's alternating phases, unless it sets some."""
        if not self.alternates or config.alternate:
            return config
        return replace(config, alternate=max(1, config.iterations // _TURNS))


def _gs(schedule: Schedule, start: Classical | LearnedStart, *, theory: bool) -> nn.Module:
    # The start of every new solver: corrections are exactly zero, not rounding errors.
    if isinstance(start, Classical) and start.spec == "dpmpp-3m/time_uniform":
        return GeneralizedSolver(schedule, start.nfe, start.t_end, theory=theory)
    return GeneralizedSolver.from_table(schedule, start.table(schedule), start.t_end, theory=theory)


def _ld3(schedule: Schedule, start: Classical | LearnedStart) -> nn.Module:
    if isinstance(start, LearnedStart):
        raise UserError(
            "ld3 has a classical solver's formula and cannot start at a learned table: start at SOLVER/GRID"
        )
    return LD3(schedule, start.nfe, start.t_end, base=start.solver, grid=start.grid)


def _of_table(
    kind: type[S4S | BNS], schedule: Schedule, start: Classical | LearnedStart, **options: bool
) -> nn.Module:
    return kind.from_table(schedule, start.table(schedule), start.t_end, **options)


SOLVERS: dict[str, Kind] = {
    "gs": Kind("GS", partial(_gs, theory=True)),
    "gs-free": Kind("GS without theory", partial(_gs, theory=False)),
    "ld3": Kind("LD3", _ld3, lasting=True),
    "s4s": Kind("S4S", partial(_of_table, S4S), repeats=False),
    "s4s-pc": Kind("S4S + PC", partial(_of_table, S4S, corrector=True), repeats=False),
    "s4s-alt": Kind("S4S-Alt", partial(_of_table, S4S), repeats=False, alternates=True),
    "bns": Kind("BNS", partial(_of_table, BNS)),
}


def kind_by_name(name: str, *, theory: bool = True) -> Kind:
    """Return a kind of :data:`SOLVERS`; ``theory=False`` turns ``gs`` into ``gs-free``, others have no such variant."""
    if not theory and name not in ("gs", "gs-free"):
        raise UserError(f"theory can be left out of gs only, got solver {name!r}")
    return named("solver", name if theory else "gs-free", SOLVERS)
