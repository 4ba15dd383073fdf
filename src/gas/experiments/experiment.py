"""What all solvers of a comparison share: the model, the pairs, and what learning one may cost."""

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
from gas.experiments.store import slug
from gas.learned.registry import SOLVERS as KINDS
from gas.losses import loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.pairs.fingerprint import model_fingerprint
from gas.training.adam import Adam
from gas.training.adversarial.setup import GAS, Adversary, adversary_for
from gas.training.distillation import FINISH
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import named_start
from gas.training.ranking import RankingCache

__all__ = ["Budget", "Setting", "ends_of"]


@dataclass(frozen=True)
class Budget:
    """What making one solver may cost, the same for all.

    Args:
        config: of learning: optimiser, steps, pairs a step.
        loss: a name of :data:`gas.losses.LOSSES`: what is learned, and what classical solvers are ranked by.
        gas: of going on against a critic, which only the adversarial solver does.
        rank: validation pairs that classical solvers and grids are chosen on.
        guides: training pairs that GITS follows.

    Raises:
        ValueError: for an unknown loss, or no pairs to choose on or to follow.
    """

    config: Adam | GaussNewton = FINISH
    loss: str = "l2"
    gas: Adam = GAS
    rank: int = 64
    guides: int = 256

    def __post_init__(self) -> None:
        loss_by_name(self.loss)
        for name in ("rank", "guides"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1 pair, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Setting:
    """One model with its pairs and a budget.

    Args:
        model: whose denoiser all solvers ask.
        train: teacher pairs to learn from.
        validation: teacher pairs to choose by, of other seeds.
        budget: what a solver may cost.
        folder: where rankings and half-done trainings are kept; without it they are made again.
    """

    model: Model
    train: Pairs
    validation: Pairs
    budget: Budget = field(default_factory=Budget)
    folder: Path | None = None

    @cached_property
    def rankings(self) -> RankingCache:
        """Classical solvers, measured once."""
        path = None if self.folder is None else self.folder / "rankings.json"
        some = self.validation.subset(slice(0, self.budget.rank))
        asked = {**self.source(), "validation": ends_of(some), "loss": self.budget.loss}
        return RankingCache(self.model, some, loss_by_name(self.budget.loss), asked, path)

    @cached_property
    def adversary(self) -> Adversary:
        """Critics and what is best, for the adversarial solver."""
        return adversary_for(self.model, self.train, config=self.budget.gas, seed=self.budget.gas.seed)

    def source(self) -> dict[str, Any]:
        """Return model, schedule and conditions in plain JSON."""
        return model_fingerprint(self.model)

    def start(self, name: str, nfe: int) -> Classical:
        """Return where every learned solver starts: ``"best"`` of all that every kind can start at, or by name."""
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

    def checkpoint(self, spec: str, nfe: int, needs: Mapping[str, Any]) -> Path | None:
        """Return the file of a training's resumable state: other settings have another."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps(needs, sort_keys=True).encode()).hexdigest()
        return self.folder / "state" / f"{slug(spec)}-{nfe}-{digest[:16]}.pt"

    def forget(self, spec: str, nfe: int) -> None:
        """Remove the states of a cell that is done, and of its earlier settings."""
        if self.folder is not None:
            for path in self.folder.glob(f"state/{slug(spec)}-{nfe}-*.pt"):
                path.unlink()

    def told(self) -> dict[str, Any]:
        """Return what decides a learned solver, beside its kind, NFE and start, in plain JSON."""
        return {
            **self.source(),
            "train": ends_of(self.train),
            "validation": ends_of(self.validation),
            "loss": self.budget.loss,
            "optimiser": {"name": type(self.budget.config).__name__, **self.budget.config.config()},
        }


def ends_of(pairs: Pairs) -> dict[str, Any]:
    """Return which pairs these are, in plain JSON."""
    return {
        "recipe": pairs.manifest.get("recipe_sha256", ""),
        "count": len(pairs),
        "seeds": [int(pairs.seeds[0]), int(pairs.seeds[-1])],
        "guidance": pairs.guidance,
    }
