"""Batching: the order of training pairs, and their turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gas.arguments import MAX_BATCH, MAX_ITERATIONS, MAX_ORDER_SEED, MAX_SEED, integer
from gas.errors import UserError

__all__ = ["check_counts", "check_turns", "in_turn", "visited"]


def visited(available: int, before: int, count: int, seed: int) -> Tensor:
    """Return the indices ``(count,)`` that follow the first ``before`` of an endless walk over all pairs.

    Each epoch visits every pair once, in an order of its own.
    """
    parts: list[Tensor] = []
    while count > 0:
        epoch, place = divmod(before, available)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        part = torch.randperm(available, generator=generator)[place : place + count]
        parts.append(part)
        before, count = before + len(part), count - len(part)
    return torch.cat(parts)


def check_counts(config: Any) -> None:
    """Refuse settings of an optimiser that count iterations or pairs and are no integers in range.

    Raises:
        ValueError: names the setting.
    """
    bounds = {
        "iterations": (0, MAX_ITERATIONS),
        "batch": (1, MAX_BATCH),
        "validate_every": (1, MAX_SEED),
        "alternate": (0, MAX_SEED),
        "seed": (0, MAX_ORDER_SEED),
    }
    for name, (least, most) in bounds.items():
        integer(name, getattr(config, name), least, most)


# What learned solvers call the parameters that decide when the network is asked.
_TIMES = frozenset({"theta", "xi", "times"})


def in_turn(name: str, iteration: int, alternate: int) -> bool:
    """Whether a parameter is learned in an iteration.

    Args:
        name: of the parameter.
        iteration: counted from zero.
        alternate: iterations that a turn takes; 0 learns everything at once.

    References:
        S4S-Alt: arXiv 2502.17423, algorithm 2.
    """
    return not alternate or (name in _TIMES) == (iteration // alternate % 2 == 0)


def check_turns(names: Iterable[str], alternate: int) -> None:
    """Raise when a solver has nothing to learn in one of the turns."""
    if alternate and len({name in _TIMES for name in names}) < 2:
        raise UserError("alternate needs a solver with both times and coefficients to learn: leave it at 0")
