"""Several processes that do one run's work: who does which part, and how all learn what each found."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from gas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


__all__ = [
    "alone",
    "count",
    "everyones",
    "first",
    "launched",
    "local_device",
    "quiet_but_first",
    "rank",
    "shares",
    "spread",
    "together",
    "total",
]

T = TypeVar("T")
R = TypeVar("R")

# A message is one byte of kind and then: tensors as safetensors, plain JSON, or the type and text of an error.
_TENSORS, _JSON, _FAILED, _NOTHING = b"+", b"=", b"-", b"."

# What a message names an error by; any other arrives as a RuntimeError.
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ValueError, OSError, ArithmeticError, ModuleNotFoundError)
}


@dataclass
class _Here:
    """Where this process stands: alone, until :func:`together`."""

    rank: int = 0
    count: int = 1
    working: bool = False
    """At a part of its own, which the others know nothing of."""
    told: BaseException | None = None
    """The error that all processes have heard of."""


_here = _Here()


def launched() -> int:
    """Return how many processes ``torchrun`` started, 1 without it; known before any of them meets another.

    Raises:
        ValueError: when one of its environment variables is not the number that it should be.
    """
    if not os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:
        return 1
    size = _environment("WORLD_SIZE", 1, 2**20)
    _environment("RANK", 0, size - 1)
    _environment("MASTER_PORT", 0, 65535)
    if "LOCAL_RANK" in os.environ:
        _environment("LOCAL_RANK", 0, size - 1)
    return size


def _environment(name: str, least: int, most: int) -> int:
    """Return a number that ``torchrun`` set."""
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 8 and least <= int(text) <= most):
        raise UserError(
            f"environment variable {name} must be an integer from {least} to {most}, got {text[:40]!r}: start with "
            "torchrun, or unset it"
        )
    return int(text)


def count() -> int:
    """Return how many processes share the work here: 1 outside of :func:`together`, and within a part of the work."""
    return 1 if _here.working else _here.count


def rank() -> int:
    """Return this process's place among them, from 0."""
    return _here.rank


def first() -> bool:
    """Whether this is the process that writes files."""
    return _here.rank == 0


def local_device(device: str) -> str:
    """Return the CUDA device of this process where ``"cuda"`` is all that was said: the one of its ``LOCAL_RANK``."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and launched() > 1 else device


@contextlib.contextmanager
def quiet_but_first() -> Iterator[None]:
    """Let only the first of the launched processes speak; an uncaught error of any still shows its traceback."""
    if launched() == 1 or int(os.environ["RANK"]) == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Share the work of what is done inside among the processes that ``torchrun`` started; without it, do nothing.

    All run the same program, and each step below where work is shared is one that all come to. None leaves before all
    are done. An error of one is raised in all, with its process named. They speak through gloo, whatever the
    device: what they tell each other is small, and on its way to a disk or to float64 sums anyway.

    Raises:
        ConnectionError: when another process is gone.
    """
    global _here
    if launched() == 1 or _here.count > 1:
        yield
        return
    from torch import distributed

    # A batch may take hours; a process that is killed is seen at once whatever the timeout.
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=1))
    except RuntimeError as error:  # an address that is not this machine's, a port in use
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"the processes cannot meet at MASTER_ADDR {place}: {reason}") from error
    _here = _Here(distributed.get_rank(), distributed.get_world_size())
    try:
        yield
        _exchange(_NOTHING)
    except Exception as error:
        if error is not _here.told:
            with contextlib.suppress(Exception):
                _exchange(_failed(error))
        raise
    finally:
        _here = _Here()
        distributed.destroy_process_group()


def spread(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` of every item, in order, each made by one process and told to all.

    Items are dealt in turn. A process makes its answers as one process alone would, from items of the same sizes, so
    that what all get are the same bits; alone, this is ``map``. Work that is spread within a function that is spread
    is that process's own.

    Args:
        function: of an item: a tensor, named tensors, or plain JSON. From several processes, tensors come on the CPU.
        items: the same in every process.

    Raises:
        Exception: what ``function`` raised first, in every process.
        ConnectionError: when another process is gone.
    """
    if count() == 1:
        yield from map(function, items)
        return
    rest = iter(items)
    while some := list(islice(rest, count())):
        for answer in _answers(function, some[rank() : rank() + 1])[: len(some)]:
            yield _read(answer)


def alone(function: Callable[[], R]) -> R:
    """Return in every process what ``function`` returns in the first, which alone calls it."""
    return next(spread(lambda _: function(), range(1)))


def everyones(value: R) -> list[R]:
    """Return what every process has, in their order."""
    return list(spread(lambda _: value, range(count())))


def total(value: Tensor) -> Tensor:
    """Return the sum of every process's tensor, in float64 and in their order, and so the same bits in all."""
    parts = [part.double() for part in everyones(value)]
    return sum(parts[1:], parts[0])


def shares(size: int) -> list[slice]:
    """Return which rows of a batch each process takes: as many each, give or take one.

    Raises:
        ValueError: when there are fewer rows than processes.
    """
    if size < count():
        raise UserError(
            f"a batch of {size} cannot be shared by {count()} processes: make it larger, or start fewer processes"
        )
    cuts = [-(-size * place // count()) for place in range(count() + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _answers(function: Callable[[T], Any], own: list[T]) -> list[bytes]:
    """Do this process's part of the work, if it has one, and return what all made."""
    error: Exception | None = None
    message, _here.working = _NOTHING, True
    try:
        for item in own:
            message = _packed(function(item))
    except Exception as caught:
        error, message = caught, _failed(caught)
    finally:
        _here.working = False
    return _exchange(message, error)


def _exchange(message: bytes, own: Exception | None = None) -> list[bytes]:
    """Give all processes each one's message; raise the first error among them."""
    import torch
    from torch import distributed

    try:
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(_here.count)]
        distributed.all_gather(sizes, torch.tensor([len(message)]))
        longest = max(int(size) for size in sizes)
        buffers = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        padded = bytearray(message.ljust(longest, b"\0"))
        distributed.all_gather(buffers, torch.frombuffer(padded, dtype=torch.uint8))
    except RuntimeError as error:
        _here.told = ConnectionError(
            f"process {_here.rank} of {_here.count} lost the others, one of which was killed or left: see above what "
            f"it said, and start all again ({str(error).splitlines()[0]})"
        )
        raise _here.told from error
    said = [buffer[: int(size)].numpy().tobytes() for buffer, size in zip(buffers, sizes, strict=True)]
    for place, answer in enumerate(said):
        if answer[:1] == _FAILED:
            kind, text = json.loads(answer[1:])
            theirs = _ERRORS.get(kind, RuntimeError)(f"process {place}: {text}")
            _here.told = own if place == _here.rank and own is not None else theirs
            raise _here.told
    return said


def _failed(error: Exception) -> bytes:
    kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), type(error).__name__)
    return _FAILED + json.dumps([kind, str(error)]).encode()


def _packed(value: Any) -> bytes:
    from safetensors.torch import save
    from torch import Tensor

    named = {"": value} if isinstance(value, Tensor) else value
    if isinstance(named, dict) and named and all(isinstance(part, Tensor) for part in named.values()):
        return _TENSORS + save({name: part.detach().contiguous() for name, part in named.items()})
    return _JSON + json.dumps(value).encode()


def _read(answer: bytes) -> Any:
    from safetensors.torch import load

    if answer[:1] == _JSON:
        return json.loads(answer[1:])
    if answer[:1] != _TENSORS:
        raise RuntimeError(
            "the processes are not at the same work: is it the same program, with the same arguments?"
        )
    named = load(answer[1:])
    return named[""] if named.keys() == {""} else named
