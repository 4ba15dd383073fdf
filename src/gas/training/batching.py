"""Batching: the order of training pairs, the rows of a batch that each process takes, and turns of parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import MAX_BATCH, MAX_ITERATIONS, MAX_ORDER_SEED, MAX_SEED, integer
from gas.errors import UserError


def visited(available: int, before: int, count: int, seed: int) -> Tensor:
    """Return the indices ``(count,)`` that follow the first ``before`` of an endless walk over all pairs.

    Each epoch visits every pair once, in another random order.
    """
    parts: list[Tensor] = []
    while count > 0:
        epoch, place = divmod(before, available)
        # A prime stride: no two runs share an order before a million epochs.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        part = torch.randperm(available, generator=generator)[place : place + count]
        parts.append(part)
        before, count = before + len(part), count - len(part)
    return torch.cat(parts)


def share_of(rows: Tensor) -> Tensor:
    """Return the rows of a batch that this process takes."""
    return rows[distributed.shard_slices(len(rows))[distributed.rank()]]


def sum_shares(parameters: Iterable[nn.Parameter], values: Tensor) -> Tensor:
    """Sum the gradients of parameters, and values ``(V,)``, over the shares of all processes; return the values.

    Sums are float64, in the order of ranks, and gradients rounded once: the same bits in all processes.
    """
    if distributed.world_size() == 1:
        return values
    gradients = {p: p.grad for p in parameters if p.grad is not None}
    parts = [values, *gradients.values()]
    flat = distributed.all_reduce_sum(torch.cat([part.cpu().double().flatten() for part in parts]))
    values, *summed = flat.split([part.numel() for part in parts])
    for parameter, gradient in zip(gradients, summed, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter)
    return values


def check_counts(config: Any) -> None:
    """Refuse settings of an optimizer that count iterations or pairs unless they are integers in range.

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
        if hasattr(config, name):
            integer(name, getattr(config, name), least, most)


# Names of the parameters that decide the times of the network calls, in all learned solvers.
_TIMES = frozenset({"theta", "xi", "times"})


def in_turn(name: str, iteration: int, alternate: int) -> bool:
    """Whether a parameter is trained in an iteration.

    Args:
        name: of the parameter.
        iteration: counted from zero.
        alternate: iterations of a turn; 0 trains all at once.

    References:
        S4S-Alt: arXiv 2502.17423, algorithm 2.
    """
    return not alternate or (name in _TIMES) == (iteration // alternate % 2 == 0)


def check_turns(names: Iterable[str], alternate: int) -> None:
    """Raise ValueError when a solver has nothing to train in one of the turns."""
    if alternate and len({name in _TIMES for name in names}) < 2:
        raise UserError("alternate needs a solver with both times and coefficients to train: leave it at 0")
