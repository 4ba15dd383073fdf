"""Teacher pairs in memory or on disk, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gas.arguments import number, of_type
from gas.errors import UserError
from gas.io import one_line, open_tensors
from gas.models.protocol import Model, conditions_of
from gas.models.seeds import noise_of_seeds
from gas.pairs.fingerprint import model_fingerprint
from gas.pairs.shards import (
    AGAIN,
    MANIFEST,
    STORED,
    Json,
    comparable,
    differences,
    read_manifest,
    read_shard,
)

__all__ = [
    "Column",
    "NoiseColumn",
    "Pairs",
    "StoredColumn",
    "WhenAsked",
    "check_conditions",
    "check_pairs",
    "join_pairs",
    "open_columns",
    "read_pairs",
]


class Column(Protocol):
    """One value ``(*)`` a pair, not yet in memory."""

    def __getitem__(self, index: slice | Tensor, /) -> Self:
        """Return the column of some of the pairs; nothing is read."""

    def read(self) -> Tensor:
        """Return the values ``(S, *)``."""


class WhenAsked:
    """A field of a dataclass that is given a tensor or a column, and is always read as a tensor.

    A column is read at every access: what needs it twice keeps it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object | None, owner: type | None = None) -> Tensor:
        if instance is None:
            raise AttributeError(self._name)  # which tells the dataclass that there is no default
        value: Tensor | Column = vars(instance)[self._name]
        return value if isinstance(value, Tensor) else value.read()

    def __set__(self, instance: object, value: Tensor | Column) -> None:
        vars(instance)[self._name] = value


@dataclass(frozen=True, eq=False)
class NoiseColumn:
    """Standard normal noise, made from the seeds when asked.

    Args:
        sample_shape: of one sample.
        seeds: ``(S,)`` int64.
    """

    sample_shape: tuple[int, ...]
    seeds: Tensor

    def __getitem__(self, index: slice | Tensor, /) -> NoiseColumn:
        return replace(self, seeds=self.seeds[index])

    def read(self) -> Tensor:
        return noise_of_seeds(self.sample_shape, self.seeds.tolist())


@dataclass(frozen=True, eq=False)
class StoredColumn:
    """What shards hold, checked when the folder was opened: the teacher's answers, or noise that was imported.

    A shard is mapped while its rows are copied out and let go, so that no more than what is asked for stays in memory.

    Args:
        folder: of the shards.
        shards: name of each file and what :func:`StoredColumn.mark` said when it was checked.
        size: pairs a shard, the last one apart.
        sample_shape: of one sample.
        rows: ``(S,)`` int64, places among all pairs of the folder.
        name: of the tensor in each shard.
    """

    folder: Path
    shards: tuple[tuple[str, tuple[int, int]], ...]
    size: int
    sample_shape: tuple[int, ...]
    rows: Tensor
    name: str = "target"

    @staticmethod
    def mark(path: Path) -> tuple[int, int]:
        """Return size and time of change of a file, which differ once it was written again; zeros where none is."""
        if not path.is_file():
            return 0, 0
        found = path.stat()
        return found.st_size, found.st_mtime_ns

    def __getitem__(self, index: slice | Tensor, /) -> StoredColumn:
        return replace(self, rows=self.rows[index])

    def read(self) -> Tensor:
        """Return the values ``(S, *)`` float32.

        Raises:
            ValueError: when a shard is not the file that was checked any more.
        """
        values = torch.empty(len(self.rows), *self.sample_shape)
        places = self.rows // self.size
        for place in places.unique().tolist():
            here = (places == place).nonzero()[:, 0]
            self._copy(place, (self.rows[here] - place * self.size).tolist(), here.tolist(), values)
        return values

    def _copy(self, place: int, rows: list[int], to: list[int], values: Tensor) -> None:
        name, mark = self.shards[place]
        path = self.folder / name
        try:
            if StoredColumn.mark(path) != mark:
                raise UserError("it was written again since it was checked")
            with open_tensors(path) as file:
                kept = file.get_slice(self.name)
                for row, destination in zip(rows, to, strict=True):
                    values[destination] = kept[row]
        except Exception as error:  # the reader's own errors have no common class
            raise UserError(
                f"shard {path} changed while it was in use ({one_line(error)}); {AGAIN}"
            ) from error


def open_columns(folder: Path, manifest: Json) -> tuple[dict[str, Tensor], Column, StoredColumn]:
    """Check every byte of a finished folder, one shard at a time, and return what its pairs are read by.

    Returns:
        Seeds and perhaps labels, held; the noise; and the targets.

    Raises:
        ValueError: when a shard is missing, damaged or foreign.
    """
    recipe, shards, held = manifest["recipe"], [], []
    for entry in manifest["shards"]:
        shards.append((entry["file"], StoredColumn.mark(folder / entry["file"])))
        held.append(
            {
                name: tensor
                for name, tensor in read_shard(folder, entry, manifest).items()
                if name in ("seeds", "labels")
            }
        )
    index = {name: torch.cat([part[name] for part in held]) for name in held[0]}
    shape, rows = tuple(recipe["shape"]), torch.arange(len(index["seeds"]))
    target = StoredColumn(folder, tuple(shards), recipe["shard"], shape, rows)
    own = "noise" in recipe.get(STORED, [])
    noise = replace(target, name="noise") if own else NoiseColumn(shape, index["seeds"])
    return index, noise, target


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
    noise: WhenAsked = WhenAsked()
    target: WhenAsked = WhenAsked()
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
            raise UserError(
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
            raise UserError(
                f"{name} have samples of shape {sample_shape}, model {model.name} of {tuple(model.sample_shape)}: "
                "make pairs with this model"
            )


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
    here = recipe if model is None else {**unsaid, **model_fingerprint(model)}
    here = {**here, "model": comparable(recipe["model"], here["model"])}
    if other := differences(recipe, here):
        raise UserError(f"the pairs in {folder} were made with another model or schedule ({other})")
    seeds, done = range(*recipe["seeds"]), sum(entry["count"] for entry in shards if entry["sha256"])
    if done < len(seeds):
        raise UserError(f"{folder} is unfinished, {done} of {len(seeds)} pairs; {AGAIN}")
    if decoded and "decoded" not in recipe:
        raise UserError(
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
        raise UserError(f"the pairs were made with other conditions than those of {model.name} ({other})")


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Return pairs of one teacher as one set, in order.

    Raises:
        ValueError: when there is nothing to join.
    """
    if not parts:
        raise UserError("join_pairs needs at least one set of pairs, got none")
    labels = [part.labels for part in parts if part.labels is not None]
    return Pairs(
        torch.cat([part.seeds for part in parts]),
        torch.cat([part.noise for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat(labels) if labels else None,
        parts[0].manifest,
    )
