"""The restricted unpickler: names from a fixed table, and a budget of steps and bytes for the whole file."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NoReturn

from torch import Tensor

from gas.unpickle.plain import (
    MODULES,
    NAMES,
    Allowed,
    Persistent,
    Refused,
    check_key,
    is_plain_array_state,
    is_plain_dtype_state,
)

__all__ = ["Budget", "Reader", "bounded"]

# Steps of the unpickler that a file may ask for; a tensor takes about 30 and a prompt 3.
_STEPS = 400_000
_CALL, _SET = 6, 4  # count as several steps: an empty tensor takes a kilobyte, an empty set 200 bytes
_DEPTH = 200
# Length of the content written out in full, shared parts as often as they occur: characters, 16 for a number.
_LENGTH = 1 << 26


@dataclass
class Budget:
    """The remaining cost of reading one file, with everything nested in it.

    Attributes:
        size: bytes of the file.
        steps: of the unpickler.
        copied: bytes that calls may copy or allocate.
    """

    size: int
    steps: int = _STEPS
    copied: int = 0

    def __post_init__(self) -> None:
        self.copied = self.copied or 2 * self.size + (1 << 20)

    def step(self, count: int = 1) -> None:
        """Count steps.

        Raises:
            Refused: when there were too many.
        """
        self.steps -= count
        if self.steps < 0:
            raise Refused(f"more than {_STEPS:,} steps of reading, which no published file needs")

    def copy(self, value: Any) -> None:
        """Count an argument that a call may copy.

        Raises:
            Refused: when all of them exceed a multiple of the file.
        """
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
        self._budget.step()
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


class Reader(pickle._Unpickler):
    """Unpickler that resolves names in a fixed table and calls nothing else.

    It derives from the pure Python class, because in the C class BUILD sets any attribute of any object, also of
    functions and classes, and cannot be overridden.

    Args:
        file: open at the pickle.
        budget: of the whole file.
    """

    stack: list[Any]

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        super().__init__(_BoundedFile(file, budget.size))
        self.budget = budget
        self.dispatch = _CountedHandlers(type(self).dispatch, budget)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in protocols 0 to 2
        full = f"{module}.{name}"
        if full in NAMES:
            return NAMES[full]
        if len(full) <= 200 and MODULES.fullmatch(full):
            return Allowed(full, lambda *args: Persistent(full, init_args=args))
        raise Refused(f"the name {full[:120]!r}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a persistent id (a reference to something outside the file)")

    def load_call(self) -> None:
        """REDUCE and NEWOBJ: call a name of the table with the arguments on the stack."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Allowed) or not isinstance(args, tuple):
            raise Refused(f"a call of a {type(function).__name__}")
        self.budget.step(_CALL)
        for value in args:
            self.budget.copy(value)
        self.stack.append(self.call(function, args))

    def call(self, function: Allowed, args: tuple[Any, ...]) -> Any:
        """Return the stand-in for the result of a call."""
        return function.make(*args)

    def load_build(self) -> None:
        """BUILD: set the state of an object that may have one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Persistent) and isinstance(state, dict) and not target.state:
            target.state = state
        elif is_plain_dtype_state(target, state) or is_plain_array_state(target, state):
            self.budget.copy(state[4])
            target.__setstate__(state)
        elif type(target) is not dict:  # attributes of dict subclasses (state_dict's _metadata) are dropped
            kind = target.name if isinstance(target, Allowed) else type(target).__name__
            raise Refused(f"a state for a {kind}")

    def load_refused(self) -> NoReturn:
        raise Refused("a pickle instruction that published weights do not need (INST, OBJ, EXT, buffers)")

    def load_long4(self) -> None:
        """LONG4: an integer of more than 255 bytes."""
        raise Refused("a whole number of very many digits")

    def load_long(self) -> None:
        """LONG: an integer in decimal digits."""
        text = self.readline()[:-1].rstrip(b"L")  # type: ignore[attr-defined]
        if len(text) > 400:
            raise Refused("a whole number of very many digits")
        self.stack.append(int(text, 0))

    def _fill(self, kind: type, load: Callable[..., None], depth: int) -> None:
        """Fill a container of exactly this type: other objects could define filling as they like."""
        stack = self.stack if depth == 0 else self.metastack[-1]  # type: ignore[attr-defined]
        target = stack[-1] if depth == 0 or stack else None
        if type(target) is not kind:
            raise Refused(f"items for a {type(target).__name__}")
        load(self)

    def load_append(self) -> None:
        if len(self.stack) < 2 or type(self.stack[-2]) is not list:
            raise Refused("an item for what is no list")
        pickle._Unpickler.load_append(self)  # type: ignore[attr-defined]

    def load_appends(self) -> None:
        self._fill(list, pickle._Unpickler.load_appends, 1)  # type: ignore[attr-defined]

    def load_bytearray8(self) -> None:
        """BYTEARRAY8, whose memory the base class asks for before it reads."""
        length = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        self.stack.append(bytearray(self.read(length)))  # type: ignore[attr-defined]

    def load_empty_set(self) -> None:
        self.budget.step(_SET)
        self.stack.append(set())

    def load_additems(self) -> None:
        for key in self.stack:
            check_key(key)
        self._fill(set, pickle._Unpickler.load_additems, 1)  # type: ignore[attr-defined]

    def load_frozenset(self) -> None:
        for key in self.stack:
            check_key(key)
        pickle._Unpickler.load_frozenset(self)  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            check_key(key)
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    def load_setitem(self) -> None:
        if len(self.stack) < 3 or type(self.stack[-3]) is not dict:
            raise Refused("an entry for what is no dict")
        check_key(self.stack[-2])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            check_key(key)
        self._fill(dict, pickle._Unpickler.load_setitems, 1)  # type: ignore[attr-defined]

    # Keyed by opcode; the base class looks a handler up here.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        # INST, OBJ, EXT1, EXT2, EXT4, NEWOBJ_EX, NEXT_BUFFER, READONLY_BUFFER
        **dict.fromkeys(b"io\x82\x83\x84\x92\x97\x98", load_refused),
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
        pickle.LONG4[0]: load_long4,
        pickle.LONG[0]: load_long,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def bounded(content: Any) -> Any:
    """Return the content after bounding its length written out: a pickle can double a list at every level.

    Raises:
        Refused: when it is too long, too deep, or contains itself.
    """
    lengths: dict[int, int] = {}
    # Containers on the current path: each with its remaining parts and its length so far.
    path: list[tuple[Any, list[Any], list[int]]] = [(None, [content], [0])]
    inside: set[int] = set()
    while True:
        owner, parts, length = path[-1]
        if not parts:
            path.pop()
            if not path:
                return content
            lengths[id(owner)] = length[0]
            inside.discard(id(owner))
            _add(path[-1][2], length[0])
            continue
        part = parts.pop()
        children = _parts(part)
        if children is None:
            _add(length, 16 + (len(part) if isinstance(part, (str, bytes, bytearray)) else 0))
        elif id(part) in lengths:
            _add(length, lengths[id(part)])
        elif id(part) in inside:
            raise Refused("an object that is in itself")
        elif len(path) > _DEPTH:
            raise Refused(f"objects nested more than {_DEPTH} deep")
        else:
            inside.add(id(part))
            path.append((part, children, [16]))


def _add(length: list[int], more: int) -> None:
    length[0] += more
    if length[0] > _LENGTH:
        raise Refused("objects that share so many parts that they fill the memory when they are looked at")


def _parts(value: Any) -> list[Any] | None:
    """Return the parts of a container; ``None`` for an atom."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, Persistent):
        return [value.class_name, value.init_args, value.init_kwargs, value.state]
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    return None
