"""The main job for one NFE: choose the start by measuring, learn from it, keep the best, never ship worse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Started:
    """The best classical solver on the validation pairs, and where training starts (the same by default)."""

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
        start: ``"best"`` (the best classical table on the validation pairs), ``"uniform"`` (the paper's:
            DPM-Solver++(3M) on the time-uniform grid), or ``"SOLVER/GRID"`` by name.
        theory: as in :class:`gas.GeneralizedSolver`.
        first: validation pairs that every classical solver is measured on before the finalists.
        state: folder of the resumable state; an interrupted run goes on from it to the same bits.

    Yields:
        Measured: for each classical solver. Started: once. FitRecord: through training. Distilled: last.

    Raises:
        ValueError: for unknown names, or a state that belongs to another run.
    """
    if start not in ("best", "uniform"):
        _named(start, nfe, model.t_end)  # a wrong name is refused before the long measuring
    chosen = _read_choice(state, nfe)
    if chosen is None:
        ranked: list[Measured] = []
        for measured in rank_classical(model, validation, nfe, loss_by_name(loss), first=first):
            ranked.append(measured)
            yield measured
        best = min((m for m in ranked if m.pairs == len(validation)), key=lambda m: m.loss)
        chosen = Started(best.classical, best.loss, best.classical.label if start == "best" else start)
        _write_choice(state, nfe, chosen)
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


def _solver_at(model: Model, nfe: int, chosen: Started, start: str, theory: bool) -> GeneralizedSolver:
    if start == "uniform":
        return GeneralizedSolver(model.schedule, nfe, model.t_end, theory=theory)
    classical = chosen.best
    if start != "best":
        classical = _named(start, nfe, model.t_end)
    table = classical.table(model.schedule)
    return GeneralizedSolver.from_table(model.schedule, table, model.t_end, theory=theory)


def _named(start: str, nfe: int, t_end: float) -> Classical:
    name, _, grid = start.partition("/")
    return Classical(name.strip(), grid.strip() or "log_snr", nfe, t_end)


def _read_choice(state: Path | None, nfe: int) -> Started | None:
    path = None if state is None else state / f"nfe-{nfe}.start.json"
    if path is None or not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return Started(Classical(**found["best"]), float(found["best_loss"]), str(found["start"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {state} to train afresh") from error


def _write_choice(state: Path | None, nfe: int, chosen: Started) -> None:
    if state is not None:
        write_text(state / f"nfe-{nfe}.start.json", json.dumps(asdict(chosen)))
