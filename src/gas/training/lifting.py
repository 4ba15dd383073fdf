"""Lifting: train a small network at the last row of a table on recorded runs, without calling the model's network.

A residual at the last row changes no state and no prediction that it reads. So the table runs once on every pair; what
follows costs the residual alone, and the discriminator where there is one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import number
from gas.errors import UserError
from gas.evaluation.sampler import Batch, seed_batches
from gas.losses import Loss, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, check_conditions
from gas.residual import Residual
from gas.sampling import recorded_run
from gas.table import Table, refuse_branches
from gas.training.adam import Adam, AdamSteps
from gas.training.adversarial.setup import GAS, Adversary, FixedNoiseCriterion, fit_adversarial
from gas.training.distillation import Distilled, checkpoint_file
from gas.training.loop import Criterion, FitRecord, criterion_evaluations, fit
from gas.training.price import call_times, seconds_of
from gas.training.validation import surely_better

# Most time of a residual, in network calls of a sample.
SHARE = 0.03

# Samples a call, and runs of each timing.
_BATCH, _REPEATS = 64, 8


@dataclass(frozen=True)
class Lifting(Adam):
    """Settings of :func:`lift`: Adam's, and the size of the residual.

    Args:
        width: channels of the hidden layers.
        patch: side of the patches of images and latents.
        layers: hidden layers.
    """

    iterations: int = 1500
    batch: int = 64
    learning_rate: float = 2e-3
    ema: float = 0.99
    validate_every: int = 100
    width: int = 8
    patch: int = 1
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relax or self.alternate:
            raise UserError("lifting has recorded runs and no times to train: leave relax and alternate at 0")

    def optimizer(self, **arguments: Any) -> LiftingSteps:
        return LiftingSteps(config=self, **arguments)


# As GAS, with a smaller learning rate: a residual has a thousand numbers.
GAS_LIFTING = replace(GAS, learning_rate=1e-3)


@dataclass(frozen=True, eq=False, repr=False)
class RecordedPairs(Pairs):
    """Pairs with the runs of a table on them.

    Args:
        states: ``(S, N + 1, *)``, x_0 to x_N; the last is the table's sample.
        outputs: ``(S, N, *)``, the predictions d_0 to d_{N-1}.
    """

    states: Tensor = field(kw_only=True)
    outputs: Tensor = field(kw_only=True)

    def view(self, index: slice | Tensor) -> Self:
        return replace(super().view(index), states=self.states[index], outputs=self.outputs[index])


def record_runs(model: Model, table: Table, pairs: Pairs) -> RecordedPairs:
    """Run a table on pairs, and store every state and prediction on the CPU; several processes share the batches.

    Raises:
        UserError: for a table with branches or a residual at its last row, or pairs that were made under other
            conditions than the model's.
    """
    refuse_branches(table, "lifting")
    if table.nfe - 1 in (table.residuals or ()):
        raise UserError(
            "lifting takes a table without a residual at its last row, got one: lift the table itself"
        )
    check_conditions(model, pairs)
    loaded = pairs.load()
    batches = ((part.noise, part.labels) for part in loaded.batches(_BATCH))
    states, outputs = _record(model, table, batches, pairs.guidance)
    rows = {name: getattr(loaded, name) for name in ("seeds", "noise", "target", "labels", "manifest")}
    return RecordedPairs(**rows, states=states, outputs=outputs)


@torch.no_grad()
def _record(model: Model, table: Table, batches: Iterable[Batch], guidance: float) -> tuple[Tensor, Tensor]:
    """Return the states ``(S, N + 1, *)`` and predictions ``(S, N, *)`` of runs from batches of noise."""

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        noise, labels = batch
        states, outputs = recorded_run(model.bind(labels, guidance), noise.to(model.device), table)
        return torch.stack(states, dim=1).cpu(), torch.stack(outputs, dim=1).cpu()

    states, outputs = zip(*distributed.map_sharded(run, batches), strict=True)
    return torch.cat(states), torch.cat(outputs)


def recorded(model: Model, table: Table, pairs: Pairs) -> RecordedPairs:
    """Return pairs with runs of the table, as they are where they have runs."""
    return pairs if isinstance(pairs, RecordedPairs) else record_runs(model, table, pairs)


def lifted_samples(residual: Residual, runs: RecordedPairs) -> Tensor:
    """Return the samples ``(B, *)`` of the table with a residual at its last row, from recorded runs."""
    device = residual.scales.device
    *states, sums = runs.states.to(device).unbind(1)
    correction = residual(states, runs.outputs.to(device).unbind(1))
    samples: Tensor = (sums.to(correction) + correction).to(sums.dtype)
    return samples


class LiftedSolver(nn.Module):
    """A table with a residual at its last row, whose numbers are trained; ``forward()`` returns the lifted table."""

    def __init__(self, table: Table, residual: Residual) -> None:
        super().__init__()
        self.table, self.residual = table, residual
        # In the state, so that a checkpoint is of one table; residuals at other rows are not.
        for name in ("times", "states", "outputs"):
            self.register_buffer(name, getattr(table, name).clone())

    def forward(self) -> Table:
        return replace(
            self.table, residuals={**(self.table.residuals or {}), self.table.nfe - 1: self.residual}
        )


class LiftingSteps(AdamSteps):
    """:class:`gas.training.AdamSteps` on :class:`RecordedPairs`: no step calls the network."""

    def step_cost(self) -> int:
        return 0

    def _sample(self, table: Table, batch: Pairs, noise: Tensor, start: Tensor, count: int) -> Tensor:
        if not isinstance(batch, RecordedPairs):
            raise UserError(
                "lifting learns from recorded runs: make them by gas.training.lifting.record_runs"
            )
        return lifted_samples(_residual(table), batch)


def _residual(table: Table) -> Residual:
    """Return the residual of the last row."""
    return (table.residuals or {})[table.nfe - 1]


@dataclass(frozen=True, eq=False)
class RecordedCriterion:
    """A criterion of lifted tables: a measure of their samples, from recorded runs."""

    runs: RecordedPairs
    measure: Callable[[Tensor], float | Tensor]

    @torch.no_grad()
    def __call__(self, table: Table) -> float | Tensor:
        residual = _residual(table)
        parts = (self.runs.view(slice(n, n + _BATCH)) for n in range(0, len(self.runs), _BATCH))
        return self.measure(torch.cat([lifted_samples(residual, part).cpu() for part in parts]))


def _pair_losses(loss: Loss, target: Tensor, device: torch.device, samples: Tensor) -> Tensor:
    """Return the losses ``(S,)`` of samples to their pairs' targets, a batch at a time."""
    both = zip(samples.split(_BATCH), target.split(_BATCH), strict=True)
    return torch.cat([loss(x.to(device), y.to(device, x.dtype)) for x, y in both]).double().cpu()


@dataclass(frozen=True)
class Lifted:
    """The outcome of :func:`fit_lifted`.

    Attributes:
        table: the lifted table, or the table itself where nothing was surely better.
        losses: ``(S,)``, its losses on the validation pairs.
        evaluations: network evaluations of single samples.
        criterion: of an adversary, of the table and of the best lifted one.
        stopped: why adversarial training ended early, if it did.
    """

    table: Table
    losses: Tensor
    evaluations: int
    criterion: tuple[float, float] | None = None
    stopped: str = ""


def lift(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    result: Distilled,
    *,
    adversary: Adversary | None = None,
    **options: Any,
) -> Generator[FitRecord | Distilled, None, Distilled]:
    """Lift a distilled solver: train a residual at its last row; an iterator over records, the result last.

    The result is as it was unless the lifted table validates surely better
    (:func:`gas.training.validation.surely_better`) or, with an adversary, better by its criterion.

    Args:
        result: of :func:`gas.distill`, without branches.
        adversary: train the residual against discriminators afterwards. Without weight on any discriminator this is
            training without an adversary.
        model, pairs, validation, options: as for :func:`fit_lifted`.

    Yields:
        FitRecord: during training, twice with an adversary. Distilled: last; ``yield from`` returns it too.
    """
    adversary = adversary if adversary is not None and adversary.has_weight() else None
    table = result.table()
    lifted = yield from fit_lifted(model, pairs, validation, table, adversary=adversary, **options)
    result = replace(result, evaluations=result.evaluations + lifted.evaluations)
    if lifted.table is not table:
        result = replace(
            result,
            solver=lifted.table,
            loss=float(lifted.losses.mean()),
            losses=lifted.losses,
            criterion=lifted.criterion,
            stopped=lifted.stopped,
        )
    yield result
    return result


def fit_lifted(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    table: Table,
    *,
    loss: str | Loss = "l2",
    config: Lifting | None = None,
    adversary: Adversary | None = None,
    state: Path | None = None,
) -> Generator[FitRecord, None, Lifted]:
    """Train a residual at the last row of a table, first on the paired loss, then against an adversary.

    The network runs the table once on all pairs and, with an adversary, on its criterion's noise; training calls it no
    more. The residual starts at zero, at the table itself.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs to train on; their runs are held in memory, 2 N + 1 samples each.
        validation: teacher pairs of other seeds to choose by.
        table: without branches; residuals of other rows stay as they are.
        loss: a name of :data:`gas.losses.LOSSES`, or any callable ``(B, *), (B, *) -> (B,)``.
        config: settings.
        adversary: discriminators, criterion and settings of Adam of the second training. Without weight on any
            discriminator that is its control: as many steps on the paired loss.
        state: folder of the resumable state; an interrupted run resumes from it and ends with the same bits.

    Raises:
        UserError: for a table with branches, a residual that does not fit the samples, or settings out of range.
    """
    config = Lifting() if config is None else config
    distance = loss_by_name(loss)
    runs, held = (recorded(model, table, part) for part in (pairs, validation))
    criterion = RecordedCriterion(held, partial(_pair_losses, distance, held.target, model.device))
    unlifted = LiftedSolver(table, residual_for(runs, config).to(model.device))
    solver, before = copy.deepcopy(unlifted), torch.as_tensor(criterion(unlifted()))
    result = Lifted(table, before, (len(runs) + len(held)) * table.nfe)
    settings: dict[str, Any] = {"validation": held, "loss": distance}
    file = checkpoint_file(state, f"nfe-{table.nfe}-lift")
    record = yield from fit(
        solver, model, runs, config=config, checkpoint=file, criterion=criterion, **settings
    )
    if record.best_losses is not None and surely_better(record.best_losses, before):
        result = replace(result, table=solver().detach(), losses=record.best_losses)
    else:
        solver = copy.deepcopy(unlifted)
    if adversary is None:
        return result
    chosen_by = recorded_criterion(adversary.criterion, model, table)
    against = replace(adversary, config=replace(config, **asdict(adversary.config)), criterion=chosen_by)
    file = checkpoint_file(state, f"nfe-{table.nfe}-lift-gas")
    outcome = yield from fit_adversarial(against, solver, model, runs, checkpoint=file, **settings)
    start = float(torch.as_tensor(chosen_by(unlifted())).mean())
    if outcome.criterion is not None and outcome.criterion[1] < start:
        losses = torch.as_tensor(criterion(solver()))
        result = replace(
            result, table=solver().detach(), losses=losses, criterion=(start, outcome.criterion[1])
        )
    # The table's own measure is one more run of the criterion's noise.
    evaluations = outcome.evaluations + criterion_evaluations(adversary.criterion, table.nfe)
    return replace(result, evaluations=result.evaluations + evaluations, stopped=outcome.stopped)


# A patch p has p^2 times as many channels at 1/p^2 of the places: more numbers, in less time. But full resolution is
# worth more: on mnist at NFE 2, 600 steps took the squared error x 1000 from 22.05 to 17.04 at patch 1 and width 8
# (953 numbers), to 19.28 at patch 2 and width 16 (5,220).
_PATCHES, _WIDTHS = (1, 2, 4, 8, 16), (64, 48, 32, 24, 16, 12, 8, 6, 4)


class MeasuredCost(NamedTuple):
    """Numbers of a residual, and its time for a sample as a share of a network call's."""

    numbers: int
    share: float


def sized(config: Lifting, model: Model, runs: RecordedPairs, share: float = SHARE) -> Lifting:
    """Return the settings with the width and the patch of a residual whose time is a share of a network call.

    It is the smallest patch at which any width is fast enough, and then the largest width; both are measured.

    Args:
        config: settings; others than width and patch are as they are.
        model: whose network calls count.
        runs: a table's, of the sample shape and NFE.
        share: most time of the residual, in network calls of a sample.

    Raises:
        UserError: when no residual is so fast.
    """
    number("share", share, "(0, inf)")
    call = call_seconds(model, runs)
    for patch, width in itertools.product(_PATCHES, _WIDTHS):
        candidate = replace(config, patch=patch, width=width)
        try:
            cost = measured_cost(candidate, model, runs, call)
        except UserError:  # too many numbers, or a patch that does not divide the sizes
            continue
        if cost.share <= share:
            return candidate
    raise UserError(
        f"no residual of samples {runs.sample_shape} takes below {share:.1%} of a network call: raise share"
    )


def call_seconds(model: Model, runs: RecordedPairs) -> float:
    """Return the time of a network call for a sample: the least of a few, which other work lengthens least."""
    sample = runs.view(slice(0, _BATCH))
    return min(call_times(model, sample, _REPEATS)) / len(sample)


@torch.no_grad()
def measured_cost(
    config: Lifting, model: Model, runs: RecordedPairs, call: float | None = None
) -> MeasuredCost:
    """Measure a residual of these settings beside a network call, which takes ``call`` seconds for a sample."""
    call = call_seconds(model, runs) if call is None else call
    sample = runs.view(slice(0, _BATCH))
    residual = residual_for(sample, config).to(model.device)
    times = [seconds_of(lambda: lifted_samples(residual, sample), model) for _ in range(_REPEATS)]
    return MeasuredCost(residual.cost(runs.sample_shape).numbers, min(times) / len(sample) / call)


def residual_for(runs: RecordedPairs, config: Lifting) -> Residual:
    """Return the residual of the settings for the last row of the recorded table, scaled by the runs."""
    # The correction is of the size of the table's error.
    parts = [*runs.states[:, :-1].unbind(1), *runs.outputs.unbind(1), runs.target - runs.states[:, -1]]
    scales = torch.stack([part.square().mean().sqrt() for part in parts]).clamp(min=1e-6)
    return new_residual(runs.sample_shape, runs.outputs.shape[1], config, scales)


def new_residual(shape: Sequence[int], nfe: int, config: Lifting, scales: Tensor | None = None) -> Residual:
    """Return the residual of the settings for the last of ``nfe`` rows and samples of a shape.

    Raises:
        UserError: when it has too many numbers, or its patch does not divide the sizes.
    """
    # Packed latents (T, C) have more tokens than channels, signals (C, L) are longer than that.
    token = len(shape) == 1 or (len(shape) == 2 and shape[0] > shape[1])
    residual = Residual(
        "token" if token else "convolution",
        channels=shape[-1 if token else 0],
        states=nfe,
        outputs=nfe,
        width=config.width,
        layers=config.layers,
        patch=1 if token else config.patch,
        scales=scales,
        dimensions=2 if token else len(shape) - 1,
        seed=config.seed,
    )
    residual.cost(shape)
    return residual


def recorded_criterion(criterion: Criterion, model: Model, table: Table) -> Criterion:
    """Return a criterion on fixed noise with recorded runs; another criterion as it is."""
    if not isinstance(criterion, FixedNoiseCriterion):
        return criterion
    batches = seed_batches(model, criterion.seeds, labelled=criterion.labelled)
    states, outputs = _record(model, table, batches, criterion.guidance)
    seeds = torch.tensor(criterion.seeds)
    runs = RecordedPairs(seeds, states[:, 0], states[:, -1], states=states, outputs=outputs)
    return RecordedCriterion(runs, criterion.measure)
