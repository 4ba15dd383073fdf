"""The training loop: learn a solver's parameters from teacher pairs."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import choice, number, of_type
from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.errors import Diverged, UserError
from gas.losses import Loss, is_sum_of_squares, loss_by_name
from gas.models.protocol import Model, weights_hash
from gas.pairs.dataset import Pairs, check_conditions, check_pairs
from gas.registry import origin
from gas.table import Table, table_of
from gas.training.adam import Adam
from gas.training.adversarial.losses import Discriminator
from gas.training.gauss_newton import GaussNewton
from gas.training.validation import evaluate, surely_positive

# A loss this many times that of a constant prediction is no approximation; few steps from a poor start may leave 3.
_IMPLAUSIBLE = 10

# What to choose the best solver by: its table -> a number, or the losses ``(S,)`` whose mean counts; smaller is better.
# Attributes that it may have: ``samples``, how many it makes with the table, so that they can be counted; ``logs`` of
# its last call; ``eligible``, whether the table of that call may be chosen.
Criterion = Callable[[Table], float | Tensor]


class Steps(Protocol):
    """An optimizer with its state, changing a solver in place."""

    model: Model
    iteration: int
    evaluations: int

    @property
    def config(self) -> Any:
        """Settings, ``iterations`` and ``validate_every`` among them."""

    def step(self, limit: float = math.inf) -> float:
        """Take one step, with no trial that takes :attr:`evaluations` above the limit; return its pairs' mean loss."""

    def step_cost(self) -> int:
        """Return the network evaluations that the next step takes at least, and at most where it has no trials."""

    def averaged(self) -> nn.Module:
        """Return the solver to validate."""

    def report(self) -> dict[str, float]:
        """Return means of the logs since the last report."""

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the bits of the steps, in plain JSON."""

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs to go on with the same bits."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class FitRecord:
    """One report: mean training loss since the last report, and validation losses now, at the start and of the best.

    The best is the solver that :func:`fit` keeps. The last report has ``iteration == iterations``.
    """

    iteration: int
    iterations: int
    train_loss: float
    validation_loss: float
    start_loss: float
    best_loss: float
    best_iteration: int
    evaluations: int
    """Network evaluations of single samples so far, training and validation: a gradient through one call counts as
    three, a derivative along one direction as one."""
    logs: Mapping[str, float] = field(default_factory=dict)
    """Means of the optimizer's logs since the last report. Those of a discriminator are ``NAME.discriminator`` and
    ``NAME.generator`` (losses), ``NAME.r1``, ``NAME.r2`` and ``NAME.real_above_fake`` (share of pairs)."""
    best_table: Table | None = field(default=None, repr=False, compare=False)
    """Table of the best solver so far: training may stop after any report."""
    best_losses: Tensor | None = field(default=None, repr=False, compare=False)
    """Its losses ``(S,)`` on the validation pairs, ``None`` with a criterion that returns one number."""


def fit(
    solver: nn.Module,
    model: Model,
    pairs: Pairs,
    *,
    validation: Pairs | None = None,
    loss: str | Loss = "l2",
    config: Adam | GaussNewton | None = None,
    checkpoint: str | Path | None = None,
    discriminators: Sequence[Discriminator] = (),
    pairing: str = "independent",
    criterion: Criterion | None = None,
    keep: Literal["newest", "best", "last"] | None = None,
    budget: float = math.inf,
    warm: Mapping[str, Any] | None = None,
) -> Generator[FitRecord, None, FitRecord]:
    """Minimize ``E loss(student(x_T), teacher(x_T))`` over a solver's parameters.

    The network stays frozen. The solver (Adam's: its average) is validated at the start, every
    ``validate_every`` iterations and at the end. Whenever the generator ends, is closed or fails, ``solver`` has the
    best parameters so far, which but for ``keep="last"`` never validate worse than its initial ones.

    Args:
        solver: a module whose ``forward()`` returns a :class:`gas.Table`, changed in place.
        model: whose denoiser to call.
        pairs: teacher pairs to train on.
        validation: teacher pairs of other seeds to choose by; by default the last quarter of ``pairs``, at most 256,
            which are then not trained on.
        loss: a name of :data:`gas.losses.LOSSES`, or any callable ``(B, *), (B, *) -> (B,)``.
        config: :class:`gas.Adam` for any loss, or :class:`gas.GaussNewton` for sums of squares; by default the latter
            where possible.
        checkpoint: file of the resumable state, written at every report. If it exists, training resumes from it and
            ends with the same bits as an uninterrupted run.
        discriminators: for Adam; with them this trains a Generalized *Adversarial* Solver.
        pairing: of fakes and reals, as in :class:`gas.training.AdamSteps`.
        criterion: choose the best solver by this instead of the mean loss; smaller is better. Discriminators move
            samples away from the teacher's on purpose, so with them choose by a distance of distributions on fixed
            noise: :class:`gas.training.adversarial.setup.FixedNoiseCriterion`.
        keep: which parameters are the best. ``"newest"``, the default of Gauss-Newton, are the newest that those with
            the least loss do not surely beat (:func:`gas.training.validation.surely_positive`): a step learns from more
            pairs than the ones before, and the least of many heavy-tailed means is often chance. ``"best"``, the
            default of Adam and with a criterion of one number, have the least loss; ``"last"`` are those of the last
            report, however they validate.
        budget: most network evaluations, counted as :attr:`FitRecord.evaluations`: training ends before the step whose
            evaluations, with those of a validation, would exceed it.
        warm: the optimizer's state after earlier steps of these settings; their evaluations do not count again.

    Yields:
        FitRecord: at iteration 0, every ``validate_every`` iterations, and the last; ``yield from`` returns that too.

    Warns:
        UserWarning: when the best solver is much farther from the teacher than a constant would be.

    Raises:
        ValueError: when the pairs are empty, overlap the validation pairs or were made under other conditions than the
            model's, or the checkpoint is of another run.
        Diverged: when a loss or gradient is not finite, or a discriminator wins outright.

    References:
        arXiv 2510.17699, equations 15 and 22, section 5.
    """
    if keep is not None:
        choice("keep", keep, ("newest", "best", "last"))
    choice("pairing", pairing, ("independent", "paired"))
    of_type("solver", solver, nn.Module, "a module whose forward() returns a gas.Table")
    if checkpoint is not None:
        of_type("checkpoint", checkpoint, (str, Path), "the path of a file")
    distance = loss_by_name(loss)
    if config is None:
        config = GaussNewton() if is_sum_of_squares(distance) and not discriminators else Adam()
    of_type("config", config, (Adam, GaussNewton), "a gas.Adam or a gas.GaussNewton")
    pairs, validation = _checked_pairs(solver, model, pairs, validation)
    steps: Steps = config.optimizer(
        solver=solver, model=model, pairs=pairs, loss=distance, discriminators=discriminators, pairing=pairing
    )
    if warm is not None:
        steps.restore({**warm, "evaluations": 0})
    number("budget", budget, "[1, inf]")
    keep = keep or default_keep(config)
    fingerprint = run_fingerprint(solver, steps, pairs, validation, distance, criterion, budget, keep)
    paired_loss = _PairedLoss(steps.model, validation, distance)
    run = Run(solver, steps, paired_loss if criterion is None else criterion, keep=keep, budget=budget)
    record = yield from run.records(None if checkpoint is None else Path(checkpoint), fingerprint)
    # Discriminators move samples away from the teacher's on purpose.
    paired = criterion is None and not discriminators
    if paired and (problem := _implausible(run.best.loss, validation, distance, model.device)):
        warnings.warn(problem, UserWarning, stacklevel=2)
    return record


def default_keep(config: Adam | GaussNewton) -> Literal["newest", "best"]:
    """Return which parameters :func:`fit` keeps by default."""
    return "newest" if isinstance(config, GaussNewton) else "best"


def criterion_evaluations(criterion: Criterion | None, nfe: int) -> int:
    """Return the network evaluations of a criterion, of those samples that it says it makes."""
    return int(getattr(criterion, "samples", 0)) * nfe


def check_seeds(pairs: Pairs, validation: Pairs) -> None:
    """Refuse validation pairs of seeds that are trained on."""
    if bool(torch.isin(pairs.seeds, validation.seeds).any()):
        raise UserError(
            "training and validation pairs share seeds: validate on seeds that were not trained on"
        )


def _checked_pairs(
    solver: nn.Module, model: Model, pairs: Pairs, validation: Pairs | None
) -> tuple[Pairs, Pairs]:
    """Return the pairs to train and to validate on, once they fit the model, the solver and each other."""
    check_pairs(pairs, model)
    if validation is None:
        pairs, validation = pairs.split(min(256, len(pairs) // 4))
    check_pairs(validation, model, "validation")
    if not len(pairs) or not len(validation):
        raise UserError(
            f"fit needs pairs to train and to validate on, got {len(pairs)} and {len(validation)}"
        )
    check_seeds(pairs, validation)
    schedule = getattr(solver, "schedule", model.schedule)
    if schedule.config() != model.schedule.config():
        raise UserError(
            f"the solver is of schedule {schedule}, the model {model.name} of {model.schedule}: "
            "build the solver from model.schedule"
        )
    check_conditions(model, pairs)
    return pairs, validation


@torch.no_grad()
def _implausible(best: float, validation: Pairs, loss: Loss, device: torch.device) -> str:
    """Return a warning about a solver that is much worse than one that returns the teacher's mean for every noise."""
    target = next(validation.batches()).target.to(device)
    usual = float(loss(target.mean(0).expand_as(target), target).mean())
    if not best > _IMPLAUSIBLE * usual > 0:
        return ""
    return (
        f"after training the loss to the teacher is {best:.3g}; the mean of the teacher's samples alone would have "
        f"{usual:.3g}: gas.check_model(model) looks for the reason; gas.denoise.StaticThreshold(denoise, limit) bounds "
        "estimates where alpha is near 0"
    )


@dataclass(frozen=True)
class _PairedLoss:
    """The default criterion: the mean loss on the validation pairs."""

    model: Model
    pairs: Pairs
    loss: Loss

    @property
    def samples(self) -> int:
        return len(self.pairs)

    def __call__(self, table: Table) -> Tensor:
        return evaluate(self.model, self.pairs, table, self.loss)


@dataclass(frozen=True, eq=False)
class _Best:
    parameters: dict[str, Tensor]
    table: Table
    loss: float = math.inf
    losses: Tensor | None = None
    iteration: int = 0
    logs: Mapping[str, float] = field(default_factory=dict)  # of the criterion


class Run:
    """One training: its optimizer, validation, and the best parameters so far."""

    def __init__(
        self,
        solver: nn.Module,
        steps: Steps,
        criterion: Criterion,
        *,
        keep: str = "best",
        budget: float = math.inf,
    ) -> None:
        self.solver, self.steps, self.criterion, self.keep = solver, steps, criterion, keep
        table = table_of(solver)
        self.best, self.start_loss = _Best(_copy(solver), table), math.nan
        self.least: Tensor | None = None  # the losses (S,) whose mean is the least so far
        self.validation_cost = criterion_evaluations(criterion, table.nfe)
        self.budget, self.validations = budget, 0
        self.losses: list[float] = []
        self.winners: set[str] = set()

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, training and validation."""
        return self.steps.evaluations + self.validations * self.validation_cost

    def records(
        self, path: Path | None = None, fingerprint: str = ""
    ) -> Generator[FitRecord, None, FitRecord]:
        """Train and report, from a checkpoint if there is one; leave the solver with the best parameters."""
        record: FitRecord | None = None
        if path is not None and path.exists():
            record = self._restore(_read_state(path, fingerprint))
            # A finished run reports once more: distill_family learns from that report how this member ended.
            if record.iteration == record.iterations:
                yield record
        try:
            while record is None or record.iteration != record.iterations:
                if record is not None:
                    self.losses.append(self.steps.step(self._limit()))
                if record is None or self._due():
                    record = self._validate()
                    if path is not None and distributed.is_first():
                        write_checkpoint(path, {"fingerprint": fingerprint, **self._state(record)})
                    yield record
        finally:
            self.solver.load_state_dict(self.best.parameters)
        return record

    def _limit(self) -> float:
        """Return how many evaluations the steps may take until the next validation."""
        return self.budget - (self.validations + 1) * self.validation_cost

    def _last(self) -> bool:
        """Whether all iterations are done, or the budget has no room for another."""
        spent = self.steps.evaluations + self.steps.step_cost()
        return self.steps.iteration >= self.steps.config.iterations or spent > self._limit()

    def _due(self) -> bool:
        return self.steps.iteration % self.steps.config.validate_every == 0 or self._last()

    def _validate(self) -> FitRecord:
        """Validate the averaged solver, store it if it is the best, and report."""
        average, iteration = self.steps.averaged(), self.steps.iteration
        table = table_of(average)
        self.validations += 1
        losses = torch.as_tensor(self.criterion(table), dtype=torch.float64)
        loss = float(losses.mean())
        if self.validations == 1:
            self.start_loss = loss
        logs = dict(getattr(self.criterion, "logs", {}))
        if self._replaces_best(losses):
            self.best = _Best(_copy(average), table, loss, losses if losses.ndim else None, iteration, logs)
        train_loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses = []
        return FitRecord(
            iteration=iteration,
            iterations=iteration if self._last() else self.steps.config.iterations,
            train_loss=train_loss,
            validation_loss=loss,
            start_loss=self.start_loss,
            best_loss=self.best.loss,
            best_iteration=self.best.iteration,
            evaluations=self.evaluations,
            logs={**self._checked_logs(), **logs},
            best_table=self.best.table,
            best_losses=self.best.losses,
        )

    def _replaces_best(self, losses: Tensor) -> bool:
        """Whether the solver with these losses ``(S,)``, or one loss ``()``, is the best now."""
        loss = float(losses.mean())
        if not math.isfinite(loss):
            return False
        if self.keep == "last":
            return True
        if not getattr(self.criterion, "eligible", True):
            return False
        if self.keep == "best" or not losses.ndim:
            return loss < self.best.loss
        if self.least is None or loss < float(self.least.mean()):
            self.least = losses
            return loss < self.best.loss
        # Of a start that is not finite, none is worse.
        return not loss >= self.start_loss and not surely_positive(losses - self.least)

    def _checked_logs(self) -> dict[str, float]:
        """Return the optimizer's logs.

        A discriminator that ranks every real above every fake wins; of few samples it may by chance, twice running not.
        """
        logs, suffix = self.steps.report(), ".real_above_fake"
        winners = {
            name.removesuffix(suffix)
            for name, x in logs.items()
            if name.endswith(suffix) and round(x, 9) == 1
        }
        repeated, self.winners = winners & self.winners, winners
        if repeated:
            raise Diverged(
                f"iteration {self.steps.iteration}: discriminator {min(repeated)!r} wins outright; "
                "lower its learning_rate or raise its penalty"
            )
        return logs

    def _state(self, record: FitRecord) -> dict[str, Any]:
        best, values = dict(vars(self.best)), dict(vars(record))
        del best["table"], values["best_table"], values["best_losses"]
        return {
            "best": best,
            "least": self.least,
            "record": {**values, "logs": dict(record.logs)},
            "validations": self.validations,
            "winners": sorted(self.winners),
            "steps": self.steps.state(),
        }

    def _restore(self, state: dict[str, Any]) -> FitRecord:
        self.solver.load_state_dict(state["best"]["parameters"])
        self.best = _Best(**state["best"], table=table_of(self.solver))
        self.winners, self.validations = set(state["winners"]), state["validations"]
        self.least = state["least"]
        self.steps.restore(state["steps"])
        record = FitRecord(**state["record"], best_table=self.best.table, best_losses=self.best.losses)
        self.start_loss = record.start_loss
        return record


def _read_state(path: Path, fingerprint: str) -> dict[str, Any]:
    state = read_checkpoint(path)
    if state.get("fingerprint") != fingerprint:
        raise UserError(
            f"checkpoint {path} is of a run with other settings, solver, model or pairs: "
            "delete it or name another"
        )
    return state


def run_fingerprint(
    solver: nn.Module,
    steps: Steps,
    pairs: Pairs,
    validation: Pairs,
    loss: Loss,
    criterion: Criterion | None,
    budget: float,
    keep: str,
) -> str:
    """Return a digest of everything that decides the bits of a run: no other run may resume its checkpoint."""
    settings = {
        "steps": steps.fingerprint(),
        "loss": _objective_fingerprint(loss),
        "criterion": _objective_fingerprint(criterion),
        "budget": budget,
        "keep": keep,
        "solver": [type(solver).__name__, *(str(getattr(solver, name, "")) for name in ("theory", "base"))],
        "schedule": steps.model.schedule.config(),
        "model": dict(steps.model.fingerprint()),
        "guidance": pairs.guidance if pairs.scales is None else pairs.scales.tolist(),
    }
    if (branches := getattr(solver, "branches", None)) is not None:
        settings["branches"] = branches
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in solver.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    for part in (pairs, validation):
        for tensor in (part.seeds, *(_finite(batch).target for batch in part.batches())):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _objective_fingerprint(objective: Any) -> Any:
    """Return what decides a loss or criterion, in plain JSON: its name, and of a dataclass its fields, too."""
    if objective is None or isinstance(objective, (bool, int, float, str)):
        return objective
    if callable(getattr(objective, "fingerprint", None)):
        return dict(objective.fingerprint())
    if isinstance(objective, nn.Module):
        return [origin(objective), weights_hash(objective)]
    if isinstance(objective, (list, tuple)):
        return [_objective_fingerprint(part) for part in objective]
    # Pairs have their own place in the digest.
    settings = fields(objective) if is_dataclass(objective) and not isinstance(objective, Pairs) else ()
    values = {part.name: _objective_fingerprint(getattr(objective, part.name)) for part in settings}
    return [origin(objective), values]


def _finite(pairs: Pairs) -> Pairs:
    """Return pairs whose targets are finite; the digest reads all of them anyway."""
    whole = pairs.target.reshape(len(pairs), -1).isfinite().all(1)
    if not bool(whole.all()):
        seed = int(pairs.seeds[~whole][0])
        raise UserError(f"the teacher's sample of seed {seed} is not finite: make the pairs anew")
    return pairs


def _copy(solver: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in solver.state_dict().items()}
