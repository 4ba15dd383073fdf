"""The main job for one NFE: choose the start by measuring, learn from it, keep the best, never ship worse."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from gas.adversary import Adversary
from gas.catalogue import Classical
from gas.fit import FitRecord, fit
from gas.learned import GeneralizedSolver, kind_by_name
from gas.losses import is_sum_of_squares, loss_by_name
from gas.model import Model
from gas.optimizers import Adam, Diverged, GaussNewton
from gas.pairs import Pairs
from gas.race import ROUNDING, Race, Raced, Started
from gas.schedule import Schedule
from gas.start import Measured, evaluate, surely_positive
from gas.table import Table, table_of

__all__ = ["FINISH", "STATE", "Distilled", "Heard", "Report", "against", "distill"]

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
        raise ValueError(
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
