"""The experiment: the model, the pairs and the training budget that all methods share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gas.classical.registry import SOLVERS, Classical
from gas.errors import UserError
from gas.evaluation.evaluator import selection_fingerprint
from gas.experiments.store import file_stem
from gas.learned.registry import SOLVERS as KINDS
from gas.losses import loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.pairs.fingerprint import model_fingerprint
from gas.training.adam import Adam
from gas.training.adversarial.setup import BALANCE, GAS, Adversary, adversary_for
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import named_start
from gas.training.plan import FINISH
from gas.training.ranking import RankingCache


@dataclass(frozen=True)
class Budget:
    """The training budget of one solver, the same for all methods.

    Args:
        config: optimizer, steps and pairs per step.
        loss: a name of :data:`gas.losses.LOSSES`, for training and for ranking classical solvers.
        gas: the training against a discriminator that GAS adds.
        balance: weight of the discriminator in units of the paired loss.
        rank: validation pairs, at least 1, on which classical solvers and grids are ranked.
        guides: training pairs, at least 1, whose trajectories GITS follows.
    """

    config: Adam | GaussNewton = FINISH
    loss: str = "l2"
    gas: Adam = GAS
    balance: float = BALANCE
    rank: int = 64
    guides: int = 256

    def __post_init__(self) -> None:
        loss_by_name(self.loss)
        for name in ("rank", "guides"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1 pair, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Experiment:
    """One model with its pairs and a budget.

    Args:
        model: the denoiser of all methods.
        train: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        budget: of one solver.
        folder: for rankings and training checkpoints; without it they are not saved.
    """

    model: Model
    train: Pairs
    validation: Pairs
    budget: Budget = field(default_factory=Budget)
    folder: Path | None = None

    @cached_property
    def ranking_pairs(self) -> Pairs:
        """Validation pairs on which classical solvers are ranked."""
        return self.validation.subset(slice(0, self.budget.rank))

    @cached_property
    def guides(self) -> Pairs:
        """Training pairs whose trajectories GITS follows."""
        return self.train.subset(slice(0, self.budget.guides))

    @cached_property
    def rankings(self) -> RankingCache:
        """Losses of classical solvers, each measured once."""
        path = None if self.folder is None else self.folder / "rankings.json"
        pairs, loss = self.ranking_pairs, self.budget.loss
        fingerprint = {
            **model_fingerprint(self.model),
            "validation": selection_fingerprint(pairs),
            "loss": loss,
        }
        return RankingCache(self.model, pairs, loss_by_name(loss), fingerprint, path)

    @cached_property
    def adversary(self) -> Adversary:
        """Discriminators and the selection criterion of GAS."""
        gas = self.budget.gas
        return adversary_for(self.model, self.train, balance=self.budget.balance, config=gas, seed=gas.seed)

    def start(self, name: str, nfe: int) -> Classical:
        """Return the initial solver: ``"best"`` ranked of those that every learned kind can start at, or by name."""
        if name != "best":
            return named_start(name, nfe, self.model.t_end)
        for classical, _ in self.rankings.rank(nfe, list(SOLVERS)):
            if classical.solver != "heun" and self._suits_all(classical):
                return classical
        raise UserError(f"no classical solver of NFE {nfe} is a start that every kind can learn from")

    def _suits_all(self, classical: Classical) -> bool:
        try:
            for kind in KINDS.values():
                kind.build(self.model.schedule, classical)
        except ValueError:  # times too close together to be learned from
            return False
        return True

    def checkpoint(self, spec: str, nfe: int, fingerprint: Mapping[str, Any]) -> Path | None:
        """Return the checkpoint file of a training; each fingerprint has its own."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        return self.folder / "state" / f"{file_stem(spec, nfe)}-{digest[:16]}.pt"

    def remove_checkpoints(self, spec: str, nfe: int) -> None:
        """Remove the checkpoints of a finished method, those of earlier settings among them."""
        if self.folder is not None:
            for path in self.folder.glob(f"state/{file_stem(spec, nfe)}-*.pt"):
                path.unlink()

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides a learned solver besides its kind, NFE and start, in plain JSON."""
        return {
            **model_fingerprint(self.model),
            "train": selection_fingerprint(self.train),
            "validation": selection_fingerprint(self.validation),
            "loss": self.budget.loss,
            "optimiser": {"name": type(self.budget.config).__name__, **self.budget.config.config()},
        }
