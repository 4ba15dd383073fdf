"""Teacher pairs: noise by seed and where a slow, good solver takes it, in shards that survive a kill."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gas import processes
from gas.arguments import number, of_type
from gas.catalogue import Classical
from gas.columns import WhenAsked, open_columns
from gas.files import write_bytes
from gas.model import Model, conditions_of, decode_all, labels_of_seeds, noise_of_seeds
from gas.recipe import PairsSpec, recipe_of, source_of
from gas.sample import sample
from gas.shards import (
    AGAIN,
    MANIFEST,
    Json,
    checked,
    comparable,
    differences,
    is_whole,
    open_folder,
    read_manifest,
    read_shard,
    shard_index,
    write_manifest,
)
from gas.table import Table, TableMaker, table_on

__all__ = [
    "Pairs",
    "PairsProgress",
    "PairsSpec",
    "check_conditions",
    "check_pairs",
    "join_pairs",
    "read_pairs",
    "teach",
    "write_pairs",
]

Solver = Table | nn.Module | TableMaker


@dataclass(frozen=True)
class PairsProgress:
    """How far the writer is, in samples safe on disk; ``resumed`` of them were there when it started."""

    done: int
    total: int
    resumed: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """Noise and the teacher's answers, row by row, on the CPU; in memory, or on disk until they are asked for.

    Args:
        seeds: ``(S,)`` int64.
        noise: ``(S, *)`` float32, standard normal, from the seeds alone; a tensor, or a column to read when asked.
        target: ``(S, *)`` float32, where the teacher takes the noise; likewise.
        labels: ``(S,)`` int64, or ``None`` when no class was told.
        manifest: what the folder says about itself; by default, that the teacher ran without guidance.
        decoded: ``(S, *)`` float16, the decoded targets, where they were stored and asked for.
    """

    seeds: Tensor
    noise: WhenAsked = WhenAsked()  # noqa: RUF009 (a descriptor, not a default)
    target: WhenAsked = WhenAsked()  # noqa: RUF009
    labels: Tensor | None = None
    manifest: Mapping[str, Any] = field(default_factory=lambda: {"recipe": {"guidance": 1.0, "teacher": {}}})
    decoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def batches(self, size: int = 256) -> Iterator[Pairs]:
        """Yield all pairs in order, ``size`` at a time: what reads a set through without holding it."""
        for start in range(0, len(self), size):
            yield self.subset(slice(start, start + size))

    @property
    def guidance(self) -> float:
        """Scale of classifier-free guidance that the teacher ran with."""
        return number("guidance of the pairs", self.manifest["recipe"]["guidance"], "(-inf, inf)")

    @property
    def prompts(self) -> list[str] | None:
        """The prompt of each row, or ``None`` when labels are no prompts or none were told."""
        known = self.manifest["recipe"].get("conditions", {}).get("prompts")
        return (
            None if known is None or self.labels is None else [known[label] for label in self.labels.tolist()]
        )

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Description of the teacher in plain JSON."""
        return dict(self.manifest["recipe"]["teacher"])

    def __repr__(self) -> str:
        """Return how many there are, and of what; their values would fill pages."""
        shape = self.subset(slice(0, 1)).target.shape[1:]
        return f"<{len(self)} pairs of shape {'x'.join(map(str, shape))}>"

    def subset(self, index: slice | Tensor) -> Pairs:
        """Return the rows of a slice, a boolean mask ``(S,)`` or a vector of positions."""
        labels = None if self.labels is None else self.labels[index]
        decoded = None if self.decoded is None else self.decoded[index]
        noise, target = (vars(self)[name][index] for name in ("noise", "target"))
        return Pairs(self.seeds[index], noise, target, labels, self.manifest, decoded)

    def split(self, validation: int) -> tuple[Pairs, Pairs]:
        """Return ``(train, the last validation rows)``; raises ValueError when none is left to train on."""
        if not 0 <= validation < len(self):
            raise ValueError(
                f"validation must be from 0 to below {len(self)} pairs, got {validation}: keep fewer of them to choose "
                "on, or make more pairs"
            )
        cut = len(self) - validation
        return self.subset(slice(0, cut)), self.subset(slice(cut, None))


def check_pairs(pairs: Pairs, model: Model, name: str = "pairs") -> None:
    """Refuse what are no pairs of a model: none at all, or samples of another shape.

    Raises:
        ValueError: names the argument and what came.
    """
    of_type(name, pairs, Pairs, "gas.Pairs")
    if len(pairs):
        sample_shape = tuple(pairs.subset(slice(0, 1)).target.shape[1:])
        if sample_shape != tuple(model.sample_shape):
            raise ValueError(
                f"{name} have samples of shape {sample_shape}, model {model.name} of {tuple(model.sample_shape)}: "
                "make pairs with this model"
            )


def write_pairs(
    model: Model, table: Solver, folder: Path | str, spec: PairsSpec, *, batch: int = 64
) -> Iterator[PairsProgress]:
    """Run the teacher from the noise of every seed: ``target_s = sample(model, noise(s), table)``.

    The folder holds ``manifest.json`` (what it is, and a checksum a shard) and one safetensors file a
    shard: ``target``, ``seeds`` and perhaps ``labels`` and ``decoded``; noise follows from the seed and is not stored.
    Killed at any point and called again, this keeps the shards whose checksum holds, makes the rest in
    the first run's batches, and ends with the same bytes (on like machines: another may round differently).

    Args:
        model: the model; its noise must be that of :func:`gas.model.noise_of_seeds`.
        table: the teacher; a :class:`gas.Classical` describes itself where ``spec.teacher`` is left out.
        folder: new, empty or of an earlier run; one writer at a time. Of several processes
            (:func:`gas.processes.together`) all make batches and the first writes, to the same bytes.
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
    recipe = recipe_of(model, table, spec, batch)
    manifest, places = processes.alone(lambda: _opened(folder, recipe))
    recipe, todo = manifest["recipe"], [manifest["shards"][place] for place in places]
    done = resumed = total - sum(entry["count"] for entry in todo)
    yield PairsProgress(done, total, resumed)
    # Batch after batch through all shards, so that processes that share them are idle at most once, at the end.
    made = processes.spread(lambda seeds: _batch(model, table, recipe, seeds), _batches(recipe, todo))
    problem = ""
    for entry in todo:
        tensors = _shard(recipe, entry, list(islice(made, -(-entry["count"] // recipe["batch"]))))
        if not problem and (problem := _range_problem(tensors["target"])):
            warnings.warn(problem, UserWarning, stacklevel=2)
        if processes.first():
            try:
                _write(folder, manifest, entry, tensors)
            except OSError as error:
                advice = f"{error.strerror}, with {done} of {total} pairs safe: make room, then {AGAIN}"
                raise OSError(error.errno, advice, str(folder / entry["file"])) from error
        done += entry["count"]
        if done == total:
            processes.everyones(None)  # nobody reads before the last shard is written
        yield PairsProgress(done, total, resumed)


def read_pairs(
    folder: Path | str, *, model: Model | None = None, hold: bool = True, decoded: bool = False
) -> Pairs:
    """Read a finished folder, every byte checked, and make the noise again unless it was imported with its own.

    Args:
        folder: where the pairs are.
        model: when given, the pairs must have been made with this very model, schedule and meaning of labels, at its
            precision or in float32; whether it was or is compiled does not matter.
        hold: keep everything in memory. Else every byte is checked now, one shard at a time, and rows are read when
            they are asked for, to the same bits: training then holds a batch, not the set.
        decoded: also return the decoded samples, which are held.

    Raises:
        FileNotFoundError: when the folder has no manifest.
        ValueError: when the set is unfinished, another model's, or has a missing, damaged or foreign file.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}, so no pairs; make some with `gas pairs`")
    manifest = read_manifest(folder)
    recipe, shards = manifest["recipe"], manifest["shards"]
    unsaid = {key: value for key, value in recipe.items() if key != "conditions"}
    here = recipe if model is None else {**unsaid, **source_of(model)}
    here = {**here, "model": comparable(recipe["model"], here["model"])}
    if other := differences(recipe, here):
        raise ValueError(f"the pairs in {folder} were made with another model or schedule ({other})")
    seeds, done = range(*recipe["seeds"]), sum(entry["count"] for entry in shards if entry["sha256"])
    if done < len(seeds):
        raise ValueError(f"{folder} is unfinished, {done} of {len(seeds)} pairs; {AGAIN}")
    if decoded and "decoded" not in recipe:
        raise ValueError(
            f"the pairs in {folder} were stored without decoded samples; make them with decoded=True"
        )
    if not hold and not decoded:
        index, column, target = open_columns(folder, manifest)
        return Pairs(index["seeds"], column, target, index.get("labels"), manifest)
    parts = [read_shard(folder, entry, manifest) for entry in shards]
    if not decoded:
        parts = [{name: x for name, x in part.items() if name != "decoded"} for part in parts]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    noise = whole["noise"] if "noise" in whole else noise_of_seeds(recipe["shape"], seeds)
    return Pairs(whole["seeds"], noise, whole["target"], whole.get("labels"), manifest, whole.get("decoded"))


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
        raise ValueError(
            f"the teacher's answer is not finite for seed {seed}; check model, guidance and table"
        )
    return Pairs(torch.tensor(list(seeds)), noise.cpu(), target, labels, {"recipe": recipe})


def check_conditions(model: Model, pairs: Pairs) -> None:
    """Refuse pairs whose labels mean something else than the model's: other prompts, other observations.

    Raises:
        ValueError: says so.
    """
    recorded, conditions = pairs.manifest["recipe"].get("conditions"), conditions_of(model).get("conditions")
    if (
        recorded is not None
        and pairs.labels is not None
        and (other := differences(recorded, json.loads(json.dumps(conditions or {}))))
    ):
        raise ValueError(f"the pairs were made with other conditions than those of {model.name} ({other})")


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


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Return pairs of one teacher as one set, in order.

    Raises:
        ValueError: when there is nothing to join.
    """
    if not parts:
        raise ValueError("join_pairs needs at least one set of pairs, got none")
    labels = [part.labels for part in parts if part.labels is not None]
    return Pairs(
        torch.cat([part.seeds for part in parts]),
        torch.cat([part.noise for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat(labels) if labels else None,
        parts[0].manifest,
    )


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
