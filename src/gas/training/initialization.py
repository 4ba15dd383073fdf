"""Where a training starts: classical solvers are measured, and the best of each grid race."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import MAX_SEEDS, integer
from gas.classical.registry import Classical, candidates, grid_times
from gas.display import brief, one_line
from gas.errors import Diverged, UserError
from gas.grids.analytic import as_grid
from gas.io import add_checksum, read_json, verify_checksum, write_text
from gas.learned.registry import Kind, kind_by_name
from gas.losses import Loss, l2, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.schedule import Schedule
from gas.table import Table
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.ranking import Measured, finite_loss, rank_classical
from gas.training.validation import evaluate

__all__ = ["FINALISTS", "ROUNDING", "SHORTLIST", "Race", "Raced", "Started", "check_start", "start_label"]

# Classical solvers that are measured on all validation pairs after a first round on some.
FINALISTS = 4

# Classical solvers that are measured a second time, on more pairs.
SHORTLIST = 16

# A loss of the best classical solver below which there is nothing to learn: it is the teacher, to float32's rounding.
ROUNDING = 1e-11

# Entrants of the first round that are trained for a second one.
_SECOND = 2

# Further rounds of these where the formula lasts (LD3): which has the better minimum shows late.
_LASTING = 2

# Where times start then: classical losses say little of where learned ones end. digits, 4 calls, squared error x 1000
# after 7 steps from this grid: unipc-2-bh1 4.03, ipndm-2 5.26, unipc-2-bh2 5.41; unipc-2-bh1 from time_cubic 4.39.
_LASTING_GRID = "log_snr"

# What a start is trained for in a round of the race.
_SPRINT = GaussNewton(iterations=3, batch=12, validate_every=3)


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
    """A start of the race, with the loss that a little training brought it to on some of the validation pairs.

    ``place`` counts what the race has trained so far, of ``starts`` in all its rounds.
    """

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
        rank: validation pairs that every classical solver is measured on; the best of each grid enter the race.
        first: validation pairs that the best :data:`SHORTLIST` of them, and every entrant, are measured on.
        starts: most starts of the race: the best solver of each grid. The loss has several minima, and which
            one is found is a matter of the grid; the best table at first need not lead to the best one.
        near: a grid ``(nfe + 1,)`` of one's own, whose best classical solver enters the race first.
        sprint: settings that each start is trained with in a round (on squared error). The two best of a first round
            are trained for a second one, and the one that then validates best wins.

    Raises:
        ValueError: names the setting that is unknown or out of range.
    """

    start: str = "best"
    rank: int = 16
    first: int = 64
    starts: int = 3
    near: Tensor | None = None
    sprint: GaussNewton = _SPRINT

    def __post_init__(self) -> None:
        check_start(self.start)
        for name in ("rank", "first", "starts"):
            integer(name, getattr(self, name), 1, MAX_SEEDS)
        if not isinstance(self.sprint, GaussNewton):
            raise UserError(f"sprint must be a gas.GaussNewton, got a {type(self.sprint).__name__}")

    def seeded(self, seed: int) -> Race:
        """Return the race with training pairs in the order of another seed."""
        return replace(self, sprint=replace(self.sprint, seed=seed))

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
            "model": dict(model.fingerprint()),
            "pairs": _ends(pairs),
            "validation": _ends(validation),
        }
        asked = json.loads(json.dumps(asked))  # as it will be read again
        path = None if state is None else state / f"nfe-{nfe}.start.json"
        if path is not None and path.exists():
            return _read(path, asked)
        chosen = yield from self._choose(model, pairs, validation, nfe, loss, kind)
        if path is not None and distributed.is_first():
            write_text(path, json.dumps(add_checksum({**asdict(chosen), "asked": asked})))
        return chosen

    def _choose(
        self, model: Model, pairs: Pairs, validation: Pairs, nfe: int, loss: str, kind: Kind
    ) -> Generator[Measured | Raced, None, Started]:
        """Measure every classical solver; where the start is left open, race the best of each grid."""
        distance = loss_by_name(loss)
        ranked, best, spent = yield from self._rank(model, validation, nfe, distance)
        if self.start != "best" or best.loss < ROUNDING:
            start = best.classical.spec if self.start == "best" else self.start
            return Started(best.classical, best.loss, start, evaluations=spent)
        entrants = _best_starts(ranked, self.starts, kind)
        if self.near is not None:
            own = list(candidates(model.schedule, nfe, model.t_end, own=self.near))
            there = rank_classical(model, validation, nfe, distance, entries=own, first=self.rank, kept=0)
            measured = list(there)
            entrants = [*_best_starts(measured, 1, kind), *entrants][: self.starts]
            spent += sum(m.evaluations for m in measured)
        winner, cost = yield from self._rounds(entrants, model, pairs, validation, distance, kind)
        return Started(best.classical, best.loss, winner.classical.spec, winner.numbers, spent + cost)

    def _rounds(
        self,
        entrants: Sequence[Measured],
        model: Model,
        pairs: Pairs,
        validation: Pairs,
        distance: Loss,
        kind: Kind,
    ) -> Generator[Raced, None, tuple[_Entrant, int]]:
        """Train all for a round and the best for another; return the winner and what it cost."""
        running = [
            _Entrant.of(entrant, model, pairs, kind, kind.training(self.sprint)) for entrant in entrants
        ]
        some, spent, place = validation.subset(slice(0, self.first)), 0, 0
        again = 1 + (_LASTING if kind.lasting else 0)
        rounds = [len(running), *[min(_SECOND, len(running))] * (again if len(running) > 1 else 0)]
        trainings = sum(rounds)
        for width in rounds:
            running = running[:width]
            for entrant in running:
                place += 1
                cost = entrant.sprint(some, distance)
                spent += cost
                yield Raced(entrant.classical, entrant.loss, place, trainings, cost)
            running.sort(key=lambda entrant: entrant.loss)
        return running[0], spent

    def _rank(
        self, model: Model, validation: Pairs, nfe: int, distance: Loss
    ) -> Generator[Measured, None, tuple[list[Measured], Measured, int]]:
        """Measure all on some pairs and fewer on more; return the first round, the best and what it cost."""
        ranked = []
        for measured in rank_classical(model, validation, nfe, distance, first=self.rank, kept=0):
            ranked.append(measured)
            yield measured
        hopeful = [(m.classical, m.table) for m in sorted(ranked, key=finite_loss)[:SHORTLIST]]
        again = []
        for measured in rank_classical(
            model, validation, nfe, distance, entries=hopeful, first=self.first, kept=FINALISTS
        ):
            again.append(measured)
            yield measured
        spent = sum(m.evaluations for m in (*ranked, *again))
        return ranked, again[len(hopeful)], spent


@dataclass
class _Entrant:
    """A start in the race: the best that it has learned so far. Steps of few pairs may also lead away from it."""

    classical: Classical
    steps: GaussNewtonSteps
    loss: float = math.inf
    numbers: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, measured: Measured, model: Model, pairs: Pairs, kind: Kind, sprint: GaussNewton) -> _Entrant:
        solver = kind.build(model.schedule, measured.classical)
        return cls(measured.classical, GaussNewtonSteps(solver, model, pairs, l2, sprint))

    def sprint(self, validation: Pairs, distance: Loss) -> int:
        """Train a little and measure; return the network evaluations. One that blows up stays as it was."""
        before = self.steps.evaluations
        try:
            for _ in range(self.steps.config.iterations):
                self.steps.step()
        except Diverged:
            return self.steps.evaluations - before
        table: Table = self.steps.solver().detach()
        value = float(evaluate(self.steps.model, validation, table, distance).mean())
        if value < self.loss:
            state = self.steps.solver.state_dict()
            self.loss, self.numbers = value, {name: parameter.tolist() for name, parameter in state.items()}
        return self.steps.evaluations - before + len(validation) * table.nfe


def check_start(start: str) -> None:
    """Refuse what names no start of a training: ``"best"``, ``"uniform"``, ``"SOLVER"`` or ``"SOLVER/GRID"``.

    Raises:
        ValueError: for an unknown solver or grid, with the nearest known one, or a grid that is none.
    """
    if not isinstance(start, str):
        raise UserError(f"start must be 'best', 'uniform' or 'SOLVER/GRID', got {start!r}")
    if start != "best":
        classical = named_start(start, 2, 0.0)
        if "," in classical.grid:
            as_grid(grid_times(classical.grid))


def start_label(start: str) -> str:
    """Return what people call a start, as :attr:`gas.classical.Classical.label` does: one name wherever it is shown.

    >>> start_label("uniform"), start_label("unipc-3-bh2/log_snr"), start_label("ddim/1,0.5,0.001")
    ('dpmpp-3m / time_uniform', 'unipc-3-bh2 / log_snr', 'ddim / own times')
    """
    if start == "uniform":
        return "dpmpp-3m / time_uniform"
    solver, _, grid = start.partition("/")
    return f"{solver.strip()} / {'own times' if ',' in grid else grid.strip() or 'log_snr'}"


def named_start(start: str, nfe: int, t_end: float) -> Classical:
    """Return the classical solver of ``"SOLVER/GRID"``; the grid may be left out. ``"uniform"`` is the paper's."""
    if start == "uniform":
        return Classical("dpmpp-3m", "time_uniform", nfe, t_end)
    name, _, grid = start.partition("/")
    return Classical(name.strip(), grid.strip() or "log_snr", nfe, t_end)


def _best_starts(ranked: Sequence[Measured], most: int, kind: Kind) -> list[Measured]:
    """The best solver of every grid on the first pairs that this kind can start at, best first."""
    ranked = [m for m in ranked if kind.starts_at(m.classical)]
    first = min(m.pairs for m in ranked)
    ranked = sorted((m for m in ranked if m.pairs == first), key=finite_loss)
    if kind.lasting:
        return _best_formulas(ranked, most)
    best: dict[str, Measured] = {}
    for measured in ranked:
        best.setdefault(measured.classical.grid, measured)
    return list(best.values())[:most]


def _best_formulas(ranked: Sequence[Measured], most: int) -> list[Measured]:
    """The best different solvers, each on the grid that learned times start best at, if it was measured there."""
    best: list[Measured] = []
    for measured in ranked:
        solvers = [m.classical.solver for m in best]
        known = [m for m in ranked if m.classical.solver in solvers]
        if measured.classical.solver not in solvers and not _is_one_of(measured, known):
            best.append(measured)
    usual = {m.classical.solver: m for m in ranked if m.classical.grid == _LASTING_GRID}
    return [usual.get(m.classical.solver, m) for m in best[:most]]


def _is_one_of(measured: Measured, others: Sequence[Measured]) -> bool:
    """Whether a solver is another one's formula: at few calls solvers of several orders are one."""
    on_its_grid = [m for m in others if m.classical.grid == measured.classical.grid]
    return any(torch.equal(m.table.unrolled(), measured.table.unrolled()) for m in on_its_grid)


def _ends(pairs: Pairs) -> list[int]:
    return [len(pairs), int(pairs.seeds[0]), int(pairs.seeds[-1])]


def _read(path: Path, asked: Mapping[str, Any]) -> Started:
    try:
        content = verify_checksum(read_json(path), str(path))
        if content["asked"] != asked:
            other = [name for name, value in asked.items() if content["asked"].get(name) != value]
            was = {name: brief(content["asked"].get(name), 40) for name in other[:3]}
            changes = "; ".join(f"{name} was {was[name]}, is {brief(asked[name], 40)}" for name in was)
            raise UserError(f"it is of another run: {changes}")
        best = Classical(**content["best"])
        rest = (content["numbers"], int(content["evaluations"]))
        return Started(best, float(content["best_loss"]), str(content["start"]), *rest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be continued ({one_line(error)}): delete {path.parent} to train afresh"
        ) from error
