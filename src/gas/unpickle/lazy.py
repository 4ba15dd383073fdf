"""Pickles whose large tensors stay on disk, so that a file larger than memory is read a few rows at a time."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from gas.display import brief
from gas.errors import UserError
from gas.io import is_integer_list, open_regular
from gas.unpickle.loading import explained, is_torch_file
from gas.unpickle.plain import NAMES, STORAGES, Allowed, Refused
from gas.unpickle.reader import Budget, Reader, bounded
from gas.unpickle.torch_file import DataReader, read_torch

__all__ = ["FileTensor", "read_lazily"]

_LARGE = 1 << 16  # bytes from which a payload stays on disk: the pickler writes these outside its frames


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file, read by rows.

    Attributes:
        path: the file.
        start: byte offset of the first number.
        shape: of the whole tensor.
        dtype: of the numbers, which are little-endian.
    """

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Read rows ``[a:b]`` into memory.

        Raises:
            UserError: when the file ends before them, or is no longer a regular file.
        """
        first, stop, _ = rows.indices(len(self))
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with open_regular(self.path) as file:
            file.seek(self.start + first * row)
            data = bytearray(file.read((stop - first) * row))
        if len(data) < (stop - first) * row:
            raise UserError(f"{self.path} is cut short: it ends within a tensor; download it again")
        flat = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)
        return flat.reshape(stop - first, *self.shape[1:])


def read_lazily(path: str | Path) -> Any:
    """Read a file as :func:`gas.unpickle.read_pickle` does, but leave large tensors on disk.

    Returns:
        The content; a large contiguous tensor of a plain pickle becomes a :class:`FileTensor`, one of ``torch.save`` a
        memory-mapped tensor.

    Raises:
        ValueError: as ``read_pickle``, and for a large tensor that is not contiguous.
        FileNotFoundError: when there is no such file.
    """
    path = Path(path)
    with explained(path), open_regular(path) as file:
        budget = Budget(path.stat().st_size)
        torch_file = is_torch_file(file)
        return bounded(
            read_torch(file, budget, path) if torch_file else _LazyReader(file, path, budget).load()
        )


@dataclass(frozen=True)
class _Skipped:
    """A payload that was not read."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class _DiskStorage:
    """A storage on disk: ``count`` numbers from byte ``start`` on."""

    path: Path
    start: int
    count: int
    dtype: torch.dtype


class _LazyReader(DataReader):
    """Skips large payloads and records their place."""

    def __init__(self, file: BinaryIO, path: Path, budget: Budget) -> None:
        super().__init__(file, budget)
        self._file, self._path = file, path

    def find_class(self, module: str, name: str) -> Any:
        return _LAZY.get(f"{module}.{name}") or super().find_class(module, name)

    def call(self, function: Allowed, args: tuple[Any, ...]) -> Any:
        if function.name == _LOAD and len(args) == 1 and isinstance(args[0], _Skipped):
            return _storage(args[0], self.budget)
        return super().call(function, args)

    def load_bytes(self, width: int) -> None:
        """BINBYTES and BINBYTES8, whose length takes ``width`` bytes."""
        length = int.from_bytes(self.read(width), "little")  # type: ignore[attr-defined]
        framed = self._unframer.current_frame is not None  # type: ignore[attr-defined]
        if framed or length < _LARGE:
            self.append(self.read(length))  # type: ignore[attr-defined]
            return
        start = self._file.tell()
        if start + length > self.budget.size:
            raise EOFError("a payload ends beyond the file")
        self._file.seek(length, 1)
        self.append(_Skipped(self._path, start, length))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **DataReader.dispatch,
        pickle.BINBYTES[0]: lambda self: self.load_bytes(4),
        pickle.BINBYTES8[0]: lambda self: self.load_bytes(8),
    }


class _StorageReader(Reader):
    """Reads the header of a storage in the older ``torch.save`` format: plain values and one kind of persistent id."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) != 6:
            raise Refused("a persistent id that is no storage")
        kind, dtype, _, _, count, view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(count) is not int or view:
            raise Refused("a persistent id that is no storage")
        return dtype, count


def _storage(data: _Skipped, budget: Budget) -> Any:
    """Locate the numbers of a storage in the older ``torch.save`` format."""
    with open_regular(data.path) as file:
        file.seek(data.start)
        magic, protocol, system, described, keys = (_StorageReader(file, budget).load() for _ in range(5))
        count = int.from_bytes(file.read(8), "little")
        start = file.tell()
    if not (isinstance(system, dict) and isinstance(described, tuple) and isinstance(keys, list)):
        raise Refused("a torch storage of another layout")
    dtype, declared = described
    whole = start + count * dtype.itemsize == data.start + data.length
    if (magic, protocol, len(keys), declared) != (_MAGIC, 1001, 1, count) or not whole:
        raise Refused("a torch storage of another layout")
    if not system.get("little_endian"):
        raise Refused("a torch storage of a big-endian machine")
    return _DiskStorage(data.path, start, count, dtype)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
    """Rebuild a tensor on disk, or in memory when it is small."""
    if not isinstance(storage, _DiskStorage):
        return NAMES["torch._utils._rebuild_tensor_v2"].make(storage, offset, size, stride, *rest)
    if not (is_integer_list(size, 16) and is_integer_list(stride, 16) and is_integer_list((offset,), 1)):
        raise Refused(f"a tensor of size {brief(size)} and strides {brief(stride)}")
    shape, steps = tuple(size), tuple(stride)
    expected = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if not shape or steps != expected:
        raise Refused(f"a large tensor of strides {brief(steps)}, which is not contiguous")
    if 0 in shape or offset + math.prod(shape) > storage.count:
        raise UserError("a tensor goes beyond its storage")
    start = storage.start + offset * storage.dtype.itemsize
    return FileTensor(path=storage.path, start=start, shape=shape, dtype=storage.dtype)


_MAGIC = 0x1950A86A20F9469CFC6C
_LOAD = "torch.storage._load_from_bytes"
_LAZY = {
    "torch._utils._rebuild_tensor_v2": Allowed("torch._utils._rebuild_tensor_v2", _tensor),
}
