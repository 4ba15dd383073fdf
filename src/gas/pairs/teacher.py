"""The teacher: sample from the noise of every seed, write the pairs in shards that survive a kill."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gas import distributed
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.io import write_bytes
from gas.models.protocol import Model, conditions_of, decode_all
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs
from gas.pairs.fingerprint import PairsSpec, pairs_fingerprint
from gas.pairs.shards import (
    AGAIN,
    Json,
    checked,
    is_whole,
    open_folder,
    shard_index,
    write_manifest,
)
from gas.sampling import sample
from gas.table import Table, TableMaker, table_on

__all__ = ["PairsProgress", "PairsSpec", "teach", "write_pairs"]

Solver = Table | nn.Module | TableMaker


@dataclass(frozen=True)
class PairsProgress:
    """How far the writer is, in samples safe on disk; ``resumed`` of them were there when it started."""

    done: int
    total: int
    resumed: int


def write_pairs(
    model: Model, table: Solver, folder: Path | str, spec: PairsSpec, *, batch: int = 64
) -> Iterator[PairsProgress]:
    """Run the teacher from the noise of every seed: ``target_s = sample(model, noise(s), table)``.

    The folder holds ``manifest.json`` (what it is, and a checksum a shard) and one safetensors file a
    shard: ``target``, ``seeds`` and perhaps ``labels`` and ``decoded``; noise follows from the seed and is not stored.
    Killed at any point and called again, this keeps the shards whose checksum holds, makes the rest in
    the first run's batches, and ends with the same bytes (on like machines: another may round differently).

    Args:
        model: the model; its noise must be that of :func:`gas.models.noise_of_seeds`.
        table: the teacher; a :class:`gas.Classical` describes itself where ``spec.teacher`` is left out.
        folder: new, empty or of an earlier run; one writer at a time. Of several processes
            (:func:`gas.distributed.process_group`) all make batches and the first writes, to the same bytes.
        spec: seeds, guidance, shard size.
        batch: samples a call of the model; a resumed run keeps that of the first.

    Yields:
        :class:`PairsProgress`, once at the start and once a shard written.

    Raises:
        ValueError: when the folder is not of these settings or is damaged, or a sample is not finite.
        OSError: when the folder cannot be written or the disk is full; what was written stays valid.
    """
    folder, total = Path(folder), len(spec.seeds)
    spec = replace(spec, teacher=_described(table, spec.teacher))
    table = table_on(table, model.schedule)
    recipe = pairs_fingerprint(model, table, spec, batch)
    manifest, places = distributed.broadcast(lambda: _opened(folder, recipe))
    recipe, todo = manifest["recipe"], [manifest["shards"][place] for place in places]
    done = resumed = total - sum(entry["count"] for entry in todo)
    yield PairsProgress(done, total, resumed)
    # Batch after batch through all shards, so that processes that share them are idle at most once, at the end.
    made = distributed.map_sharded(lambda seeds: _batch(model, table, recipe, seeds), _batches(recipe, todo))
    problem = ""
    for entry in todo:
        tensors = _shard(recipe, entry, list(islice(made, -(-entry["count"] // recipe["batch"]))))
        if not problem and (problem := _range_problem(tensors["target"])):
            warnings.warn(problem, UserWarning, stacklevel=2)
        if distributed.is_first():
            try:
                _write(folder, manifest, entry, tensors)
            except OSError as error:
                advice = f"{error.strerror}, with {done} of {total} pairs safe: make room, then {AGAIN}"
                raise OSError(error.errno, advice, str(folder / entry["file"])) from error
        done += entry["count"]
        if done == total:
            distributed.all_gather(None)  # nobody reads before the last shard is written
        yield PairsProgress(done, total, resumed)


def teach(
    model: Model,
    table: Solver,
    seeds: Sequence[int],
    *,
    guidance: float = 1.0,
    labelled: bool = True,
    teacher: Mapping[str, Any] | None = None,
) -> Pairs:
    """Run the teacher on a few seeds, in one batch and in memory: ``target_s = sample(model, noise(s), table)``.

    Args:
        model: the model.
        table: the teacher; a :class:`gas.Classical` describes itself where ``teacher`` is left out.
        seeds: one sample each.
        guidance: scale of classifier-free guidance; 1 is the plain conditional model.
        labelled: give a class-conditional model the label ``seed mod classes``.
        teacher: description of the table in plain JSON.

    Warns:
        UserWarning: when samples are of another scale than noise, which has standard deviation 1, or some are far
            larger than most.
    """
    pairs = _taught(
        model, table_on(table, model.schedule), seeds, guidance, labelled, _described(table, teacher)
    )
    if problem := _range_problem(pairs.target):
        warnings.warn(problem, UserWarning, stacklevel=2)
    return pairs


def _taught(
    model: Model,
    table: Table,
    seeds: Sequence[int],
    guidance: float,
    labelled: bool,
    teacher: Mapping[str, Any],
) -> Pairs:
    labels = labels_of_seeds(model.classes if labelled else 0, seeds)
    noise = model.noise(list(seeds))
    bound = model.bind(None if labels is None else labels.to(model.device), guidance)
    with torch.no_grad():
        target = sample(bound, noise.to(model.device), table.folded())
    recipe = {"guidance": guidance, "teacher": dict(teacher), **conditions_of(model)}
    target = target.to("cpu", torch.float32)
    broken = ~target.reshape(len(target), -1).isfinite().all(1)
    if bool(broken.any()):
        seed = list(seeds)[int(broken.nonzero()[0])]
        raise UserError(
            f"the teacher's answer is not finite for seed {seed}; check model, guidance and table"
        )
    return Pairs(torch.tensor(list(seeds)), noise.cpu(), target, labels, {"recipe": recipe})


# A sample this many times larger than most, and than noise, has left the range of the data.
_OUTLIER, _LARGE = 5, 3

# Most samples this much larger than noise, to which the data's scale should be like.
_SCALE = 10


def _range_problem(target: Tensor) -> str:
    """What is implausible about the size of samples."""
    size = target.reshape(len(target), -1).double().square().mean(1).sqrt()
    if not len(size) or not bool(size.isfinite().all()):  # infinite ones are refused elsewhere
        return ""
    usual, largest = float(size.median()), float(size.max())
    if usual <= _SCALE and largest <= max(_OUTLIER * usual, _LARGE):
        return ""
    return (
        f"the teacher's samples have root mean squares of {usual:.3g} (median) to {largest:.3g}, noise has 1: if "
        "that is not the data's, gas.check_model(model) looks for the reason; where alpha is near 0, "
        "gas.denoise.StaticThreshold(denoise, limit) bounds estimates"
    )


def _described(solver: Solver, teacher: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The description of a teacher in plain JSON: its own where none is given."""
    if teacher is not None:
        return teacher
    return solver.config() if isinstance(solver, Classical) else {}


def _opened(folder: Path, recipe: Json) -> tuple[dict[str, Any], list[int]]:
    """The folder's manifest, and which of its shards are still to be made."""
    manifest = open_folder(folder, recipe)
    return manifest, [i for i, entry in enumerate(manifest["shards"]) if not is_whole(folder, entry)]


def _batches(recipe: Json, entries: Sequence[Json]) -> Iterator[list[int]]:
    """The seeds of every call of the model: batches aligned to the start of their shard."""
    for entry in entries:
        seeds = shard_index(recipe, entry)["seeds"]
        yield from (part.tolist() for part in seeds.split(recipe["batch"]))


def _batch(model: Model, table: Table, recipe: Json, seeds: Sequence[int]) -> dict[str, Tensor]:
    """What a shard stores of a batch."""
    target = _taught(model, table, seeds, recipe["guidance"], recipe["classes"] > 0, {}).target
    return {"target": target} | ({"decoded": decode_all(model, [target])} if "decoded" in recipe else {})


def _shard(recipe: Json, entry: Json, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of one shard, checked."""
    # A network may answer in channels-last; a file holds rows.
    tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    whole = {"target": tensors.pop("target"), **shard_index(recipe, entry), **tensors}
    return checked("the teacher's answer", whole, recipe, entry)


def _write(
    folder: Path, manifest: Mapping[str, Any], entry: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a shard, then the manifest that has its checksum."""
    data = save(tensors, {"recipe": manifest["recipe_sha256"]})
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    write_bytes(folder / entry["file"], data)
    write_manifest(folder, manifest)
