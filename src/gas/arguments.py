"""Checks of arguments: each raises a :class:`gas.UserError` naming the argument, the allowed and the given value."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection
from typing import Any

from gas.errors import UserError

# Most networks are trained on 1,000 steps; a table of them has 2 million numbers and takes 3 s to build.
MAX_NFE = 1000
MAX_ITERATIONS = 1_000_000  # a hundred times the 10,000 of the paper (arXiv 2510.17699)
MAX_SEEDS = 10_000_000  # samples of one run: ten times the images of ImageNet
MAX_BATCH = 1_000_000  # of one network call: more than any device holds of the smallest network of the zoo
MAX_SIZE = 2**40  # numbers of one sample: a minute of video has a thousandth of it
MAX_SEED = 2**63 - 1  # of torch's generators on every platform
MAX_ORDER_SEED = 2**40  # of a training: the order of its pairs is seeded with a million times this

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def integer(name: str, value: Any, least: int, most: int) -> int:
    """Return ``value`` as an integer in ``[least, most]``; Booleans and floats are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = operator.index(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be an integer, got {_show(value)}") from None
    if not least <= whole <= most:
        raise UserError(f"{name} must be from {least:,} to {most:,}, got {_show(whole)}")
    return whole


def number(name: str, value: Any, interval: str) -> float:
    """Return ``value`` as a float in an interval such as ``"[0, 1)"``; Booleans and text are refused."""
    ends = _INTERVAL.fullmatch(interval)
    if ends is None:
        raise RuntimeError(f"no interval: {interval!r}")
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        real = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # of a tensor of several numbers
        raise UserError(f"{name} must be a number in {interval}, got {_show(value)}") from None
    first, last = float(ends[2]), float(ends[3])
    above = first <= real if ends[1] == "[" else first < real
    below = real <= last if ends[4] == "]" else real < last
    if math.isnan(real) or not (above and below):
        raise UserError(f"{name} must lie in {interval}, got {real!r}")
    return real


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Return ``value`` as the shape of a sample: at least one positive size, and no more numbers than memory holds."""
    if not isinstance(value, (tuple, list)) or not value:
        raise UserError(
            f"{name} must be positive sizes without the batch, as (3, 32, 32), got {_show(value)}"
        )
    sizes = tuple(integer(f"a size of {name}", size, 1, MAX_SIZE) for size in value)
    if math.prod(sizes) > MAX_SIZE:
        raise UserError(f"{name} must have at most {MAX_SIZE:,} numbers a sample, got {math.prod(sizes):.0e}")
    return sizes


def of_type(name: str, value: Any, kind: Any, expected: str) -> None:
    """Refuse a value that is not of type ``kind``, described by ``expected``."""
    if not isinstance(value, kind):
        raise UserError(f"{name} must be {expected}, got {_show(value)}")


def choice(name: str, value: Any, known: Collection[str]) -> str:
    """Return ``value`` if it is one of the known names."""
    if not isinstance(value, str) or value not in known:
        listed = [repr(each) for each in known]
        names = f"{', '.join(listed[:-1])} or {listed[-1]}" if len(listed) > 1 else listed[0]
        raise UserError(f"{name} must be {names}, got {_show(value)}")
    return value


def _show(value: Any) -> str:
    """Return a value for a message: plain values shortened, others by their type."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to print thousands of digits
        return "an integer of more than 30 digits"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value[:60] if isinstance(value, (str, bytes)) else value)
    return f"a {type(value).__name__}"
