"""Files of ``torch.save``, in the zip format and the older one, read as data by the restricted unpickler."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gas.archives import open_zip
from gas.display import brief
from gas.errors import UserError
from gas.unpickle.plain import STORAGES, Allowed, Refused
from gas.unpickle.reader import Budget, Reader

__all__ = ["TORCH_MAGIC", "DataReader", "read_storage", "read_torch"]

# The first bytes of every file in the older format: LONG1 with the magic number of ten bytes.
TORCH_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")

Storage = Callable[[str, torch.dtype, int], Tensor]


class DataReader(Reader):
    """Unpickler that also reads storages in the older format, which plain pickles hold as bytes."""

    def call(self, function: Allowed, args: tuple[Any, ...]) -> Any:
        if function is not _LOAD:
            return super().call(function, args)
        if len(args) != 1 or not isinstance(args[0], bytes):
            raise Refused("a torch storage that is no bytes")
        return read_storage(args[0], self.budget)

    def find_class(self, module: str, name: str) -> Any:
        return (
            _LOAD
            if (module, name) == ("torch.storage", "_load_from_bytes")
            else super().find_class(module, name)
        )


_LOAD = Allowed("torch.storage._load_from_bytes", lambda _: None)


class _TorchReader(DataReader):
    """Unpickler of a file of ``torch.save``, in which persistent ids are storages."""

    def __init__(self, file: BinaryIO, budget: Budget, storage: Storage) -> None:
        super().__init__(file, budget)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count, *view = (
            pid if isinstance(pid, tuple) and 5 <= len(pid) <= 6 else (None,) * 5
        )
        plain = isinstance(dtype, torch.dtype) and isinstance(key, str) and type(count) is int and count >= 0
        if kind != "storage" or not plain or any(part is not None for part in view):
            names = [part.name for part in pid if isinstance(part, Allowed)] if isinstance(pid, tuple) else []
            raise Refused(f"a persistent id that is no storage {brief(names)}")
        return self._storage(key, dtype, count)


def read_torch(file: BinaryIO, budget: Budget, mapped: Path | None = None) -> Any:
    """Read a file of ``torch.save``.

    Args:
        file: open at its first byte.
        budget: of the file.
        mapped: path of the file, to map the tensors of a zip archive instead of reading them.

    Raises:
        Refused: when it holds anything but data.
        ValueError: when it is damaged.
    """
    start, zipped = file.tell(), file.read(2) == b"PK"
    if not zipped:
        file.seek(start)
        return _older(file, budget)
    with open_zip(file) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        order = members.get("byteorder")
        if "data.pkl" not in members or (order and archive.read(order) != b"little"):
            raise UserError("it has no data.pkl, or is of a big-endian machine")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise Refused("packed members, which torch.save does not write")
        data = archive.read(members["data.pkl"])
        if mapped is not None and hasattr(torch.UntypedStorage, "from_file"):
            whole: Any = torch.UntypedStorage.from_file(str(mapped), False, budget.size)
            storage = _cached(
                lambda key, dtype, count: _view(whole, file, members[f"data/{key}"], dtype, count)
            )
        else:
            storage = _cached(
                lambda key, dtype, count: _flat(archive.read(members[f"data/{key}"]), dtype, count)
            )
        return _TorchReader(io.BytesIO(data), Budget(len(data), budget.steps), storage).load()


def read_storage(data: bytes, budget: Budget) -> Tensor:
    """Read the bytes of a storage in the older format as a flat tensor.

    Raises:
        Refused: when they hold anything else.
    """
    if data.startswith(b"PK"):
        raise Refused("a torch storage that is a zip archive")
    nested = Budget(len(data), budget.steps)
    flat = _older(io.BytesIO(data), nested)
    budget.steps = nested.steps
    if not isinstance(flat, Tensor) or flat.ndim != 1:
        raise Refused(f"a torch storage that is a {type(flat).__name__}")
    return flat


def _older(file: BinaryIO, budget: Budget) -> Any:
    """Read the older format: a stream of pickles, then the storages in the order of their keys."""
    magic, protocol, system = (Reader(file, budget).load() for _ in range(3))
    if (magic, protocol) != (int.from_bytes(TORCH_MAGIC[2:], "little"), 1001):
        raise UserError("it is no file of torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("a file of a big-endian machine")
    storages: dict[str, Tensor] = {}
    room = [budget.size]

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key in storages:
            return _same(storages[key], dtype, count)
        room[0] -= count * dtype.itemsize
        if room[0] < 0:
            raise Refused("storages of more bytes than the file")
        storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    content, keys = _TorchReader(file, budget, storage).load(), Reader(file, budget).load()
    if not isinstance(keys, list) or len(keys) != len(storages) or set(map(str, keys)) != set(storages):
        raise UserError("its list of storages is not of those that it uses")
    for key in keys:
        flat = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        data = file.read(flat.numel() * flat.element_size())
        if count != flat.numel():
            raise UserError("a storage is of another length")
        flat.copy_(_flat(data, flat.dtype, count))
    return content


def _cached(read: Storage) -> Storage:
    """Read each storage once, for all tensors that share it."""
    cache: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in cache:
            cache[key] = read(key, dtype, count)
        return _same(cache[key], dtype, count)

    return storage


def _same(flat: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if flat.dtype != dtype or flat.numel() != count:
        raise Refused("a storage of two types or lengths")
    return flat


def _flat(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise UserError("it is cut short: a storage has fewer bytes than numbers")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _view(
    whole: torch.UntypedStorage, file: BinaryIO, member: zipfile.ZipInfo, dtype: torch.dtype, count: int
) -> Tensor:
    """Return the numbers of a member of a mapped archive."""
    file.seek(member.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    start, length = member.header_offset + 30 + name + extra, count * dtype.itemsize
    stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == length
    if not stored or start + length > whole.nbytes() or start % dtype.itemsize:
        raise UserError("it is cut short, or a storage is packed")
    part: Any = whole[start : start + length]
    return torch.empty(0, dtype=dtype).set_(part)
