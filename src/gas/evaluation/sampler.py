"""The batched sampling loop: samples of a solver from pairs or seeds, and pairs of a teacher, shared between ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gas import distributed
from gas.arguments import integer
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs, check_conditions, join_pairs
from gas.pairs.teacher import Solver, teach
from gas.sampling import sample
from gas.table import table_on

_BATCH = 64

# Noise ``(B, *)`` and its labels ``(B,)``.
Batch = tuple[Tensor, Tensor | None]


def sample_batches(
    model: Model, solver: Solver, batches: Iterable[Batch], guidance: float = 1.0
) -> Iterator[Tensor]:
    """Yield a solver's samples ``(B, *)`` on the CPU, a batch of noise and labels at a time; ranks share them."""
    table = table_on(solver, model.schedule).folded()

    @torch.no_grad()
    def samples_of(batch: Batch) -> Tensor:
        noise, labels = batch
        return sample(model.bind(labels, guidance), noise.to(model.device), table).cpu()

    return distributed.map_sharded(samples_of, batches)


def sample_pairs(model: Model, pairs: Pairs, solver: Solver, *, batch: int = _BATCH) -> Tensor:
    """Return a solver's samples ``(S, *)`` from the noise and labels of the pairs, on the CPU."""
    check_conditions(model, pairs)
    batches = ((part.noise, part.labels) for part in pairs.batches(batch))
    return torch.cat(list(sample_batches(model, solver, batches, pairs.guidance)))


def sample_seeds(
    model: Model,
    solver: Solver,
    seeds: Sequence[int],
    *,
    guidance: float = 1.0,
    labelled: bool = True,
    batch: int = _BATCH,
) -> Tensor:
    """Return a solver's samples ``(S, *)`` from the noise of seeds, on the CPU; no teacher is needed."""
    batches = seed_batches(model, seeds, labelled=labelled, batch=batch)
    return torch.cat(list(sample_batches(model, solver, batches, guidance)))


def seed_batches(
    model: Model,
    seeds: Sequence[int],
    *,
    labelled: bool = True,
    label: int | None = None,
    batch: int = _BATCH,
) -> Iterator[Batch]:
    """Return batches of the noise of seeds with the labels ``seed mod classes``, or with one ``label`` for all."""
    if label is not None:
        if not model.classes:
            raise UserError(f"label {label} is for models with classes, {model.name} has none: leave it out")
        integer("label", label, 0, model.classes - 1)

    def batch_from(start: int) -> Batch:
        part = seeds[start : start + batch]
        labels = labels_of_seeds(model.classes if labelled else 0, part)
        if labels is not None and label is not None:
            labels = torch.full_like(labels, label)
        return model.noise(part), labels

    return map(batch_from, range(0, len(seeds), batch))


def teacher_pairs(
    model: Model,
    teacher: Classical,
    seeds: range,
    *,
    guidance: float = 1.0,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Pairs:
    """Return the teacher's pairs of seeds, in memory; ranks share the batches, which ``progress`` wraps."""
    table = teacher.table(model.schedule)

    def pairs_from(start: int) -> Pairs:
        return teach(model, table, seeds[start : start + _BATCH], guidance=guidance)

    return join_pairs(list(distributed.map_sharded(pairs_from, progress(range(0, len(seeds), _BATCH)))))
