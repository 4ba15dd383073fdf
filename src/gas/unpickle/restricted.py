"""The restricted unpickler, and the files of ``torch.save`` that it reads: names from a fixed table, bounded cost."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import torch
from torch import Tensor

from gas.archives import open_zip
from gas.display import brief
from gas.errors import UserError
from gas.unpickle.allowed import (
    LOAD,
    MODULES,
    NAMES,
    STORAGES,
    Allowed,
    FileTensor,
    Persistent,
    Refused,
    check_key,
    flat_tensor,
    is_plain_state,
)

# The first bytes of every file in the older format of torch.save: LONG1 with the magic number of ten bytes.
TORCH_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_LARGE = 1 << 16  # bytes from which a payload may stay on disk: the pickler writes these outside its frames

Storage = Callable[[str, torch.dtype, int], Any]

# Steps of the unpickler that a file may ask for; a tensor takes about 30 and a prompt 3.
_STEPS = 400_000
# These count as several: an empty tensor takes a kilobyte, an empty set 200 bytes.
_COST = {pickle.REDUCE[0]: 7, pickle.NEWOBJ[0]: 7, pickle.EMPTY_SET[0]: 5}
_DEPTH = 200
# Length of the content written out in full, shared parts as often as they occur: characters, 16 for a number.
_LENGTH = 1 << 26


@dataclass
class Budget:
    """The remaining cost of reading one file of ``size`` bytes: steps, and bytes that calls may copy or allocate."""

    size: int

    def __post_init__(self) -> None:
        self.steps, self.copied = _STEPS, 2 * self.size + (1 << 20)

    def step(self, count: int) -> None:
        """Count steps; refuse too many."""
        self.steps -= count
        if self.steps < 0:
            raise Refused(f"more than {_STEPS:,} steps of reading, which no published file needs")

    def copy(self, value: Any) -> None:
        """Count an argument that a call may copy; refuse arguments of several times the file."""
        if isinstance(value, (str, bytes, bytearray)):
            self.copied -= len(value)
        elif isinstance(value, (list, tuple, dict, set, frozenset)):
            self.copied -= 64 * len(value)
        if self.copied < 0:
            raise Refused("copies of several times its size")


class _CountedHandlers(dict[int, Callable[..., None]]):
    """Handlers by opcode; each lookup counts as a step."""

    def __init__(self, handlers: Mapping[int, Callable[..., None]], budget: Budget) -> None:
        super().__init__(handlers)
        self._budget = budget

    def __getitem__(self, opcode: int) -> Callable[..., None]:
        self._budget.step(_COST.get(opcode, 1))
        return super().__getitem__(opcode)


class _BoundedFile:
    """A file that refuses to read beyond its end, before memory is allocated for that."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise EOFError("a length goes beyond the end of the file")
        return self._file.read(count)


def _filling(
    opcode: bytes,
    kind: type,
    target: Callable[[Any], Any],
    keys: Callable[[list[Any]], Iterable[Any]] = lambda _: (),
) -> Callable[..., None]:
    """Return a handler that fills containers of exactly this type: others could define filling as they like."""
    load = pickle._Unpickler.dispatch[opcode[0]]

    def fill(self: Any) -> None:
        if type(target(self)) is not kind:
            raise Refused(f"items for a {type(target(self)).__name__}")
        for key in keys(self.stack):
            check_key(key)
        load(self)

    return fill


class Reader(pickle._Unpickler):
    """Unpickler that resolves names in a fixed table and calls nothing else.

    It derives from the pure Python class, because in the C class BUILD sets any attribute of any object, also of
    functions and classes, and cannot be overridden.

    Args:
        file: open at the pickle, which ends at byte ``end``, by default that of the file.
        budget: of the whole file.
        path: of the file, to leave large storages in it.
        storage: makes the storage that a persistent id names; without it, persistent ids are refused.
    """

    stack: list[Any]

    def __init__(
        self,
        file: BinaryIO,
        budget: Budget,
        *,
        end: int | None = None,
        path: Path | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__(_BoundedFile(file, budget.size if end is None else end))
        self._file, self._budget, self._path, self._storage = file, budget, path, storage
        self.storages: dict[str, Any] = {}
        self.dispatch = _CountedHandlers(type(self).dispatch, budget)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in protocols 0 to 2
        full = f"{module}.{name}"
        if self._storage is not None and module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if full in NAMES:
            return NAMES[full]
        if len(full) <= 200 and MODULES.fullmatch(full):
            return Allowed(full, lambda *args: Persistent(full, init_args=args))
        raise Refused(f"the name {full[:120]!r}")

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise Refused("a persistent id (a reference to something outside the file)")
        sized = isinstance(pid, tuple) and 5 <= len(pid) <= 6
        parts: tuple[Any, ...] = pid if sized else (None,) * 5
        kind, dtype, key, _, count, *view = parts
        plain = isinstance(dtype, torch.dtype) and isinstance(key, str) and type(count) is int and count >= 0
        if kind != "storage" or not plain or any(part is not None for part in view):
            names = [part.name for part in pid if isinstance(part, Allowed)] if isinstance(pid, tuple) else []
            raise Refused(f"a persistent id that is no storage {brief(names)}")
        flat = self.storages[key] if key in self.storages else self._storage(key, dtype, count)
        if flat.dtype != dtype or len(flat) != count:
            raise Refused("a storage of two types or lengths")
        self.storages[key] = flat
        return flat

    def load_call(self) -> None:
        """REDUCE and NEWOBJ: call a name of the table with the arguments on the stack."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Allowed) or not isinstance(args, tuple):
            raise Refused(f"a call of a {type(function).__name__}")
        for value in args:
            self._budget.copy(value)
        result = self._nested_storage(*args) if function.name == LOAD else function.make(*args)
        self.stack.append(result)

    def _nested_storage(self, data: bytes | range) -> Tensor | FileTensor:
        """Read a storage in the older format as a flat tensor, from its bytes or where these lie in the file."""
        if isinstance(data, range):
            place = self._file.tell()
            self._file.seek(data.start)
            flat = _read_older(self._file, self._budget, data.stop, self._path)
            self._file.seek(place)
        elif isinstance(data, bytes):
            flat = _read_older(io.BytesIO(data), self._budget, len(data))
        else:
            raise Refused("a torch storage that is no bytes")
        if not isinstance(flat, (Tensor, FileTensor)) or len(flat.shape) != 1:
            raise Refused(f"a torch storage that is a {type(flat).__name__}")
        return flat

    def load_bytes(self, width: int) -> None:
        """BINBYTES and BINBYTES8, whose length takes ``width`` bytes; large payloads may stay in the file."""
        length = int.from_bytes(self.read(width), "little")  # type: ignore[attr-defined]
        framed = self._unframer.current_frame is not None  # type: ignore[attr-defined]
        if self._path is None or framed or length < _LARGE:
            self.stack.append(self.read(length))  # type: ignore[attr-defined]
            return
        start = self._file.tell()
        self._file.seek(length, 1)
        self.stack.append(range(start, start + length))

    def load_build(self) -> None:
        """BUILD: set the state of an object that may have one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Persistent) and isinstance(state, dict) and not target.state:
            target.state = state
        elif is_plain_state(target, state):
            self._budget.copy(state[4])
            target.__setstate__(state)
        elif type(target) is not dict:  # attributes of dict subclasses (state_dict's _metadata) are dropped
            kind = target.name if isinstance(target, Allowed) else type(target).__name__
            raise Refused(f"a state for a {kind}")

    def load_refused(self) -> NoReturn:
        raise Refused(
            "a pickle instruction that published weights do not need (INST, OBJ, EXT, long numbers)"
        )

    # Keyed by opcode; the base class looks a handler up here.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        # INST, OBJ, EXT1, EXT2, EXT4, NEWOBJ_EX, NEXT_BUFFER, READONLY_BUFFER; LONG, LONG4, DICT, FROZENSET, BYTEARRAY8
        **dict.fromkeys(b"io\x82\x83\x84\x92\x97\x98L\x8bd\x91\x96", load_refused),
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
        pickle.BINBYTES[0]: lambda self: self.load_bytes(4),
        pickle.BINBYTES8[0]: lambda self: self.load_bytes(8),
        pickle.APPEND[0]: _filling(pickle.APPEND, list, lambda x: x.stack[-2]),
        pickle.APPENDS[0]: _filling(pickle.APPENDS, list, lambda x: x.metastack[-1][-1]),
        pickle.ADDITEMS[0]: _filling(
            pickle.ADDITEMS, set, lambda x: x.metastack[-1][-1], lambda items: items
        ),
        pickle.SETITEM[0]: _filling(pickle.SETITEM, dict, lambda x: x.stack[-3], lambda items: items[-2:-1]),
        pickle.SETITEMS[0]: _filling(
            pickle.SETITEMS, dict, lambda x: x.metastack[-1][-1], lambda items: items[::2]
        ),
    }


def read_torch(file: BinaryIO, budget: Budget, path: Path | None = None) -> Any:
    """Read a file of ``torch.save``, open at its first byte; with its path, leave large storages of a zip in it."""
    start, zipped = file.tell(), file.read(2) == b"PK"
    if not zipped:
        file.seek(start)
        return _read_older(file, budget, budget.size)
    with open_zip(file) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        order = members.get("byteorder")
        if "data.pkl" not in members or (order and archive.read(order) != b"little"):
            raise UserError("it has no data.pkl, or is of a big-endian machine")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise Refused("packed members, which torch.save does not write")

        def storage(key: str, dtype: torch.dtype, count: int) -> Any:
            member = members[f"data/{key}"]
            if path is None or member.file_size < _LARGE:
                return _flat(archive.read(member), dtype, count)
            file.seek(member.header_offset + 26)
            lengths = struct.unpack("<HH", file.read(4))  # of the name and of an extra field
            first = member.header_offset + 30 + sum(lengths)
            return FileTensor(path, first, (member.file_size // dtype.itemsize,), dtype)

        data = archive.read(members["data.pkl"])
        return Reader(io.BytesIO(data), budget, end=len(data), storage=storage).load()


def _read_older(file: BinaryIO, budget: Budget, end: int, path: Path | None = None) -> Any:
    """Read the older format: a stream of pickles, then the storages in the order of their keys."""
    start = file.tell()
    if file.read(2) == b"PK":
        raise Refused("a torch storage that is a zip archive")
    file.seek(start)
    magic, protocol, system = (Reader(file, budget, end=end).load() for _ in range(3))
    if (magic, protocol) != (int.from_bytes(TORCH_MAGIC[2:], "little"), 1001):
        raise UserError("it is no file of torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("a file of a big-endian machine")
    room = end - start

    def storage(key: str, dtype: torch.dtype, count: int) -> Any:
        nonlocal room
        room -= count * dtype.itemsize
        if room < 0:
            raise Refused("storages of more bytes than the file")
        # The place in the file is not known yet.
        return torch.empty(count, dtype=dtype) if path is None else FileTensor(path, 0, (count,), dtype)

    reader = Reader(file, budget, end=end, storage=storage)
    content, keys = reader.load(), Reader(file, budget, end=end).load()
    storages = reader.storages
    if not isinstance(keys, list) or len(keys) != len(storages) or set(map(str, keys)) != set(storages):
        raise UserError("its list of storages is not of those that it uses")
    for key in keys:
        flat = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(flat):
            raise UserError("a storage is of another length")
        if isinstance(flat, Tensor):
            flat.copy_(_flat(file.read(count * flat.dtype.itemsize), flat.dtype, count))
        else:
            flat.start = file.tell()
            file.seek(count * flat.dtype.itemsize, 1)
    return content


def _flat(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) != count * dtype.itemsize:
        raise UserError("it is cut short: a storage has fewer bytes than numbers")
    return flat_tensor(data, dtype)


def bounded(content: Any) -> Any:
    """Return the content after bounding its length written out: a pickle can double a list at every level."""
    lengths: dict[int, int] = {}
    inside: set[int] = set()

    def length_of(value: Any, depth: int) -> int:
        parts = _parts(value)
        if parts is None:
            return 16 + (len(value) if isinstance(value, (str, bytes)) else 0)
        if id(value) in inside:
            raise Refused("an object that is in itself")
        if depth > _DEPTH:
            raise Refused(f"objects nested more than {_DEPTH} deep")
        if id(value) not in lengths:
            inside.add(id(value))
            lengths[id(value)] = 16 + sum(length_of(part, depth + 1) for part in parts)
            inside.discard(id(value))
        if lengths[id(value)] > _LENGTH:
            raise Refused(
                "objects that share so many parts that they fill the memory when they are looked at"
            )
        return lengths[id(value)]

    length_of(content, 0)
    return content


def _parts(value: Any) -> list[Any] | None:
    """Return the parts of a container; ``None`` for an atom."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set)):
        return list(value)
    if isinstance(value, Persistent):
        return [value.class_name, value.init_args, value.init_kwargs, value.state]
    return None
