"""Pairs that stay on disk: columns that are indexed at no cost and read when asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from gas.io import one_line, open_tensors
from gas.model import noise_of_seeds
from gas.shards import AGAIN, STORED, Json, read_shard

__all__ = ["Column", "NoiseColumn", "StoredColumn", "WhenAsked", "open_columns"]


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
                raise ValueError("it was written again since it was checked")
            with open_tensors(path) as file:
                kept = file.get_slice(self.name)
                for row, destination in zip(rows, to, strict=True):
                    values[destination] = kept[row]
        except Exception as error:  # the reader's own errors have no common class
            raise ValueError(
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
