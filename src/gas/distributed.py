"""One run shared by the processes of ``torchrun``: the same bits as from one process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from gas.errors import Diverged, UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "all_gather",
    "all_reduce_sum",
    "broadcast",
    "is_first",
    "launched",
    "local_device",
    "map_sharded",
    "process_group",
    "rank",
    "shard_slices",
    "silence_other_ranks",
    "world_size",
]

T = TypeVar("T")
R = TypeVar("R")

# Errors that keep their type on the other ranks; any other becomes a RuntimeError there. The first match counts.
_ERRORS = (UserError, Diverged, ValueError, OSError, ArithmeticError, ModuleNotFoundError)


@dataclass
class _State:
    """This process's place in the group; a group of one outside of :func:`process_group`."""

    rank: int = 0
    world_size: int = 1
    in_item: bool = False  # whether it computes one item of map_sharded, in which no other rank takes part
    raised: BaseException | None = None  # the error that every rank already raises


@dataclass(frozen=True)
class _Message:
    """What one rank tells all in an exchange: a value, an error, or nothing (``idle``)."""

    value: Any = None
    error: Exception | None = None
    idle: bool = False


_state = _State()


def launched() -> int:
    """Return how many processes ``torchrun`` launched, 1 without it; known before they form a group."""
    if not os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:
        return 1
    size = _environment_integer("WORLD_SIZE", 1, 2**20)
    for name, least, most in (("RANK", 0, size - 1), ("MASTER_PORT", 0, 65535), ("LOCAL_RANK", 0, size - 1)):
        if name in os.environ:
            _environment_integer(name, least, most)
    return size


def _environment_integer(name: str, least: int, most: int) -> int:
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 8 and least <= int(text) <= most):
        raise UserError(
            f"environment variable {name} must be an integer from {least} to {most}, got {text[:40]!r}: start with "
            "torchrun, or unset it"
        )
    return int(text)


def world_size() -> int:
    """Return how many processes share the work: 1 outside of :func:`process_group` and within an item."""
    return 1 if _state.in_item else _state.world_size


def rank() -> int:
    """Return the rank of this process, from 0."""
    return _state.rank


def is_first() -> bool:
    """Return whether this is rank 0, which writes the files."""
    return _state.rank == 0


def local_device(device: str) -> str:
    """Return the CUDA device of this process's ``LOCAL_RANK`` for a plain ``"cuda"``; any other device as it is."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and launched() > 1 else device


@contextlib.contextmanager
def silence_other_ranks() -> Iterator[None]:
    """Discard the output of every launched process but the first; uncaught errors still show their tracebacks."""
    if launched() == 1 or int(os.environ["RANK"]) == 0:
        yield
        return
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        yield


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Share the work inside among the processes that ``torchrun`` launched; without it, do nothing.

    All ranks run the same program and reach each shared step below. None leaves before all are done, and an error on
    one rank is raised on all, with its rank named; a process that is gone is a ``ConnectionError``. Messages go through
    gloo on any device: they are small, and on their way to a disk or to float64 sums.
    """
    global _state
    if launched() == 1 or _state.world_size > 1:
        yield
        return
    from torch import distributed  # late: every command imports this module, and torch takes seconds

    # A batch may take hours; a process that is killed is noticed at once whatever the timeout.
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=1))
    except RuntimeError as error:  # an address that is not this machine's, a port in use
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"the processes cannot meet at MASTER_ADDR {address}: {reason}") from error
    _state = _State(distributed.get_rank(), distributed.get_world_size())
    try:
        yield
        _exchange(_Message(idle=True))
    except Exception as error:
        if error is not _state.raised:
            with contextlib.suppress(Exception):
                _exchange(_failure(error))
        raise
    finally:
        _state = _State()
        distributed.destroy_process_group()


def map_sharded(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` for every item, in order, on every rank; each is computed on one rank.

    Item i goes to rank ``i mod world_size``. Every rank computes with the batch sizes that a single process would use,
    so all get the same bits. A ``map_sharded`` within ``function`` is not shared again. Every rank raises the error of
    the first rank whose ``function`` failed.

    Args:
        function: returns tensors or plain values that can be pickled. From other ranks, tensors come on the CPU.
        items: the same on every rank.
    """
    if world_size() == 1:
        yield from map(function, items)
        return
    iterator = iter(items)
    while batch := list(islice(iterator, world_size())):
        for message in _compute(function, batch[rank() : rank() + 1])[: len(batch)]:
            if message.idle:
                raise RuntimeError(
                    "the processes are not at the same work: is it the same program, with the same arguments?"
                )
            yield message.value


def broadcast(function: Callable[[], R]) -> R:
    """Return on every rank the result of ``function``, which only rank 0 calls."""
    return next(map_sharded(lambda _: function(), range(1)))


def all_gather(value: R) -> list[R]:
    """Return the values of all ranks, in their order."""
    return list(map_sharded(lambda _: value, range(world_size())))


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, in float64 and in the order of ranks: the same bits on all."""
    parts = [part.double() for part in all_gather(value)]
    return sum(parts[1:], parts[0])


def shard_slices(size: int) -> list[slice]:
    """Return the rows of a batch that each rank takes: equally many, give or take one, and at least one."""
    if size < world_size():
        raise UserError(
            f"a batch of {size} cannot be shared by {world_size()} processes: make it larger, or start fewer processes"
        )
    cuts = [-(-size * place // world_size()) for place in range(world_size() + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _compute(function: Callable[[T], Any], items: list[T]) -> list[_Message]:
    """Compute this rank's item, if it has one, and return the messages of all ranks."""
    error, message = None, _Message(idle=True)
    _state.in_item = True
    try:
        for item in items:
            message = _Message(_portable(function(item)))
    except Exception as caught:
        error, message = caught, _failure(caught)
    finally:
        _state.in_item = False
    return _exchange(message, error)


def _exchange(message: _Message, error: Exception | None = None) -> list[_Message]:
    """Return every rank's message, or raise the first error among them; ``error`` is this rank's own."""
    from torch import distributed

    messages: list[Any] = [None] * _state.world_size
    try:
        distributed.all_gather_object(messages, message)
    except RuntimeError as failure:
        _state.raised = ConnectionError(
            f"process {_state.rank} of {_state.world_size} lost the others, one of which was killed or left: see above "
            f"what it said, and start all again ({str(failure).splitlines()[0]})"
        )
        raise _state.raised from failure
    for sender, received in enumerate(messages):
        if received.error is not None:
            remote = type(received.error)(f"process {sender}: {received.error}")
            _state.raised = error if sender == _state.rank and error is not None else remote
            raise _state.raised
    return messages


def _failure(error: Exception) -> _Message:
    kind = next((known for known in _ERRORS if isinstance(error, known)), RuntimeError)
    return _Message(error=kind(str(error)))


def _portable(value: Any) -> Any:
    """Copy tensors to the CPU: pickle would write the whole storage of a view."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {name: _portable(part) for name, part in value.items()}
    return value
