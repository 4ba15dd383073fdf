"""Learn a solver's numbers from teacher pairs."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import of_type, one_of
from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.errors import Diverged, UserError
from gas.losses import Loss, is_sum_of_squares, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, check_conditions, check_pairs
from gas.registry import origin
from gas.table import Table
from gas.training.adam import Adam, AdamSteps
from gas.training.adversarial.losses import Critic
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.validation import evaluate

__all__ = ["Criterion", "FitRecord", "LearnedSolver", "Steps", "fit"]


# A loss this many times that of a constant answer is no approximation; few steps from a poor start may leave 3.
_WORSE = 10

# What to choose the best solver by: its table -> smaller is better. If it samples with the table, its attribute
# ``samples`` says how many, so that they can be counted.
Criterion = Callable[[Table], float]


class LearnedSolver(Protocol):
    """A module whose ``forward()`` returns a table."""

    def __call__(self) -> Table: ...


class Steps(Protocol):
    """An optimiser at work on a solver, which it changes in place."""

    model: Model
    iteration: int
    evaluations: int

    @property
    def config(self) -> Adam | GaussNewton: ...
    def step(self) -> float:
        """Take one step; return the mean loss of its pairs."""

    def averaged(self) -> nn.Module:
        """Return the solver to validate."""

    def report(self) -> dict[str, float]:
        """Return means of what was logged since the last report."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the bits of its steps, in plain JSON."""

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs to go on with the same bits."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class FitRecord:
    """One report: mean training loss since the last report, and validation losses now, at the start and at best."""

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
    """Means since the last report of what the optimiser says of itself, a critic's as ``critic.quantity``: its and the
    generator's losses, R1 and R2, and the share of reals ranked above fakes."""


def fit(
    solver: nn.Module,
    model: Model,
    pairs: Pairs,
    *,
    validation: Pairs | None = None,
    loss: str | Loss = "l2",
    config: Adam | GaussNewton | None = None,
    checkpoint: str | Path | None = None,
    critics: Sequence[Critic] = (),
    pairing: str = "independent",
    criterion: Criterion | None = None,
    keep: Literal["best", "last"] = "best",
) -> Iterator[FitRecord]:
    """Minimise ``E loss(student(x_T), teacher(x_T))`` over a solver's parameters.

    The network stays frozen. The solver (Adam's: its average) is validated at the start, every
    ``validate_every`` iterations and at the end. Whenever the generator
    ends, is closed or fails, ``solver`` holds the best numbers seen on the validation pairs, which are
    never worse than those it came with.

    Args:
        solver: a module whose ``forward()`` returns a :class:`gas.Table`, changed in place.
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds; by default the last quarter of ``pairs``, at
            most 256, which are then not trained on.
        loss: a name of :data:`gas.losses.LOSSES`, or any callable ``(B, *), (B, *) -> (B,)``.
        config: :class:`gas.Adam` for any loss, or :class:`gas.GaussNewton` for sums of squares; by default
            the latter where it can be used.
        checkpoint: file of the resumable state, written at every report; if it exists, training goes on
            from it and ends with the same bits as an uninterrupted run.
        critics: adversaries for Adam: with them this trains a Generalized *Adversarial* Solver.
        pairing: of fakes and reals, as in :class:`gas.training.AdamSteps`.
        criterion: what is validated and chosen by instead of the mean loss, smaller being better. Critics move
            samples away from the teacher's on purpose, so with them choose by a distance of distributions, of
            samples of the same noise throughout: :class:`gas.training.adversarial.setup.Watched`.
        keep: ``"last"`` leaves the solver at the last report's numbers, whatever they validate as.

    Yields:
        FitRecord: at iteration 0, every ``validate_every`` iterations, and the last.

    Warns:
        UserWarning: when the best solver is much farther from the teacher than a constant would be.

    Raises:
        ValueError: when the pairs are empty, overlap the validation pairs, were made with other conditions than the
            model's, or the checkpoint is of another run.
        Diverged: when a loss or gradient is not finite, or a critic wins outright.

    References:
        arXiv 2510.17699, equations 15 and 22, section 5.
    """
    one_of("keep", keep, ("best", "last"))
    one_of("pairing", pairing, ("independent", "paired"))
    of_type("solver", solver, nn.Module, "a module whose forward() returns a gas.Table")
    if config is not None:
        of_type("config", config, (Adam, GaussNewton), "a gas.Adam or a gas.GaussNewton")
    if checkpoint is not None:
        of_type("checkpoint", checkpoint, (str, Path), "the path of a file")
    check_pairs(pairs, model)
    if validation is None:
        pairs, validation = pairs.split(min(256, len(pairs) // 4))
    check_pairs(validation, model, "validation")
    if not len(pairs) or not len(validation):
        raise UserError(
            f"fit needs pairs to train and to validate on, got {len(pairs)} and {len(validation)}"
        )
    if bool(torch.isin(pairs.seeds, validation.seeds).any()):
        raise UserError(
            "training and validation pairs share seeds: validate on seeds that were not trained on"
        )
    schedule = getattr(solver, "schedule", model.schedule)
    if schedule.config() != model.schedule.config():
        raise UserError(
            f"the solver is of schedule {schedule}, the model {model.name} of {model.schedule}: "
            "build the solver from model.schedule"
        )
    check_conditions(model, pairs)
    asked = loss if callable(loss) else loss_by_name(loss)
    steps = _steps_of(config, solver, model, pairs, asked, critics, pairing)
    training = _Run(solver, steps, asked, criterion, keep)
    identity = _identity(solver, steps, pairs, validation, asked, criterion)
    path = Path(checkpoint) if checkpoint is not None else None
    if path is not None and path.exists():
        training.restore(_checked(read_checkpoint(path), identity, path))
    try:
        while True:
            if training.due():
                record = training.validate(validation)
                if path is not None and distributed.is_first():
                    write_checkpoint(path, {"identity": identity, **training.state()})
                yield record
            if steps.iteration >= training.iterations:
                best = training.best_loss
                paired = criterion is None and not critics  # critics move samples away from the teacher's
                if paired and (problem := _implausible(best, validation, asked, model.device)):
                    warnings.warn(problem, UserWarning, stacklevel=2)
                return
            training.advance()
    finally:
        solver.load_state_dict(training.best)


@torch.no_grad()
def _implausible(best: float, validation: Pairs, loss: Loss, device: torch.device) -> str:
    """What to say of a solver that is much worse than one that answers every noise with the teacher's mean."""
    target = next(validation.batches()).target.to(device)
    usual = float(loss(target.mean(0).expand_as(target), target).mean())
    if not best > _WORSE * usual > 0:
        return ""
    return (
        f"after training the loss to the teacher is {best:.3g}; the mean of the teacher's samples alone would have "
        f"{usual:.3g}: gas.check_model(model) looks for the reason; gas.denoise.StaticThreshold(denoise, limit) bounds "
        "estimates where alpha is near 0"
    )


class _Run:
    """The state of one training: where its optimiser is, and the best numbers so far."""

    def __init__(
        self, solver: nn.Module, steps: Steps, loss: Loss, criterion: Criterion | None, keep: str = "best"
    ) -> None:
        self.steps, self.model, self.loss, self.criterion = steps, steps.model, loss, criterion
        self.last = keep == "last"
        self.iterations, self.every = steps.config.iterations, steps.config.validate_every
        self.validated = -1
        self.best, self.best_loss, self.best_iteration = _copy(solver), math.inf, 0
        self.start_loss = math.nan
        self.losses: list[float] = []
        self.winners: set[str] = set()

    def due(self) -> bool:
        """Whether a report is due and has not been made."""
        iteration = self.steps.iteration
        boundary = iteration % self.every == 0 or iteration == self.iterations
        return boundary and self.validated != iteration

    def advance(self) -> None:
        self.losses.append(self.steps.step())

    def validate(self, validation: Pairs) -> FitRecord:
        """Measure the averaged solver, remember it if it is the best, and report."""
        average, iteration = self.steps.averaged(), self.steps.iteration
        with torch.no_grad():
            table: Table = average()
        value = self._measure(validation, table)
        if iteration == 0:
            self.start_loss = value
        if value < self.best_loss or (self.last and math.isfinite(value)):
            self.best, self.best_loss, self.best_iteration = _copy(average), value, iteration
        train = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses, self.validated = [], iteration
        losses = (value, self.start_loss, self.best_loss)
        samples = len(validation) if self.criterion is None else int(getattr(self.criterion, "samples", 0))
        validations = 1 + -(-iteration // self.every)
        spent = self.steps.evaluations + validations * samples * table.nfe
        logs = self._checked_logs()
        return FitRecord(iteration, self.iterations, train, *losses, self.best_iteration, spent, logs)

    def _checked_logs(self) -> dict[str, float]:
        """What the optimiser logged; a critic that ranks every real above every fake, twice running, has won."""
        logs = self.steps.report()
        winners = {name for name, value in logs.items() if name.endswith(".ranks") and value == 1.0}
        again, self.winners = winners & self.winners, winners
        if again:
            raise Diverged(
                f"iteration {self.steps.iteration}: critic {min(again).removesuffix('.ranks')!r} wins outright; "
                "lower its learning_rate or raise its penalty"
            )
        return logs

    def _measure(self, validation: Pairs, table: Table) -> float:
        if self.criterion is None:
            return float(evaluate(self.model, validation, table, self.loss).mean())
        return self.criterion(table)

    def state(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("best", "best_loss", "best_iteration", "start_loss")}
        return {**kept, "winners": sorted(self.winners), "steps": self.steps.state()}

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("best", "best_loss", "best_iteration", "start_loss"):
            setattr(self, name, state[name])
        self.winners = set(state["winners"])
        self.steps.restore(state["steps"])
        # A finished run reports once more, so that whoever resumes a family learns how this member ended.
        self.validated = -1 if self.steps.iteration == self.iterations else self.steps.iteration


def _steps_of(
    config: Adam | GaussNewton | None,
    solver: nn.Module,
    model: Model,
    pairs: Pairs,
    loss: Loss,
    critics: Sequence[Critic],
    pairing: str,
) -> Steps:
    if config is None:
        config = GaussNewton() if is_sum_of_squares(loss) and not critics else Adam()
    if isinstance(config, Adam):
        return AdamSteps(solver, model, pairs, loss, config, critics, pairing)
    if critics:
        raise UserError("critics need config=gas.Adam(...): Gauss-Newton minimises sums of squares only")
    return GaussNewtonSteps(solver, model, pairs, loss, config)


def _checked(state: dict[str, Any], identity: str, path: Path) -> dict[str, Any]:
    if state.get("identity") != identity:
        raise UserError(
            f"checkpoint {path} is of a run with other settings, solver, model or pairs: "
            "delete it or name another"
        )
    return state


def _identity(
    solver: nn.Module, steps: Steps, pairs: Pairs, validation: Pairs, loss: Loss, criterion: Criterion | None
) -> str:
    """A digest of everything that decides the bits of a run: a checkpoint of another must not be continued."""
    told = {
        "steps": steps.identity(),
        "loss": origin(loss),
        "criterion": origin(criterion),
        "solver": [type(solver).__name__, *(str(getattr(solver, name, "")) for name in ("theory", "base"))],
        "schedule": steps.model.schedule.config(),
        "model": dict(steps.model.fingerprint()),
        "guidance": pairs.guidance,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, value in solver.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    for part in (pairs, validation):
        for tensor in (part.seeds, *(_finite(some).target for some in part.batches())):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _finite(pairs: Pairs) -> Pairs:
    """Return pairs whose targets are finite; on their way through the digest all of them are read anyway."""
    whole = pairs.target.reshape(len(pairs), -1).isfinite().all(1)
    if not bool(whole.all()):
        seed = int(pairs.seeds[~whole][0])
        raise UserError(f"the teacher's sample of seed {seed} is not finite: make the pairs anew")
    return pairs


def _copy(solver: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in solver.state_dict().items()}
