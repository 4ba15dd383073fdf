"""The teacher: sample from the noise of every seed, and write the pairs in shards that survive a kill."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas import distributed
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.models.protocol import Model, decode_all
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs
from gas.pairs.fingerprint import PairsSpec, model_fingerprint, pairs_fingerprint
from gas.pairs.leases import Lease, Leases
from gas.pairs.shards import (
    AGAIN,
    MANIFEST,
    Json,
    check_finite,
    check_shard,
    finish_folder,
    open_folder,
    shard_index,
    write_shard,
)
from gas.sampling import sample
from gas.table import Table, TableMaker, table_on

Solver = Table | nn.Module | TableMaker


@dataclass(frozen=True)
class PairsProgress:
    """Progress of the writer in samples safe on disk, ``resumed`` of them from an earlier run."""

    done: int
    total: int
    resumed: int


def write_pairs(
    model: Model,
    table: Solver,
    folder: Path | str,
    spec: PairsSpec,
    *,
    batch: int = 64,
    shared: bool = False,
) -> Iterator[PairsProgress]:
    """Run the teacher from the noise of every seed: ``target_s = sample(model, noise(s), table)``.

    The folder holds ``manifest.json`` (settings, and a checksum a shard) and one safetensors file a shard: ``target``,
    ``seeds`` and perhaps ``labels`` and ``decoded``; noise follows from the seed and is not stored. Killed at any point
    and called again, this keeps the whole shards, makes the rest in the first run's batches, and ends with the same
    bytes (on like machines: another may round differently).

    Args:
        model: the model; its noise must be that of :func:`gas.models.noise_of_seeds`.
        table: the teacher; a :class:`gas.Classical` describes itself unless ``spec.teacher`` is given.
        folder: new, empty or of an earlier run. In a :func:`gas.distributed.process_group` all ranks make batches and
            the first writes, to the same bytes.
        spec: seeds, guidance, shard size.
        batch: samples a call of the model; a resumed run keeps that of the first.
        shared: let any number of independent processes, on any hosts, write to the folder at the same time; otherwise
            there must be one. Each claims shard after shard by a lease file, and ends when all are there. A process
            killed at work costs its shard, which another claims after 5 minutes.

    Yields:
        :class:`PairsProgress`, at the start and after every shard, those of other processes included.
    """
    spec = replace(spec, teacher=_description(table, spec.teacher))
    table = table_on(table, model.schedule)
    recipe = pairs_fingerprint(model, table, spec, batch)
    if shared and distributed.world_size() > 1:
        raise UserError("shared work is that of independent processes: start them without torchrun")
    yield from (_share if shared else _write)(model, table, Path(folder), recipe)


def _write(model: Model, table: Table, folder: Path, recipe: Json) -> Iterator[PairsProgress]:
    """Make all missing shards, alone or in a process group."""
    manifest, missing = distributed.broadcast(lambda: open_folder(folder, recipe))
    recipe, todo = manifest["recipe"], [manifest["shards"][number] for number in missing]
    total = sum(entry["count"] for entry in manifest["shards"])
    done = resumed = total - sum(entry["count"] for entry in todo)
    yield PairsProgress(done, total, resumed)
    # Batch after batch through all shards, so that ranks are idle at most once, at the end.
    seeds = (part for entry in todo for part in shard_index(recipe, entry)["seeds"].split(recipe["batch"]))
    batches = distributed.map_sharded(lambda part: _batch(model, table, recipe, part.tolist()), seeds)
    has_warned = False
    for entry in todo:
        tensors = _shard(recipe, entry, list(islice(batches, -(-entry["count"] // recipe["batch"]))))
        has_warned = has_warned or _warn_of_scale(tensors["target"])
        if distributed.is_first():
            with _full_disk(done, total):
                write_shard(folder, manifest, entry, tensors)
        done += entry["count"]
        if done == total:
            distributed.all_gather(None)  # nobody reads before the last shard is written
        yield PairsProgress(done, total, resumed)


def _share(model: Model, table: Table, folder: Path, recipe: Json) -> Iterator[PairsProgress]:
    """Claim and make shard after shard until all are there, whoever makes them, and listed in the manifest."""
    manifest, missing = open_folder(folder, recipe, shared=True)
    recipe, entries = manifest["recipe"], {entry["file"]: entry for entry in manifest["shards"]}
    total, leases = sum(entry["count"] for entry in entries.values()), Leases(folder)
    finished, resumed, has_warned = not missing, -1, False
    while True:
        files = set(os.listdir(folder))
        absent = [name for name in entries if name not in files]
        done = total - sum(entries[name]["count"] for name in absent)
        resumed = done if resumed < 0 else resumed
        if absent or finished:
            yield PairsProgress(done, total, resumed)
        if finished:
            return
        with _full_disk(done, total), leases.claim(absent or [MANIFEST]) as lease:
            # A shard may have been written since the folder was listed.
            if lease is None or (absent and (folder / lease.name).exists()):
                continue
            if not absent:
                finished = finish_folder(folder, manifest, lease)
            elif tensors := _leased(model, table, recipe, entries[lease.name], lease):
                has_warned = has_warned or _warn_of_scale(tensors["target"])
                write_shard(folder, manifest, entries[lease.name], tensors, shared=True)


def _leased(model: Model, table: Table, recipe: Json, entry: Json, lease: Lease) -> dict[str, Tensor] | None:
    """The tensors of a shard; ``None`` when another process took this one as dead while it was suspended."""
    batches = []
    for seeds in shard_index(recipe, entry)["seeds"].split(recipe["batch"]):
        if lease.is_superseded():
            return None
        batches.append(_batch(model, table, recipe, seeds.tolist()))
    return _shard(recipe, entry, batches)


@contextlib.contextmanager
def _full_disk(done: int, total: int) -> Iterator[None]:
    """Let a write without room say what is safe and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        advice = f"{error.strerror}, with {done} of {total} pairs safe: make room, then {AGAIN}"
        raise OSError(error.errno, advice, error.filename) from error


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

    Samples of another scale than noise, or of which some are far larger than most, are warned of.

    Arguments as for :func:`write_pairs` and :class:`PairsSpec`.

    Raises:
        UserError: without any seed, or for samples that are not finite.
    """
    if not len(seeds):
        raise UserError("seeds must be at least one, got none")
    seeds, labels = list(seeds), labels_of_seeds(model.classes if labelled else 0, seeds)
    noise, target = _run(model, table_on(table, model.schedule), seeds, labels, guidance)
    _warn_of_scale(target)
    recipe = {"guidance": guidance, "teacher": dict(_description(table, teacher)), **model_fingerprint(model)}
    manifest = {"recipe": recipe}
    return Pairs(torch.tensor(seeds), noise=noise, target=target, labels=labels, manifest=manifest)


@torch.no_grad()
def _run(
    model: Model, table: Table, seeds: Sequence[int], labels: Tensor | None, guidance: float
) -> tuple[Tensor, Tensor]:
    """Noise and samples of the teacher ``(B, *)``, float32 on the CPU."""
    noise = model.noise(seeds)
    denoise = model.bind(None if labels is None else labels.to(model.device), guidance)
    target = sample(denoise, noise.to(model.device), table.folded()).to("cpu", torch.float32)
    check_finite("the teacher's sample", target, torch.tensor(seeds))
    return noise.cpu(), target


# A sample is an outlier at this multiple of the median size, if it also is this multiple of noise: sizes of samples of
# one data set vary less, and small ones by any factor.
_OUTLIER, _LARGE = 5, 3

# Data is normalized to about the scale of noise; a median of ten times that is a wrong scale.
_SCALE = 10


def _warn_of_scale(target: Tensor) -> bool:
    """Warn when the size of samples ``(S, *)`` is implausible, and return whether it is."""
    size = target.reshape(len(target), -1).double().square().mean(1).sqrt()
    if not len(size) or not bool(size.isfinite().all()):  # refused elsewhere
        return False
    median, largest = float(size.median()), float(size.max())
    if median <= _SCALE and largest <= max(_OUTLIER * median, _LARGE):
        return False
    warnings.warn(
        f"the teacher's samples have root mean squares of {median:.3g} (median) to {largest:.3g}, noise has 1: if "
        "that is not the data's, gas.check_model(model) looks for the reason; where alpha is near 0, "
        "gas.denoise.StaticThreshold(denoise, limit) bounds predictions",
        stacklevel=3,
    )
    return True


def _description(solver: Solver, teacher: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The description of a teacher in plain JSON: if none is given, that of a solver by name."""
    if teacher is not None:
        return teacher
    return solver.config() if isinstance(solver, Classical) else {}


def _batch(model: Model, table: Table, recipe: Json, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of a batch that a shard stores."""
    _, target = _run(model, table, seeds, labels_of_seeds(recipe["classes"], seeds), recipe["guidance"])
    return {"target": target} | ({"decoded": decode_all(model, [target])} if "decoded" in recipe else {})


def _shard(recipe: Json, entry: Json, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of one shard, checked."""
    # Contiguous: a network may answer in channels-last, but a file holds rows.
    tensors = {name: torch.cat([part[name] for part in batches]).contiguous() for name in batches[0]}
    ordered = {"target": tensors.pop("target"), **shard_index(recipe, entry), **tensors}
    return check_shard("the teacher's sample", ordered, recipe, entry)
