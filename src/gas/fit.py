"""Learn a solver's numbers from teacher pairs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gas.files import load_state, save_state
from gas.losses import Loss, loss_by_name
from gas.model import Model
from gas.pairs import Pairs
from gas.sample import sample
from gas.start import evaluate
from gas.table import Table

__all__ = ["PAPER", "Diverged", "FitConfig", "FitRecord", "LearnedSolver", "fit"]


class LearnedSolver(Protocol):
    """A module whose ``forward()`` returns a table."""

    def __call__(self) -> Table: ...


class Diverged(ArithmeticError):
    """Training produced a value that is not finite; the solver holds the best numbers seen before."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of :func:`fit`; the defaults are ours, :data:`PAPER` has the published ones.

    Args:
        iterations: optimiser steps.
        batch: pairs a step.
        learning_rate: of Adam, betas (0.9, 0.999).
        decay: ``"cosine"`` to zero, or ``"constant"``.
        clip: largest norm of the gradient.
        ema: decay of the averaged solver, which is what is validated and kept.
        validate_every: iterations between validations.
        seed: of the batches' order.

    Raises:
        ValueError: names the setting that is out of range.
    """

    iterations: int = 1000
    batch: int = 24
    learning_rate: float = 1e-2
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    ema: float = 0.98
    validate_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "validate_every", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f"decay must be 'cosine' or 'constant', got {self.decay!r}")


PAPER = FitConfig(iterations=10_000, learning_rate=1e-3, decay="constant", ema=0.999, validate_every=500)


@dataclass(frozen=True)
class FitRecord:
    """One report: mean training loss since the last report, validation losses, and whether it is the best yet."""

    iteration: int
    iterations: int
    train_loss: float
    validation_loss: float
    best_loss: float
    best_iteration: int
    evaluations: int
    """Network evaluations of single samples in training so far (validation not counted)."""


def fit(
    solver: nn.Module,
    model: Model,
    pairs: Pairs,
    *,
    validation: Pairs | None = None,
    loss: str | Loss = "l1",
    config: FitConfig | None = None,
    checkpoint: str | Path | None = None,
) -> Iterator[FitRecord]:
    """Minimise ``E loss(student(x_T), teacher(x_T))`` over a solver's parameters, by Adam with an EMA.

    The network stays frozen; gradients flow through the whole run of the solver. The averaged solver is
    validated at the start, every ``validate_every`` iterations and at the end. Whenever the generator
    ends, is closed or fails, ``solver`` holds the best numbers seen on the validation pairs, which are
    never worse than those it came with.

    Args:
        solver: a module whose ``forward()`` returns a :class:`gas.Table`, changed in place.
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds; by default the last quarter of ``pairs``, at
            most 256, which are then not trained on.
        loss: a name of :data:`gas.losses.LOSSES`, or any callable ``(B, *), (B, *) -> (B,)``.
        config: settings.
        checkpoint: file of the resumable state, written at every report; if it exists, training goes on
            from it and ends with the same bits as an uninterrupted run.

    Yields:
        FitRecord: at iteration 0, every ``validate_every`` iterations, and the last.

    Raises:
        ValueError: when the pairs are empty, overlap the validation pairs or the checkpoint is of another run.
        Diverged: when a loss or gradient is not finite.

    References:
        arXiv 2510.17699, equation 15 and section 5.
    """
    config = config or FitConfig()
    if validation is None:
        pairs, validation = pairs.split(min(256, len(pairs) // 4))
    if not len(pairs) or not len(validation):
        raise ValueError(
            f"fit needs pairs to train and to validate on, got {len(pairs)} and {len(validation)}"
        )
    if bool(torch.isin(pairs.seeds, validation.seeds).any()):
        raise ValueError(
            "training and validation pairs share seeds: validate on seeds that were not trained on"
        )
    run = _Run(solver, model, pairs, loss_by_name(loss) if isinstance(loss, str) else loss, config)
    run.identity = _identity(solver, model, pairs, validation, loss, config)
    path = Path(checkpoint) if checkpoint is not None else None
    if path is not None and path.exists():
        run.restore(load_state(path), path)
    try:
        while True:
            if run.due():
                record = run.validate(validation)
                if path is not None:
                    save_state(path, run.state())
                yield record
            if run.iteration >= config.iterations:
                return
            run.step()
    finally:
        solver.load_state_dict(run.best)


class _Run:
    """The state of one training: solver, average, optimiser, and the best numbers so far."""

    def __init__(self, solver: nn.Module, model: Model, pairs: Pairs, loss: Loss, config: FitConfig) -> None:
        self.solver, self.model, self.pairs, self.loss, self.config = solver, model, pairs, loss, config
        self.average = AveragedModel(solver, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.average.update_parameters(solver)  # the first update copies, so that the start is averaged in
        self.optimizer = torch.optim.Adam(solver.parameters(), lr=config.learning_rate)
        self.iteration, self.evaluations, self.validated = 0, 0, -1
        self.best, self.best_loss, self.best_iteration = _copy(solver), math.inf, 0
        self.losses: list[float] = []
        self.identity = ""

    def due(self) -> bool:
        """Whether a report is due and has not been made."""
        boundary = (
            self.iteration % self.config.validate_every == 0 or self.iteration == self.config.iterations
        )
        return boundary and self.validated != self.iteration

    def step(self) -> None:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self._decay()
        chosen = self._batch()
        noise = chosen.noise.to(self.model.device)
        try:
            table: Table = self.solver()
        except ValueError as error:
            raise Diverged(f"iteration {self.iteration}: {error}; lower learning_rate") from error
        made = sample(self.model.bind(chosen.labels, self.pairs.guidance), noise, table.folded())
        loss = self.loss(made, chosen.target.to(made)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.solver.parameters(), config.clip)
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss.detach())):
            raise Diverged(f"iteration {self.iteration}: loss {float(loss.detach()):g}; lower learning_rate")
        self.optimizer.step()
        self.average.update_parameters(self.solver)
        self.losses.append(float(loss.detach()))
        self.iteration += 1
        self.evaluations += len(chosen) * table.nfe

    def validate(self, validation: Pairs) -> FitRecord:
        """Measure the averaged solver, remember it if it is the best, and report."""
        with torch.no_grad():
            table: Table = self.average()
        value = float(evaluate(self.model, validation, table, self.loss).mean())
        if value < self.best_loss:
            self.best = _copy(self.average.module)
            self.best_loss, self.best_iteration = value, self.iteration
        train = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses, self.validated = [], self.iteration
        return FitRecord(
            self.iteration,
            self.config.iterations,
            train,
            value,
            self.best_loss,
            self.best_iteration,
            self.evaluations,
        )

    def state(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "solver": self.solver.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_loss": self.best_loss,
            "best_iteration": self.best_iteration,
            "iteration": self.iteration,
            "evaluations": self.evaluations,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        if state.get("identity") != self.identity:
            raise ValueError(
                f"checkpoint {path} is of a run with other settings, solver, model or pairs: "
                "delete it or name another"
            )
        self.solver.load_state_dict(state["solver"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_loss, self.best_iteration = (
            state["best"],
            state["best_loss"],
            state["best_iteration"],
        )
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]
        # A finished run reports once more, so that whoever resumes a family learns how this member ended.
        self.validated = -1 if self.iteration == self.config.iterations else self.iteration

    def _batch(self) -> Pairs:
        """The batch of an iteration depends on the seed and the iteration alone; each epoch visits every pair once."""
        size = min(self.config.batch, len(self.pairs))
        per_epoch = len(self.pairs) // size
        epoch, place = divmod(self.iteration, per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.pairs), generator=generator)
        return self.pairs.subset(order[place * size : (place + 1) * size])

    def _decay(self) -> float:
        if self.config.decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))


def _identity(
    solver: nn.Module, model: Model, pairs: Pairs, validation: Pairs, loss: str | Loss, config: FitConfig
) -> str:
    """A digest of everything that decides the bits of a run: a checkpoint of another must not be continued."""
    told = {
        "config": asdict(config),
        "loss": loss if isinstance(loss, str) else repr(loss),
        "solver": [type(solver).__name__, str(getattr(solver, "theory", ""))],
        "schedule": model.schedule.config(),
        "model": dict(model.identity()),
        "guidance": pairs.guidance,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, value in solver.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    for part in (pairs, validation):
        for tensor in (part.seeds, part.target):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _copy(solver: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in solver.state_dict().items()}
