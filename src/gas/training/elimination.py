"""Elimination: which forward passes of a guided solver to leave out, under a budget."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gas.denoise import branches_of
from gas.errors import UserError
from gas.learned.bns import BNS
from gas.losses import Loss, is_sum_of_squares, l2, loss_by_name
from gas.models.protocol import Model, passes_of
from gas.pairs.dataset import Pairs
from gas.table import Table, refuse_residuals, table_of
from gas.training.adam import Adam
from gas.training.distillation import Distilled, Report, checkpoint_file, distill_family
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.initialization import StartChoice
from gas.training.loop import fit
from gas.training.plan import FINISH
from gas.training.ranking import rank_classical
from gas.training.successive_halving import SHORT_RUN, Candidate, halve
from gas.training.validation import evaluate

# The branch that guidance leads away from.
_BRANCH = "unconditional"


# Removals are ranked untrained, on so many validation pairs, and the best of them trained. digits, guidance 2, 4 calls:
# the losses (x 1000) are 6.5 to 21 without an unconditional row and 52 to 95 without a conditional one, after a short
# run 4.4 to 4.5 and 19; of 6 rows, the two that are best untrained are the two that are best trained.
_RANKING_PAIRS, _TRIALS = 64, 3


@dataclass(frozen=True)
class Removal:
    """A trial without one row, after short run ``run`` of ``runs``.

    Attributes:
        forwards: rows of the table that is left.
        row: the row of the table before that it lacks.
        loss: its mean loss on the validation pairs where its typical one was best so far.
        run, runs: of this removal.
        evaluations: forward passes of single samples of this run.
    """

    forwards: int
    row: int
    loss: float
    run: int
    runs: int
    evaluations: int


def guided_calls(forwards: int) -> int:
    """Return the calls of the guided solver that a budget starts from: about half of them stay guided."""
    return -(-2 * forwards // 3)


def guided_starts(budgets: Iterable[int]) -> list[int]:
    """Return the calls of all guided solvers that budgets need: their starts, and those that cost as much."""
    equal = {count // 2 for count in budgets if count % 2 == 0}
    return sorted(equal | {guided_calls(count) for count in budgets})


def without_row(table: Table, row: int) -> Table:
    """Return the folded table without the evaluation of a row, and without the state that only it evaluates.

    The weights of its prediction go to the nearest earlier one of the same branch, else to the next row's: the sum of
    weights stays, and with it the moments of every state that is left.

    Args:
        table: with branches.
        row: not the last.
    """
    refuse_residuals(table, "elimination")
    folded, branches = table.folded(), table.branches or ("",) * table.nfe
    if not 0 <= row < folded.nfe - 1:
        raise UserError(f"row must lie in 0 .. {folded.nfe - 2}, as the last row forms the sample, got {row}")
    outputs = folded.outputs.clone()
    earlier = [j for j in range(row) if branches[j] == branches[row]]
    outputs[row + 1 :, earlier[-1] if earlier else row + 1] += outputs[row + 1 :, row]
    if row:  # the next prediction is too late for the state that it is evaluated at
        outputs[row, earlier[-1] if earlier else row - 1] += outputs[row, row]
    rows = [n for n in range(folded.nfe) if n != row]
    states = [n for n in range(folded.nfe) if n != max(row - 1, 0)]
    return Table(
        folded.times[rows],
        torch.nn.functional.pad(folded.states[states, :1], (0, len(rows) - 1)),
        outputs[states][:, rows],
        tuple(branches[n] for n in rows),
    )


def eliminate(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    table: Table,
    forwards: int,
    *,
    loss: Loss = l2,
    config: GaussNewton = SHORT_RUN,
) -> Generator[Removal, None, tuple[Table, int]]:
    """Remove rows one by one, each time the one without which the retrained solver is best; the last row stays.

    Of the rows without which the solver as it is has the least losses, three are tried.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by.
        table: the start, as :meth:`gas.Table.guided` returns it.
        forwards: rows that are left.
        loss: distance to the teacher to choose by; short runs minimize squared errors.
        config: settings of a short run.

    Yields:
        Removal: after each short run. The table that is left is returned, with the forward passes spent.

    """
    some, spent = validation.subset(slice(0, _RANKING_PAIRS)), 0
    while table.nfe > forwards:
        rest = {row: without_row(table, row) for row in range(table.nfe - 1)}
        losses = {row: _finite_loss(model, some, left, loss) for row, left in rest.items()}
        spent += len(some) * len(rest) * (table.nfe - 1)
        trials = []
        for row in sorted(losses, key=lambda row: losses[row])[:_TRIALS]:
            solver = BNS.from_table(model.schedule, rest[row], model.t_end)
            trials.append(Candidate(row, GaussNewtonSteps(solver, model, pairs, l2, config)))
        report = partial(Removal, table.nfe - 1)
        winner, cost = yield from halve(
            trials, config.iterations, int(len(trials) > 1), validation, loss, report
        )
        spent += cost
        table = rest[winner.key]
        if winner.state is not None:
            winner.steps.restore(winner.state)
            table = table_of(winner.steps.solver)
    return table, spent


def _finite_loss(model: Model, pairs: Pairs, table: Table, loss: Loss) -> float:
    """Return the mean loss of a table; infinite where it is not finite."""
    mean = float(evaluate(model, pairs, table, loss).mean())
    return mean if math.isfinite(mean) else math.inf


def distill_forwards(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    forwards: Sequence[int],
    *,
    members: Sequence[Distilled] = (),
    loss: str = "l2",
    config: Adam | GaussNewton | None = None,
    state: Path | None = None,
    **options: Any,
) -> Generator[Report | Removal, None, list[Distilled]]:
    """Learn a solver for each number of forward passes of a guided model, the largest first.

    Each starts at a guided solver of :func:`guided_calls` calls, loses rows (:func:`eliminate`), and is trained as a
    :class:`gas.BNS` of forward passes. Numbers with the same start share its removals. Where the guided solver of as
    many forward passes validates better, it is the result, all of its rows.

    Args:
        model: whose denoiser to call; it has to have branches.
        pairs: teacher pairs to train on, with guidance.
        validation: teacher pairs of other seeds to choose by.
        forwards: forward passes of the network a sample, of each solver.
        members: solvers of :func:`gas.distill` to start from; those that are missing are learned first.
        loss: a name of :data:`gas.losses.LOSSES`.
        config: settings of the training after the removals; default as for :func:`gas.distill`.
        state: folder of the resumable state; the removals of an interrupted run are repeated, with the same bits.
        options: further ones of :func:`gas.distill`, for the starts.

    Yields:
        The records of the missing starts, as :func:`gas.distill_family`; Removal and FitRecord of each solver, which
        end with its Distilled. Its evaluations are forward passes, without those of its start.

    Raises:
        UserError: for pairs without guidance, or a model without branches.
    """
    check_branches(model, pairs)
    starts = {member.nfe: member for member in members if not member.branched}
    if missing := set(guided_starts(forwards)) - starts.keys():
        learned = yield from distill_family(
            model, pairs, validation, sorted(missing), config=config, loss=loss, state=state, **options
        )
        starts |= {member.nfe: member for member in learned}
    tables = {calls: table_of(start.solver).guided(pairs.guidance) for calls, start in starts.items()}
    results = []
    for count in sorted(set(forwards), reverse=True):
        calls = guided_calls(count)
        result = yield from _distill_rows(
            model, pairs, validation, starts[calls], tables[calls], count, loss, config, state
        )
        tables[calls] = result.table()
        if count % 2 == 0:
            result = _no_worse(result, starts[count // 2], model, validation, loss)
        results.append(result)
        yield result
    return results


def _no_worse(result: Distilled, equal: Distilled, model: Model, validation: Pairs, loss: str) -> Distilled:
    """Return a result, or the guided solver of as many forward passes if that has the lower loss."""
    losses = evaluate(model, validation, equal.table(), loss_by_name(loss))
    result = replace(result, evaluations=result.evaluations + len(validation) * result.nfe)
    if losses.mean() >= result.loss:
        return result
    table = equal.table().guided(validation.guidance)
    return replace(result, solver=table, start=equal.start, loss=float(losses.mean()), losses=losses)


def check_branches(model: Model, pairs: Pairs) -> None:
    """Refuse pairs without guidance, and a model that does not give the branches that guidance mixes.

    Raises:
        UserError: says which.
    """
    if pairs.guidance == 1.0:
        raise UserError(
            "forward passes are learned with guidance, and the pairs have none: make pairs with guidance"
        )
    if passes_of(model, pairs.guidance) == 1:
        raise UserError(
            f"guidance is an input of the network of {model.name}: a prediction is one forward pass, and none can be "
            "left out: learn NFE in place of forwards"
        )
    labels = None if pairs.labels is None else pairs.labels[:1]
    if _BRANCH not in branches_of(model.bind(labels, pairs.guidance)):
        raise UserError(
            f"{model.name} gives guided predictions only, not their branches: learn NFE in place of forwards"
        )


def _distill_rows(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    start: Distilled,
    table: Table,
    forwards: int,
    loss: str,
    config: Adam | GaussNewton | None,
    state: Path | None,
) -> Generator[Report | Removal, None, Distilled]:
    """Remove rows down to a number of forward passes, and train what is left."""
    distance = loss_by_name(loss)
    table, spent = yield from eliminate(model, pairs, validation, table, forwards, loss=distance)
    config = config or (FINISH if is_sum_of_squares(distance) else Adam())
    solver = BNS.from_table(model.schedule, table, model.t_end)
    file = checkpoint_file(state, f"forwards-{forwards}")
    record = yield from fit(
        solver, model, pairs, validation=validation, loss=loss, config=config, checkpoint=file
    )
    # The best classical solver that such a budget allows.
    best = StartChoice.of(list(rank_classical(model, validation, max(1, forwards // 2), distance)))
    ranking = 2 * best.evaluations  # guided ones are two forward passes
    return replace(
        start,
        nfe=forwards,
        solver=solver,
        loss=record.best_loss,
        losses=record.best_losses,
        best_classical=best.best,
        best_classical_loss=best.best_loss,
        evaluations=spent + record.evaluations + ranking,
        criterion=None,
        stopped="",
        measures={},
    )
