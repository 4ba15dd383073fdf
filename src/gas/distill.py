"""The main job for one NFE: choose the start by measuring, learn from it, keep the best, never ship worse."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas.adversary import Adversary
from gas.catalogue import Classical, candidates
from gas.files import write_text
from gas.fit import FitRecord, fit
from gas.learned import GeneralizedSolver
from gas.losses import is_sum_of_squares, loss_by_name
from gas.model import Model
from gas.optimizers import Adam, Diverged, GaussNewton
from gas.pairs import Pairs
from gas.start import Measured, evaluate, finite_loss, rank_classical
from gas.table import Table

__all__ = ["FINISH", "RACE", "Distilled", "Raced", "Report", "Started", "distill"]

# Classical solvers that are measured on all validation pairs after a first round on some.
FINALISTS = 6

# What every start is trained for in the race, and the winner after it.
RACE = GaussNewton(iterations=6, batch=12, validate_every=6)
FINISH = GaussNewton(iterations=12, batch=64, growth=1.0)


@dataclass(frozen=True)
class Started:
    """The best classical solver on the validation pairs, where training starts, and what the race left."""

    best: Classical
    best_loss: float
    start: str
    numbers: Mapping[str, Any] | None = None
    evaluations: int = 0


@dataclass(frozen=True)
class Raced:
    """A start of the race, with the validation loss that a little training brought it to."""

    classical: Classical
    loss: float
    place: int
    starts: int
    evaluations: int


@dataclass(frozen=True)
class Distilled:
    """The result: a learned solver, or the best classical table if nothing learned validated better.

    ``evaluations`` are the network evaluations of race and training together, as :class:`gas.fit.FitRecord` counts;
    ``stopped`` says why adversarial training ended early, if it did, and ``criterion`` what the adversary's criterion
    was for GS and is for the solver: equal where nothing it learned from critics came nearer.
    """

    nfe: int
    solver: nn.Module | Table
    start: str
    best_classical: Classical
    best_classical_loss: float
    loss: float
    evaluations: int
    stopped: str = ""
    criterion: tuple[float, float] | None = None

    def table(self) -> Table:
        """Return the table to sample with, without gradient."""
        with torch.no_grad():
            table: Table = self.solver if isinstance(self.solver, Table) else self.solver()
        return table.detach()


Report = Measured | Raced | Started | FitRecord | Distilled


def distill(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfe: int,
    *,
    loss: str = "l2",
    config: Adam | GaussNewton | None = None,
    start: str = "best",
    theory: bool = True,
    first: int = 64,
    starts: int = 4,
    near: Tensor | None = None,
    race: GaussNewton = RACE,
    adversary: Adversary | None = None,
    state: Path | None = None,
) -> Iterator[Report]:
    """Learn a Generalized Solver of one NFE, reporting all the way; the last thing yielded is the result.

    Args:
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        nfe: network evaluations.
        loss: a name of :data:`gas.losses.LOSSES`.
        config: settings of the training after the race; by default Gauss-Newton where the loss allows, else Adam.
        start: ``"best"`` (a race of the best classical tables), ``"uniform"`` (the paper's: DPM-Solver++(3M) on
            the time-uniform grid), or ``"SOLVER/GRID"`` by name.
        theory: as in :class:`gas.GeneralizedSolver`.
        first: validation pairs that every classical solver is measured on before the finalists.
        starts: most entrants of the race: the best solver of each grid. The loss has several minima, and which
            one is found is a matter of the grid; the best table at first need not lead to the best one.
        near: a grid ``(nfe + 1,)`` of one's own, whose best classical solver enters the race first.
        race: settings that each entrant is trained with (on squared error); the best on validation wins.
        adversary: with it, the solver goes on to learn from critics: GAS. What is best then is a matter of the
            adversary's criterion; the paired loss may well be larger.
        state: folder of the resumable state; an interrupted run goes on from it to the same bits.

    Yields:
        Measured: for each classical solver. Raced: for each entrant. Started: once. FitRecord: through
        training. Distilled: last.

    Raises:
        ValueError: for unknown names, or a state that belongs to another run.
    """
    if start not in ("best", "uniform"):
        _named(start, nfe, model.t_end)  # a wrong name is refused before the long measuring
    asked = {
        "start": start,
        "loss": loss,
        "theory": theory,
        "race": [starts, asdict(race), None if near is None else near.tolist()],
        "validation": [int(seed) for seed in validation.seeds[[0, -1]]],
    }
    chosen = _read_choice(state, nfe, asked)
    if chosen is None:
        chosen = yield from _choose(
            model, pairs, validation, nfe, loss, start, theory, first, starts, near, race
        )
        _write_choice(state, nfe, chosen, asked)
    yield chosen

    solver = _solver_at(model, nfe, chosen, start, theory)
    checkpoint = None if state is None else state / f"nfe-{nfe}.pt"
    if config is None and start == "best" and is_sum_of_squares(loss_by_name(loss)):
        config = FINISH
    best_loss, evaluations, stopped, nearer = math.inf, chosen.evaluations, "", None
    for record in fit(
        solver, model, pairs, validation=validation, loss=loss, config=config, checkpoint=checkpoint
    ):
        best_loss, evaluations = record.best_loss, chosen.evaluations + record.evaluations
        yield record
    if best_loss > chosen.best_loss:
        table, best_loss = chosen.best.table(model.schedule), chosen.best_loss
        if adversary is None:
            yield Distilled(nfe, table, chosen.start, chosen.best, chosen.best_loss, best_loss, evaluations)
            return
        solver = GeneralizedSolver.from_table(model.schedule, table, model.t_end, theory=theory)
    if adversary is not None:
        try:
            for record in _against(adversary, solver, model, pairs, validation, loss, state):
                nearer = (nearer[0] if nearer else record.validation_loss, record.best_loss)
                yield record
            evaluations += record.evaluations
        except Diverged as error:  # the solver holds the best numbers before it
            stopped = str(error)
        best_loss = float(evaluate(model, validation, solver().detach(), loss_by_name(loss)).mean())
    classical = (chosen.best, chosen.best_loss)
    yield Distilled(nfe, solver, chosen.start, *classical, best_loss, evaluations, stopped, nearer)


def _choose(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfe: int,
    loss: str,
    start: str,
    theory: bool,
    first: int,
    starts: int,
    near: Tensor | None,
    race: GaussNewton,
) -> Generator[Measured | Raced, None, Started]:
    """Measure every classical solver; where the start is left open, race the best of each grid."""
    ranked = []
    for measured in rank_classical(model, validation, nfe, loss_by_name(loss), first=first, kept=FINALISTS):
        ranked.append(measured)
        yield measured
    best = ranked[-min(FINALISTS, len(ranked) // 2)]
    if start != "best":
        return Started(best.classical, best.loss, start)
    entrants = _best_of_each_grid(ranked, starts)
    if near is not None:
        own = candidates(model.schedule, nfe, model.t_end, own=near)
        there = rank_classical(model, validation, nfe, loss_by_name(loss), entries=own, first=first, kept=0)
        entrants = [*_best_of_each_grid(list(there), 1), *entrants][:starts]
    winner, numbers, spent = yield from _race(entrants, model, pairs, validation, loss, race, theory)
    return Started(best.classical, best.loss, winner.spec, numbers, spent)


def _against(
    adversary: Adversary,
    solver: GeneralizedSolver,
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str,
    state: Path | None,
) -> Iterator[FitRecord]:
    return fit(
        solver,
        model,
        pairs,
        validation=validation,
        loss=loss,
        config=adversary.config,
        checkpoint=None if state is None else state / f"nfe-{solver.nfe}-gas.pt",
        critics=adversary.critics(),
        pairing=adversary.pairing,
        criterion=adversary.criterion,
    )


def _best_of_each_grid(ranked: Sequence[Measured], most: int) -> list[Measured]:
    """The best solver of every grid on the first pairs, best first."""
    first = min(m.pairs for m in ranked)
    by_grid: dict[str, Measured] = {}
    for measured in sorted((m for m in ranked if m.pairs == first), key=finite_loss):
        by_grid.setdefault(measured.classical.grid, measured)
    return list(by_grid.values())[:most]


def _race(
    entrants: Sequence[Measured],
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str,
    config: GaussNewton,
    theory: bool,
) -> Generator[Raced, None, tuple[Classical, dict[str, Any], int]]:
    """Train each entrant a little; return the one that then validates best, its numbers, and all calls spent."""
    reached: list[tuple[float, Classical, dict[str, Any]]] = []
    spent = 0
    for place, measured in enumerate(entrants, start=1):
        solver = GeneralizedSolver.from_table(model.schedule, measured.table, model.t_end, theory=theory)
        *_, last = fit(solver, model, pairs, validation=validation, loss="l2", config=config)
        spent += last.evaluations
        with torch.no_grad():
            value = float(evaluate(model, validation, solver(), loss_by_name(loss)).mean())
        numbers = {name: parameter.tolist() for name, parameter in solver.state_dict().items()}
        reached.append((value, measured.classical, numbers))
        yield Raced(measured.classical, value, place, len(entrants), last.evaluations)
    _, winner, numbers = min(reached, key=lambda entry: entry[0])
    return winner, numbers, spent


def _solver_at(model: Model, nfe: int, chosen: Started, start: str, theory: bool) -> GeneralizedSolver:
    if start == "uniform":
        return GeneralizedSolver(model.schedule, nfe, model.t_end, theory=theory)
    table = _named(chosen.start, nfe, model.t_end).table(model.schedule)
    solver = GeneralizedSolver.from_table(model.schedule, table, model.t_end, theory=theory)
    if chosen.numbers is not None:
        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in chosen.numbers.items()}
        solver.load_state_dict(numbers)
    return solver


def _named(start: str, nfe: int, t_end: float) -> Classical:
    name, _, grid = start.partition("/")
    return Classical(name.strip(), grid.strip() or "log_snr", nfe, t_end)


def _read_choice(state: Path | None, nfe: int, asked: Mapping[str, Any]) -> Started | None:
    path = None if state is None else state / f"nfe-{nfe}.start.json"
    if path is None or not path.exists():
        return None
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
        raise ValueError(f"{path} cannot be continued ({error}): delete {state} to train afresh") from error


def _write_choice(state: Path | None, nfe: int, chosen: Started, asked: Mapping[str, Any]) -> None:
    if state is not None:
        write_text(state / f"nfe-{nfe}.start.json", json.dumps({**asdict(chosen), "asked": asked}))
