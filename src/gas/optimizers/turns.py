"""Learning in turns: first the times with the coefficients as they are, then the coefficients, and so on."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["check_turns", "in_turn"]

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
        raise ValueError("alternate needs a solver with both times and coefficients to learn: leave it at 0")
