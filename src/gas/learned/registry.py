"""The ways to parameterise a learned solver, by name: what each is and how it starts at a classical solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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

if TYPE_CHECKING:
    from gas.training.adam import Adam
    from gas.training.gauss_newton import GaussNewton

__all__ = ["SOLVERS", "TITLES", "Kind", "kind_by_name"]

Config = TypeVar("Config", bound="Adam | GaussNewton")

# Halves of an alternating training: times, coefficients, and so on.
_TURNS = 6


@dataclass(frozen=True)
class Kind:
    """A way to parameterise a solver.

    Args:
        what: one line for people.
        build: makes the module that starts at a classical solver on a schedule.
        repeats: whether it can start where times repeat, as Heun's do.
        alternates: whether times and coefficients are learned in turns.
        lasting: whether the classical solver it starts at stays its formula, on learned times.
    """

    what: str
    build: Callable[[Schedule, Classical], nn.Module]
    repeats: bool = True
    alternates: bool = False
    lasting: bool = False

    def starts_at(self, classical: Classical) -> bool:
        """Whether :attr:`build` can start there."""
        return self.repeats or classical.solver != "heun"

    def training(self, config: Config) -> Config:
        """Return settings with this kind's turns, unless they have some."""
        if not self.alternates or config.alternate:
            return config
        return replace(config, alternate=max(1, config.iterations // _TURNS))


def _gs(theory: bool) -> Callable[[Schedule, Classical], nn.Module]:
    def build(schedule: Schedule, start: Classical) -> nn.Module:
        if start.spec == "dpmpp-3m/time_uniform":  # its own start: corrections are zero, not merely tiny
            return GeneralizedSolver(schedule, start.nfe, start.t_end, theory=theory)
        return GeneralizedSolver.from_table(schedule, start.table(schedule), start.t_end, theory=theory)

    return build


def _s4s(corrector: bool) -> Callable[[Schedule, Classical], nn.Module]:
    def build(schedule: Schedule, start: Classical) -> nn.Module:
        return S4S.from_table(schedule, start.table(schedule), start.t_end, corrector=corrector)

    return build


def _ld3(schedule: Schedule, start: Classical) -> nn.Module:
    return LD3(schedule, start.nfe, start.t_end, base=start.solver, grid=start.grid)


def _bns(schedule: Schedule, start: Classical) -> nn.Module:
    return BNS.from_table(schedule, start.table(schedule), start.t_end)


SOLVERS: dict[str, Kind] = {
    "gs": Kind("GS: theoretical coefficients and corrections", _gs(theory=True)),
    "gs-free": Kind("GS without theory: coefficients do not follow the times", _gs(theory=False)),
    "ld3": Kind("LD3: times alone, coefficients of a classical solver", _ld3, lasting=True),
    "s4s": Kind("S4S: times and weights of answers", _s4s(corrector=False), repeats=False),
    "s4s-pc": Kind("S4S with a corrector", _s4s(corrector=True), repeats=False),
    "s4s-alt": Kind("S4S, times and weights in turns", _s4s(corrector=False), repeats=False, alternates=True),
    "bns": Kind("BNS: every number of the folded table", _bns),
}


# What tables call them.
TITLES = {"gs": "GS", "gs-free": "GS without theory", "ld3": "LD3", "bns": "BNS"}
TITLES |= {"s4s": "S4S", "s4s-pc": "S4S + PC", "s4s-alt": "S4S-Alt"}


def kind_by_name(name: str, *, theory: bool = True) -> Kind:
    """Return a kind of :data:`SOLVERS`.

    Args:
        name: its key.
        theory: ``False`` makes ``gs`` the ``gs-free``; the others have no theory to leave out.

    Raises:
        ValueError: for an unknown name, with the nearest known one, or another kind without theory.
    """
    if not theory and name not in ("gs", "gs-free"):
        raise UserError(f"theory can be left out of gs only, got solver {name!r}")
    return named("solver", name if theory else "gs-free", SOLVERS)
