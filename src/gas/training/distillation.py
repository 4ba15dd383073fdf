"""The main job for one NFE: choose the start by measuring, learn from it, keep the best, never ship worse."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gas.classical.registry import Classical
from gas.errors import Diverged, UserError
from gas.learned.generalized import GeneralizedSolver
from gas.learned.registry import kind_by_name
from gas.losses import is_sum_of_squares, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.schedule import Schedule
from gas.table import Table, table_of
from gas.training.adam import Adam
from gas.training.adversarial.setup import Adversary
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import ROUNDING, Race, Raced, Started
from gas.training.loop import FitRecord, fit
from gas.training.ranking import Measured
from gas.training.validation import evaluate, surely_positive

__all__ = [
    "FINISH",
    "STATE",
    "Distilled",
    "Heard",
    "Report",
    "against",
    "distill",
    "distill_family",
    "neighbour_grid",
]

# What the winner of the race is trained for after it.
FINISH = GaussNewton(iterations=18, batch=24, growth=1.12, memory=0.85, validate_every=1, outlier=30.0)


# The files of a resumable state, as a regular expression: the choice of the start, and the trainings' checkpoints.
STATE = r"nfe-\d+(\.start\.json|(-gas)?\.pt)|\.nfe-\d+.*\.tmp"


@dataclass(frozen=True)
class Distilled:
    """The result: a learned solver, or the best classical table where none surely validated better.

    ``evaluations`` are all network evaluations: of ranking, race, training and every validation, as
    :class:`gas.FitRecord` counts.
    With an adversary, ``criterion`` is its criterion before it and at the best after, equal where nothing came nearer;
    ``loss`` is then no promise, and ``stopped`` says why the training ended early, if it did. ``losses`` are
    ``(S,)``, of each validation pair; none where nothing had to be learned. ``provenance`` holds the guidance, teacher,
    loss and training that a solver file records: :func:`gas.save` takes this object itself.
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
    losses: Tensor | None = field(default=None, compare=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def table(self, schedule: Schedule | None = None) -> Table:
        """Return the table to sample with, without gradient; it is of the schedule that it was learned on."""
        return table_of(self.solver)

    def measured(self) -> dict[str, float]:
        """Return what a solver file records of this NFE."""
        return {
            "validation_loss": self.loss,
            "best_classical_loss": self.best_classical_loss,
            "evaluations": float(self.evaluations),
        }


Report = Measured | Raced | Started | FitRecord | Distilled


def distill(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfe: int,
    *,
    loss: str = "l2",
    config: Adam | GaussNewton | None = None,
    race: Race | None = None,
    solver: str = "gs",
    theory: bool = True,
    adversary: Adversary | None = None,
    state: Path | None = None,
) -> Iterator[Report]:
    """Learn a solver of one NFE, reporting all the way; the last thing yielded is the result.

    Args:
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        nfe: network evaluations.
        loss: a name of :data:`gas.losses.LOSSES`.
        config: settings of the training after the race; by default Gauss-Newton where the loss allows, else Adam.
        race: how the start is chosen; by default the best of each grid race.
        solver: what is learned, a Generalized Solver by default: a key of :data:`gas.learned.SOLVERS`.
        theory: as in :func:`gas.learned.kind_by_name`.
        adversary: with it, the solver goes on to learn from critics: GAS. What is best then is a matter of the
            adversary's criterion; the paired loss may well be larger, even than the best classical solver's. Without
            weight on any critic this is training without one, bit for bit.
        state: folder of the resumable state; an interrupted run goes on from it to the same bits.

    Yields:
        Measured: for each classical solver. Raced: for each entrant. Started: once. FitRecord: through
        training. Distilled: last.

    Raises:
        ValueError: for unknown names, settings out of range, or a state that belongs to another run.
    """
    race, kind = Race() if race is None else race, kind_by_name(solver, theory=theory)
    if len(pairs) == 0 or len(validation) == 0:
        raise UserError(
            f"distill needs pairs to train and to validate on, got {len(pairs)} and {len(validation)}"
        )
    chosen = yield from race.run(
        model, pairs, validation, nfe, loss=loss, solver=solver, theory=theory, state=state
    )
    yield chosen
    config = kind.training(_usual(race, loss) if config is None else config)
    known = (chosen.start, chosen.best, chosen.best_loss)
    result_of = partial(Distilled, provenance=_provenance(pairs, validation, loss, solver, config, adversary))
    if chosen.best_loss < ROUNDING:
        yield result_of(nfe, chosen.best.table(model.schedule), *known, chosen.best_loss, chosen.evaluations)
        return
    learned = chosen.solver(model.schedule, kind)
    best_loss, evaluations = chosen.best_loss, chosen.evaluations
    for record in fit(
        learned, model, pairs, validation=validation, loss=loss, config=config, checkpoint=_file(state, nfe)
    ):
        best_loss, spent = record.best_loss, record.evaluations
        yield record
    # The learned and the classical table are compared pair by pair once more.
    evaluations += spent + 2 * len(validation) * nfe
    result: nn.Module | Table = learned
    classical = chosen.best.table(model.schedule)
    losses, before = (
        evaluate(model, validation, table, loss_by_name(loss)) for table in (learned().detach(), classical)
    )
    if not surely_positive(before - losses):
        result, best_loss, losses = classical, chosen.best_loss, before
    if adversary is None or not adversary.speaks():
        yield result_of(nfe, result, *known, best_loss, evaluations, losses=losses)
        return
    if isinstance(result, Table):
        learned = GeneralizedSolver.from_table(model.schedule, result, model.t_end, theory=theory)
    heard = yield from against(adversary, learned, model, pairs, validation, loss, _file(state, nfe, "-gas"))
    losses = evaluate(model, validation, learned().detach(), loss_by_name(loss))
    evaluations += heard.evaluations + len(validation) * nfe
    ended = (heard.stopped, heard.criterion, losses)
    yield result_of(nfe, learned, *known, float(losses.mean()), evaluations, *ended)


def _provenance(
    pairs: Pairs,
    validation: Pairs,
    loss: str,
    solver: str,
    config: Adam | GaussNewton,
    adversary: Adversary | None,
) -> dict[str, Any]:
    """What a solver file says of the making of its numbers."""
    training = {
        "pairs": len(pairs),
        "validation": len(validation),
        "seeds": [int(pairs.seeds[0]), int(validation.seeds[-1]) + 1],
        "solver": solver,
        **asdict(config),
        **({"objective": "gas"} if adversary is not None and adversary.speaks() else {}),
    }
    return {"guidance": pairs.guidance, "teacher": pairs.teacher, "loss": loss, "training": training}


class Heard(NamedTuple):
    """What came of training against critics."""

    evaluations: int
    criterion: tuple[float, float] | None
    stopped: str


def against(
    adversary: Adversary,
    solver: nn.Module,
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str = "l2",
    checkpoint: Path | None = None,
) -> Generator[FitRecord, None, Heard]:
    """Train a solver in place against critics; where that fails, it is left at its best before.

    Args:
        adversary: critics, and what is best.
        solver: as it came from training without critics.
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by.
        loss: a name of :data:`gas.losses.LOSSES`.
        checkpoint: as for :func:`gas.fit`.

    Yields:
        FitRecord: as :func:`gas.fit` does.
    """
    table = table_of(solver)
    spent = len(validation) * table.nfe
    heard = Heard(spent, None, "")
    start = float(evaluate(model, validation, table, loss_by_name(loss)).mean())
    try:
        for record in fit(
            solver,
            model,
            pairs,
            validation=validation,
            loss=loss,
            config=adversary.config,
            checkpoint=checkpoint,
            critics=adversary.weighed(start),
            pairing=adversary.pairing,
            criterion=adversary.criterion,
        ):
            heard = Heard(spent + record.evaluations, (record.start_loss, record.best_loss), "")
            yield record
    except Diverged as error:
        return heard._replace(stopped=str(error))
    return heard


def _usual(race: Race, loss: str) -> Adam | GaussNewton:
    """How a training is done that does not say."""
    if not is_sum_of_squares(loss_by_name(loss)):
        return Adam()
    return FINISH if race.start == "best" else GaussNewton()


def _file(state: Path | None, nfe: int, stage: str = "") -> Path | None:
    return None if state is None else state / f"nfe-{nfe}{stage}.pt"


# A member with a neighbour races the neighbour's times against the two best grids; one without, against more.
_STARTS = 3


def distill_family(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfes: Sequence[int],
    *,
    race: Race | None = None,
    **options: Any,
) -> Iterator[Report]:
    """Learn a Generalized Solver for each NFE, the smallest first, with fewer network calls than one by one.

    Learned times are a grid like any other: drawn on the next NFE, they enter its race beside the two best
    classical grids, and the others need not be tried.

    Args:
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        nfes: network evaluations of each member.
        race: how the start of each member is chosen.
        options: as for :func:`gas.distill`, for every member.

    Yields:
        The reports of :func:`gas.distill` for each member, each ended by its :class:`gas.Distilled`.
    """
    last: Table | None = None
    race = Race() if race is None else race
    for nfe in sorted(set(nfes)):
        entered = race
        if last is not None:
            near = neighbour_grid(model.schedule, last, nfe, model.t_end)
            entered = replace(race, starts=min(_STARTS, race.starts), near=near)
        for report in distill(model, pairs, validation, nfe, race=entered, **options):
            yield report
            if isinstance(report, Distilled):
                last = report.table()


def neighbour_grid(schedule: Schedule, table: Table, nfe: int, t_end: float) -> Tensor:
    """Return a grid ``(nfe + 1,)`` with the spacing of another solver's told times.

    The half log-SNR of its times is drawn over the share of steps done, and read off at more or fewer steps.

    Args:
        schedule: the forward process.
        table: the solver to take after.
        nfe: network evaluations of the grid.
        t_end: time that sampling ends at.
    """
    told = table.times.detach()[1:].clamp(min=t_end, max=1.0)
    times = torch.cat([told.new_ones(1), told, told.new_full((1,), t_end)])
    # Infinite ends (a flow's) are drawn from just inside; told times may fall back or coincide, a grid's may not.
    level = (
        schedule.half_log_snr(times.clamp(min=schedule.t_min + 1e-4, max=1 - 1e-4))
        .cummax(dim=0)
        .values.numpy()
    )
    share = np.linspace(0, 1, nfe + 1)
    drawn = np.interp(share, np.linspace(0, 1, len(level)), level)
    even = level[0] + share * (level[-1] - level[0])
    grid = schedule.inverse_half_log_snr(torch.from_numpy(0.98 * drawn + 0.02 * even))
    grid[0], grid[-1] = 1.0, t_end
    return grid
