"""Where a training starts: classical solvers are measured, and the best of each grid race."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas.catalogue import Classical, candidates
from gas.files import write_text
from gas.fit import fit
from gas.learned import Kind, kind_by_name
from gas.losses import loss_by_name
from gas.model import Model
from gas.optimizers import Diverged, GaussNewton
from gas.pairs import Pairs
from gas.schedule import Schedule
from gas.start import Measured, evaluate, finite_loss, rank_classical

__all__ = ["FINALISTS", "Race", "Raced", "Started"]

# Classical solvers that are measured on all validation pairs after a first round on some.
FINALISTS = 6

# What every entrant is trained for.
_SPRINT = GaussNewton(iterations=6, batch=12, validate_every=6)


@dataclass(frozen=True)
class Started:
    """The best classical solver on the validation pairs, where training starts, and what the race left."""

    best: Classical
    best_loss: float
    start: str
    numbers: Mapping[str, Any] | None = None
    evaluations: int = 0

    def solver(self, schedule: Schedule, kind: Kind) -> nn.Module:
        """Return the solver to train, at its start."""
        solver = kind.build(schedule, named_start(self.start, self.best.nfe, self.best.t_end))
        if self.numbers is not None:
            numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.numbers.items()}
            solver.load_state_dict(numbers)
        return solver


@dataclass(frozen=True)
class Raced:
    """A start of the race, with the validation loss that a little training brought it to."""

    classical: Classical
    loss: float
    place: int
    starts: int
    evaluations: int


@dataclass(frozen=True)
class Race:
    """How the start of a training is chosen.

    Args:
        start: ``"best"`` (a race of the best classical tables), ``"uniform"`` (the paper's: DPM-Solver++(3M) on
            the time-uniform grid), or ``"SOLVER/GRID"`` by name.
        first: validation pairs that every classical solver is measured on before the finalists.
        starts: most entrants of the race: the best solver of each grid. The loss has several minima, and which
            one is found is a matter of the grid; the best table at first need not lead to the best one.
        near: a grid ``(nfe + 1,)`` of one's own, whose best classical solver enters the race first.
        sprint: settings that each entrant is trained with (on squared error); the best on validation wins.
    """

    start: str = "best"
    first: int = 64
    starts: int = 4
    near: Tensor | None = None
    sprint: GaussNewton = _SPRINT

    def run(
        self,
        model: Model,
        pairs: Pairs,
        validation: Pairs,
        nfe: int,
        *,
        loss: str,
        solver: str,
        theory: bool,
        state: Path | None,
    ) -> Generator[Measured | Raced, None, Started]:
        """Choose, or read what an interrupted run chose.

        Args:
            model: whose denoiser to ask.
            pairs: teacher pairs to train on.
            validation: teacher pairs to choose by.
            nfe: network evaluations.
            loss: a name of :data:`gas.losses.LOSSES`.
            solver: a key of :data:`gas.learned.SOLVERS`: what enters the race.
            theory: as in :func:`gas.learned.kind_by_name`.
            state: folder that the choice is kept in.

        Yields:
            Measured for each classical solver, Raced for each entrant.

        Raises:
            ValueError: for unknown names, or a state that belongs to another run.
        """
        kind = kind_by_name(solver, theory=theory)
        if self.start != "best":  # what is wrong is refused before the long measuring
            kind.build(model.schedule, named_start(self.start, nfe, model.t_end))
        asked = {
            **{name: value for name, value in asdict(self).items() if name != "near"},
            "near": None if self.near is None else self.near.tolist(),
            "loss": loss,
            "solver": solver,
            "theory": theory,
            "model": dict(model.identity()),
            "pairs": _ends(pairs),
            "validation": _ends(validation),
        }
        path = None if state is None else state / f"nfe-{nfe}.start.json"
        if path is not None and path.exists():
            return _read(path, asked)
        chosen = yield from self._choose(model, pairs, validation, nfe, loss, kind)
        if path is not None:
            write_text(path, json.dumps({**asdict(chosen), "asked": asked}))
        return chosen

    def _choose(
        self, model: Model, pairs: Pairs, validation: Pairs, nfe: int, loss: str, kind: Kind
    ) -> Generator[Measured | Raced, None, Started]:
        """Measure every classical solver; where the start is left open, race the best of each grid."""
        ranked, distance = [], loss_by_name(loss)
        for measured in rank_classical(model, validation, nfe, distance, first=self.first, kept=FINALISTS):
            ranked.append(measured)
            yield measured
        best = ranked[-min(FINALISTS, len(ranked) // 2)]
        if self.start != "best":
            return Started(best.classical, best.loss, self.start)
        entrants = _best_of_each_grid(ranked, self.starts, kind)
        if self.near is not None:
            own = candidates(model.schedule, nfe, model.t_end, own=self.near)
            there = rank_classical(model, validation, nfe, distance, entries=own, first=self.first, kept=0)
            entrants = [*_best_of_each_grid(list(there), 1, kind), *entrants][: self.starts]
        reached: list[tuple[float, Classical, dict[str, Any]]] = []
        spent = 0
        for place, entrant in enumerate(entrants, start=1):
            solver = kind.build(model.schedule, entrant.classical)
            calls = self._sprint(solver, model, pairs, validation, kind.training(self.sprint))
            value = float(evaluate(model, validation, solver().detach(), distance).mean())
            numbers = {name: parameter.tolist() for name, parameter in solver.state_dict().items()}
            reached.append((value if math.isfinite(value) else math.inf, entrant.classical, numbers))
            spent += calls
            yield Raced(entrant.classical, value, place, len(entrants), calls)
        _, winner, numbers = min(reached, key=lambda entry: entry[0])
        return Started(best.classical, best.loss, winner.spec, numbers, spent)

    def _sprint(
        self, solver: nn.Module, model: Model, pairs: Pairs, validation: Pairs, config: GaussNewton
    ) -> int:
        """Train an entrant a little; return the network evaluations. One that blows up stays where it was best."""
        spent = 0
        with contextlib.suppress(Diverged):
            for record in fit(solver, model, pairs, validation=validation, loss="l2", config=config):
                spent = record.evaluations
        return spent


def named_start(start: str, nfe: int, t_end: float) -> Classical:
    """Return the classical solver of ``"SOLVER/GRID"``; the grid may be left out. ``"uniform"`` is the paper's."""
    if start == "uniform":
        return Classical("dpmpp-3m", "time_uniform", nfe, t_end)
    name, _, grid = start.partition("/")
    return Classical(name.strip(), grid.strip() or "log_snr", nfe, t_end)


def _best_of_each_grid(ranked: Sequence[Measured], most: int, kind: Kind) -> list[Measured]:
    """The best solver of every grid on the first pairs that this kind can start at, best first."""
    ranked = [m for m in ranked if kind.starts_at(m.classical)]
    first = min(m.pairs for m in ranked)
    by_grid: dict[str, Measured] = {}
    for measured in sorted((m for m in ranked if m.pairs == first), key=finite_loss):
        by_grid.setdefault(measured.classical.grid, measured)
    return list(by_grid.values())[:most]


def _ends(pairs: Pairs) -> list[int]:
    return [len(pairs), int(pairs.seeds[0]), int(pairs.seeds[-1])]


def _read(path: Path, asked: Mapping[str, Any]) -> Started:
    try:
        found = json.loads(path.read_text())
        if found["asked"] != asked:
            other = [name for name, value in asked.items() if found["asked"].get(name) != value]
            told = "; ".join(f"{name} was {found['asked'].get(name)}, is {asked[name]}" for name in other)
            raise ValueError(f"it is of another run: {told}")
        best = Classical(**found["best"])
        rest = (found["numbers"], int(found["evaluations"]))
        return Started(best, float(found["best_loss"]), str(found["start"]), *rest)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be continued ({error}): delete {path.parent} to train afresh"
        ) from error
