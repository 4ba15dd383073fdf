"""Samples of a solver from the noise of pairs or seeds, in batches, shared by several processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gas import distributed
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs, check_conditions
from gas.pairs.teacher import Solver
from gas.sampling import sample
from gas.table import table_on

__all__ = ["fresh", "run"]


def run(model: Model, pairs: Pairs, table: Solver, *, batch: int = 64) -> Tensor:
    """Return a solver's samples ``(S, *)`` from the noise and labels of the pairs, on the CPU."""
    check_conditions(model, pairs)
    parts = ((part.noise, part.labels) for part in pairs.batches(batch))
    return _samples(model, table, parts, pairs.guidance)


def fresh(
    model: Model,
    table: Solver,
    seeds: Sequence[int],
    *,
    guidance: float = 1.0,
    labelled: bool = True,
    batch: int = 64,
) -> Tensor:
    """Return a solver's samples ``(S, *)`` from the noise of seeds that no teacher need have seen, on the CPU."""
    classes = model.classes if labelled else 0
    groups = (seeds[start : start + batch] for start in range(0, len(seeds), batch))
    return _samples(
        model, table, ((model.noise(part), labels_of_seeds(classes, part)) for part in groups), guidance
    )


def _samples(
    model: Model, table: Solver, parts: Iterable[tuple[Tensor, Tensor | None]], guidance: float
) -> Tensor:
    """Sample batches of noise and labels, shared by several processes; the table's coefficients are read once."""
    folded = table_on(table, model.schedule).folded()

    @torch.no_grad()
    def made(part: tuple[Tensor, Tensor | None]) -> Tensor:
        noise, labels = part
        return sample(model.bind(labels, guidance), noise.to(model.device), folded).cpu()

    return torch.cat(list(distributed.map_sharded(made, parts)))
