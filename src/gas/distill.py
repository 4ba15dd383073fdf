"""The main job for one NFE: choose the start by measuring, learn from it, keep the best, never ship worse."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gas.catalogue import Classical
from gas.files import write_text
from gas.fit import FitConfig, FitRecord, fit
from gas.learned import GeneralizedSolver
from gas.losses import loss_by_name
from gas.model import Model
from gas.pairs import Pairs
from gas.start import Measured, rank_classical
from gas.table import Table

__all__ = ["Distilled", "Started", "distill"]

# Classical solvers that are measured on all validation pairs after a first round on some.
FINALISTS = 6


@dataclass(frozen=True)
class Started:
    """The best classical solver on the validation pairs, and where training starts."""

    best: Classical
    best_loss: float
    start: str


@dataclass(frozen=True)
class Distilled:
    """The result: a learned solver, or the best classical table if nothing learned validated better."""

    nfe: int
    solver: nn.Module | Table
    start: str
    best_classical: Classical
    best_classical_loss: float
    loss: float
    evaluations: int

    def table(self) -> Table:
        """Return the table to sample with, without gradient."""
        with torch.no_grad():
            table: Table = self.solver if isinstance(self.solver, Table) else self.solver()
        return table.detach()


def distill(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfe: int,
    *,
    loss: str = "l1",
    config: FitConfig | None = None,
    start: str = "best",
    theory: bool = True,
    first: int = 64,
    race: int = 3,
    state: Path | None = None,
) -> Iterator[Measured | Started | FitRecord | Distilled]:
    """Learn a Generalized Solver of one NFE, reporting all the way; the last thing yielded is the result.

    Args:
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        nfe: network evaluations.
        loss: a name of :data:`gas.losses.LOSSES`.
        config: settings of the training.
        start: ``"best"`` (one of the best classical tables on the validation pairs), ``"uniform"`` (the paper's:
            DPM-Solver++(3M) on the time-uniform grid), or ``"SOLVER/GRID"`` by name.
        theory: as in :class:`gas.GeneralizedSolver`.
        first: validation pairs that every classical solver is measured on before the finalists.
        race: finalists that are trained for a tenth of the iterations each; the one that then validates best
            is the start. Solvers close together at first can end far apart.
        state: folder of the resumable state; an interrupted run goes on from it to the same bits.

    Yields:
        Measured: for each classical solver. FitRecord: through the race. Started: once. FitRecord: through
        training. Distilled: last.

    Raises:
        ValueError: for unknown names, or a state that belongs to another run.
    """
    if start not in ("best", "uniform"):
        _named(start, nfe, model.t_end)  # a wrong name is refused before the long measuring
    asked = {"start": start, "loss": loss, "validation": [int(seed) for seed in validation.seeds[[0, -1]]]}
    chosen = _read_choice(state, nfe, asked)
    if chosen is None:
        ranked: list[Measured] = []
        for measured in rank_classical(
            model, validation, nfe, loss_by_name(loss), first=first, kept=FINALISTS
        ):
            ranked.append(measured)
            yield measured
        finalists = ranked[-min(FINALISTS, len(ranked) // 2) :]
        best = finalists[0]
        if start == "best":
            raced = yield from _race(
                finalists[:race], model, pairs, validation, loss, config or FitConfig(), theory
            )
            chosen = Started(best.classical, best.loss, raced.classical.label)
        else:
            chosen = Started(best.classical, best.loss, start)
        _write_choice(state, nfe, chosen, asked)
    yield chosen

    solver = _solver_at(model, nfe, chosen, start, theory)
    checkpoint = None if state is None else state / f"nfe-{nfe}.pt"
    best_loss, evaluations = math.inf, 0
    for record in fit(
        solver, model, pairs, validation=validation, loss=loss, config=config, checkpoint=checkpoint
    ):
        best_loss, evaluations = record.best_loss, record.evaluations
        yield record
    shipped: nn.Module | Table = solver
    if best_loss > chosen.best_loss:
        shipped, best_loss = chosen.best.table(model.schedule), chosen.best_loss
    yield Distilled(nfe, shipped, chosen.start, chosen.best, chosen.best_loss, best_loss, evaluations)


def _race(
    finalists: Sequence[Measured],
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str,
    config: FitConfig,
    theory: bool,
) -> Generator[FitRecord, None, Measured]:
    """Train each finalist a little and return the one that validates best."""
    short = replace(config, iterations=config.iterations // 10, validate_every=config.iterations // 10 or 1)
    reached: list[float] = []
    for measured in finalists if len(finalists) > 1 else ():
        solver = GeneralizedSolver.from_table(model.schedule, measured.table, model.t_end, theory=theory)
        for record in fit(solver, model, pairs, validation=validation, loss=loss, config=short):
            yield record
        reached.append(record.best_loss)
    return finalists[reached.index(min(reached))] if reached else finalists[0]


def _solver_at(model: Model, nfe: int, chosen: Started, start: str, theory: bool) -> GeneralizedSolver:
    if start == "uniform":
        return GeneralizedSolver(model.schedule, nfe, model.t_end, theory=theory)
    table = _named(chosen.start, nfe, model.t_end).table(model.schedule)
    return GeneralizedSolver.from_table(model.schedule, table, model.t_end, theory=theory)


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
            raise ValueError(f"it is of a run with {found['asked']}, not {dict(asked)}")
        return Started(Classical(**found["best"]), float(found["best_loss"]), str(found["start"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be continued ({error}): delete {state} to train afresh") from error


def _write_choice(state: Path | None, nfe: int, chosen: Started, asked: Mapping[str, Any]) -> None:
    if state is not None:
        write_text(state / f"nfe-{nfe}.start.json", json.dumps({**asdict(chosen), "asked": asked}))
