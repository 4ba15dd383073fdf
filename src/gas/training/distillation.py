"""Distillation: choose a start, learn from it, and return the best of the learned and the classical solvers."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gas.classical.registry import Classical, candidate_solvers
from gas.errors import UserError
from gas.learned.generalized import GeneralizedSolver
from gas.learned.registry import kind_by_name
from gas.losses import ROUNDING, is_sum_of_squares, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, teacher_of
from gas.schedule import Schedule
from gas.table import Table, table_of
from gas.training.adam import Adam
from gas.training.adversarial.setup import Adversary, fit_adversarial
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import CandidateRound, StartChoice, StartSearch
from gas.training.loop import FitRecord, fit
from gas.training.plan import FINISH, TrainingPlan, steps_after
from gas.training.ranking import RankedSolver
from gas.training.successive_halving import SHORT_RUN
from gas.training.validation import evaluate, surely_better

__all__ = ["STATE", "BestSoFar", "Distilled", "Report", "distill", "distill_family", "neighbor_grid"]

# The files of a resumable state, as a regular expression: the choice of the start, and the trainings' checkpoints.
STATE = r"nfe-\d+(\.start|-gas|-lift(-gas)?)?\.(pt|json)|(forwards|scales)-\d+\.pt|\.(nfe|forwards|scales)-\d+.*\.tmp"


@dataclass(frozen=True)
class Distilled:
    """The result: a learned solver, or the best classical table where no learned one surely validated better.

    Attributes:
        nfe: network evaluations a sample, forward passes where the table has branches.
        solver: the solver.
        start: where its training started: ``"uniform"`` or ``"SOLVER/GRID"``.
        best_classical: the best classical solver on the validation pairs.
        best_classical_loss: its mean loss there.
        loss: the solver's mean loss there; after adversarial training it may be the larger one.
        evaluations: all network evaluations of single samples: of the start search, training and every validation, as
            :class:`gas.FitRecord` counts them.
        stopped: why adversarial training ended early, if it did.
        criterion: of an adversary, before its training and at the best after; equal where nothing came nearer.
        losses: ``(S,)``, of each validation pair it was compared on.
        provenance: guidance, teacher, loss and training, which :func:`gas.save` records.
        measures: further measurements to record.
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
    measures: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def compared(self) -> int:
        """Number of validation pairs it was compared on."""
        return 0 if self.losses is None else len(self.losses)

    @property
    def branched(self) -> bool:
        """Whether ``nfe`` counts forward passes, rows that evaluate one branch of a guided denoiser."""
        return self.table().branches is not None

    def table(self, schedule: Schedule | None = None) -> Table:
        """Return the table to sample with, without gradient; it is of the schedule that it was learned on."""
        return table_of(self.solver)

    def measured(self) -> dict[str, float]:
        """Return what a solver file records about this NFE."""
        return {
            "validation_loss": self.loss,
            "best_classical_loss": self.best_classical_loss,
            "evaluations": float(self.evaluations),
            **self.measures,
        }


Report = RankedSolver | CandidateRound | StartChoice | FitRecord | Distilled


class BestSoFar:
    """The best solver of every NFE so far, whatever ends a training.

    Args:
        model: that is trained for.

    Attributes:
        results: the solvers by NFE; of one that is still training, that which would be its result now.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.results: dict[int, Distilled] = {}

    def watch(self, reports: Iterator[Report]) -> Iterator[Report]:
        """Yield the reports of :func:`distill` or :func:`distill_family`, and note what they bring."""
        for report in reports:
            self._add(report)
            yield report

    def _add(self, report: Report) -> None:
        if isinstance(report, RankedSolver):
            nfe, known = report.table.nfe, self.results.get(report.table.nfe)
            if known is None or (-report.pairs, report.finite_loss) < (-known.compared, known.loss):
                choice = replace(StartChoice.of([report]), evaluations=0)
                self.results[nfe] = _classical_result(choice, self.model.schedule)
        elif isinstance(report, StartChoice):
            self.classical = _classical_result(report, self.model.schedule)
            self.results[report.best.nfe] = self.classical
        elif isinstance(report, FitRecord) and report.best_losses is not None:  # else against a discriminator
            self.results[self.classical.nfe] = _with_record(self.classical, report)
        elif isinstance(report, Distilled):
            self.results[report.nfe] = report


def distill(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfe: int,
    *,
    loss: str = "l2",
    config: Adam | GaussNewton | None = None,
    search: StartSearch | None = None,
    solver: str = "gs",
    theory: bool = True,
    adversary: Adversary | None = None,
    state: Path | None = None,
    budget: int | None = None,
) -> Generator[Report, None, Distilled]:
    """Learn a solver of one NFE: an iterator over records, the last of which is the result.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs to train on.
        validation: teacher pairs of other seeds to choose by.
        nfe: network evaluations.
        loss: a name of :data:`gas.losses.LOSSES`.
        config: settings of the training after the start search; by default Gauss-Newton where the loss allows it, else
            Adam.
        search: how the start is chosen; by default by successive halving.
        solver: what is learned, a Generalized Solver by default: a key of :data:`gas.learned.SOLVERS`.
        theory: as in :func:`gas.learned.kind_by_name`.
        adversary: train the solver against discriminators afterwards (GAS). The best solver is then chosen by the
            adversary's criterion; its paired loss may be larger, even than the best classical solver's. Without weight
            on any discriminator this is training without an adversary, bit for bit.
        state: folder of the resumable state; an interrupted run resumes from it and ends with the same bits.
        budget: most network evaluations, everything counted, for Gauss-Newton without an adversary. ``search``,
            ``config`` and the validation pairs are cut to what it pays for (:class:`gas.training.TrainingPlan`), and
            of a training that is cut the iterate with the least validation loss is kept.

    Yields:
        RankedSolver: of each round of the ranking. CandidateRound: after each short run. StartChoice: once. FitRecord:
        during training. Distilled: last; ``yield from`` returns it too.

    Raises:
        ValueError: for unknown names, settings out of range, or a state of another run.
    """
    search, kind = (search or StartSearch()).at(model, pairs.guidance), kind_by_name(solver, theory=theory)
    if len(pairs) == 0 or len(validation) == 0:
        raise UserError(
            f"distill needs pairs to train and to validate on, got {len(pairs)} and {len(validation)}"
        )
    config = kind.training(_default_config(search, loss) if config is None else config)
    adversarial = adversary is not None and adversary.has_weight()
    # Of the whole training: what a budget makes of it differs among the members of a family.
    provenance = _provenance(pairs, validation, loss, solver, config, adversarial)
    provenance["teacher"] = teacher_of(pairs, model)
    limit, measures, keep, short_runs = math.inf, {}, None, replace(SHORT_RUN, seed=config.seed)
    if budget is not None:
        if adversarial or not isinstance(config, GaussNewton):
            raise UserError("a budget needs Gauss-Newton and no adversary: leave one of them out")
        plan = plan_of(model, len(pairs), len(validation), nfe, search=search, config=config).within(budget)
        # Iterates of few pairs scatter by more than validation errs: there the least is the better choice.
        keep = "newest" if plan.config == config else "best"
        search, config, validation = plan.search, plan.config, validation.view(slice(0, plan.validation))
        measures = {
            "budget": float(budget),
            "steps": float(plan.steps),
            "validation_pairs": float(plan.validation),
        }
        short_runs = search.first_steps(plan.config)
        # What remains pays for a first and a last validation and the step between.
        limit = budget - len(validation) * 2 * nfe - plan.phases["training"].evaluations // 2
    options: dict[str, Any] = {"loss": loss, "solver": solver, "theory": theory, "state": state}
    choice = yield from search.run(model, pairs, validation, nfe, config=short_runs, limit=limit, **options)
    _check_finite(choice, nfe)
    yield choice
    result = replace(_classical_result(choice, model.schedule), provenance=provenance, measures=measures)
    if choice.best_loss >= ROUNDING:
        remaining = math.inf if budget is None else budget - choice.evaluations
        # A small budget has no steps to repeat. Else a model of the loss without the first steps' pairs is better:
        # digits, NFE 4, pairs drawn uniformly: 1.195e-3 after 68,622 evaluations, with theirs after 106,222.
        warm = None if budget is None else choice.state
        if warm is not None and isinstance(config, GaussNewton):
            config = replace(short_runs, iterations=config.iterations + warm["iteration"])
        learned = search.solver(choice, model.schedule, kind)
        data: dict[str, Any] = {"model": model, "pairs": pairs, "validation": validation, "loss": loss}
        file = checkpoint_file(state, f"nfe-{nfe}")
        fitting: dict[str, Any] = {"config": config, "checkpoint": file, "keep": keep}
        record = yield from fit(learned, **data, **fitting, budget=remaining, warm=warm)
        # Of learned tables that are trained further, the result is never worse than they are.
        better = _with_record(result, record, sure=not search.continues)
        result = better if better.solver is result.solver else replace(better, solver=learned)
        if adversary is not None and adversarial:
            file = checkpoint_file(state, f"nfe-{nfe}-gas")
            result = yield from _refine(result, adversary, theory, checkpoint=file, **data)
    yield result
    return result


def _check_finite(choice: StartChoice, nfe: int) -> None:
    """Refuse a model whose predictions are not finite."""
    if not math.isfinite(choice.best_loss):
        raise UserError(
            f"no classical solver of {nfe} calls has a finite loss on the validation pairs: the network's predictions "
            "are not finite (gas.check_model looks for the reason)"
        )


def plan_of(
    model: Model,
    pairs: int,
    validation: int,
    nfe: int,
    *,
    search: StartSearch | None = None,
    config: GaussNewton = FINISH,
) -> TrainingPlan:
    """Return what :func:`distill` does for one NFE with so many pairs."""
    return TrainingPlan(
        nfe=nfe,
        solvers=sum(1 for _ in candidate_solvers(model.schedule, nfe, model.t_end)),
        pairs=pairs,
        validation=validation,
        search=StartSearch() if search is None else search,
        config=config,
    )


def _classical_result(choice: StartChoice, schedule: Schedule) -> Distilled:
    """Return the best classical table as the result."""
    return Distilled(
        nfe=choice.best.nfe,
        solver=choice.best.table(schedule),
        start=choice.start,
        best_classical=choice.best,
        best_classical_loss=choice.best_loss,
        loss=choice.best_loss,
        evaluations=choice.evaluations,
        losses=torch.tensor(choice.losses, dtype=torch.float64),
    )


def checkpoint_file(state: Path | None, name: str) -> Path | None:
    """Return the file of a training in the folder of a resumable state."""
    return None if state is None else state / f"{name}.pt"


def _with_record(result: Distilled, record: FitRecord, *, sure: bool = True) -> Distilled:
    """Return the classical result with the best table of a training, if that validates (surely) better."""
    result = replace(result, evaluations=result.evaluations + record.evaluations)
    classical, losses, table = result.losses, record.best_losses, record.best_table
    if classical is None or losses is None or table is None:
        return result
    if not (surely_better(losses, classical) if sure else record.best_loss < result.loss):
        return result
    return replace(result, solver=table, loss=record.best_loss, losses=losses)


def _refine(
    result: Distilled, adversary: Adversary, theory: bool, model: Model, validation: Pairs, **fitting: Any
) -> Generator[FitRecord, None, Distilled]:
    """Train the solver of a result against discriminators; return the result with it."""
    solver = result.solver
    if isinstance(solver, Table):
        solver = GeneralizedSolver.from_table(model.schedule, solver, model.t_end, theory=theory)
    outcome = yield from fit_adversarial(adversary, solver, model, validation=validation, **fitting)
    losses = evaluate(model, validation, solver().detach(), loss_by_name(fitting["loss"]))
    return replace(
        result,
        solver=solver,
        loss=float(losses.mean()),
        losses=losses,
        evaluations=result.evaluations + outcome.evaluations + len(validation) * result.nfe,
        stopped=outcome.stopped,
        criterion=outcome.criterion,
    )


def _provenance(
    pairs: Pairs, validation: Pairs, loss: str, solver: str, config: Adam | GaussNewton, adversarial: bool
) -> dict[str, Any]:
    """Return what a solver file records about the making of its parameters."""
    training = {
        "pairs": len(pairs),
        "validation": len(validation),
        "seeds": [int(pairs.seeds[0]), int(validation.seeds[-1]) + 1],
        "solver": solver,
        **config.config(),
        **({"objective": "gas"} if adversarial else {}),
    }
    return {"guidance": pairs.guidance, "loss": loss, "training": training}


def _default_config(search: StartSearch, loss: str) -> Adam | GaussNewton:
    if not is_sum_of_squares(loss_by_name(loss)):
        return Adam()
    return steps_after(search)


# With the grid of the next smaller NFE, the two best classical grids are enough.
_FAMILY_CANDIDATES = 3


def distill_family(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfes: Sequence[int],
    *,
    search: StartSearch | None = None,
    budget: int | None = None,
    **options: Any,
) -> Generator[Report, None, list[Distilled]]:
    """Learn a solver for each NFE, the smallest first, with fewer network calls than one by one.

    Learned times are a grid like any other: interpolated to the next NFE, they join the two best classical grids among
    its candidates.

    Args:
        model, pairs, validation, search, options: as for :func:`gas.distill`, the same for every member.
        nfes: network evaluations of each member.
        budget: most network evaluations of all members together, shared in proportion to their full trainings.

    Yields:
        The records of :func:`gas.distill` for each member, which end with its :class:`gas.Distilled`.
    """
    search = StartSearch() if search is None else search
    members: list[Distilled] = []
    nfes = sorted(set(nfes))
    budgets: Mapping[int, int | None] = dict.fromkeys(nfes)
    if budget is not None:
        config = options.get("config") or _default_config(search, options.get("loss", "l2"))
        if not isinstance(config, GaussNewton):
            raise UserError("a budget needs Gauss-Newton: leave out the budget, or another config")
        settings = {"config": config}
        plans = [plan_of(model, len(pairs), len(validation), n, search=search, **settings) for n in nfes]
        budgets = _shares(budget, plans)
    for nfe in nfes:
        member_search = search
        if members:
            grid = neighbor_grid(model.schedule, members[-1].table(), nfe, model.t_end)
            count = min(_FAMILY_CANDIDATES, search.candidates)
            member_search = replace(search, candidates=count, extra_grid=grid)
        member = yield from distill(
            model, pairs, validation, nfe, search=member_search, budget=budgets[nfe], **options
        )
        members.append(member)
    return members


def _shares(budget: int, plans: Sequence[TrainingPlan]) -> dict[int, int]:
    """Return the budget of each NFE, in proportion to full trainings; refuse one that is too small for any."""
    whole = sum(plan.total.evaluations for plan in plans)
    shares = {plan.nfe: int(budget * plan.total.evaluations / whole) for plan in plans}
    for plan in plans:
        plan.within(shares[plan.nfe])
    return shares


def neighbor_grid(schedule: Schedule, table: Table, nfe: int, t_end: float) -> Tensor:
    """Return a grid ``(nfe + 1,)`` with the spacing of another solver's times.

    The half log-SNR of its times over the share of steps is interpolated at more or fewer steps.

    Args:
        schedule: the forward process.
        table: the other solver.
        nfe: network evaluations of the grid.
        t_end: time that sampling ends at.
    """
    inner = table.times.detach()[1:].clamp(min=t_end, max=1.0)
    times = torch.cat([inner.new_ones(1), inner, inner.new_full((1,), t_end)])
    # Infinite ends (a flow's) are read from just inside. Learned times may fall back or coincide, a grid's may not:
    # cummax makes them monotonic, and two percent of even spacing makes them different.
    level = (
        schedule.half_log_snr(times.clamp(min=schedule.t_min + 1e-4, max=1 - 1e-4))
        .cummax(dim=0)
        .values.numpy()
    )
    share = np.linspace(0, 1, nfe + 1)
    interpolated = np.interp(share, np.linspace(0, 1, len(level)), level)
    even = level[0] + share * (level[-1] - level[0])
    grid = schedule.inverse_half_log_snr(torch.from_numpy(0.98 * interpolated + 0.02 * even))
    grid[0], grid[-1] = 1.0, t_end
    return grid
