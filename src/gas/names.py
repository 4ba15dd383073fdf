"""Things chosen by name: a wrong one is answered with the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

__all__ = ["named"]

T = TypeVar("T")


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return ``known[name]``.

    Raises:
        ValueError: for an unknown name, with the nearest known one and all of them.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {kind} {name!r}: did you mean {near!r}? Known: {', '.join(known)}")
    return known[name]
