"""Names of things: what is chosen by name, and what a callable is called."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["named", "origin"]

T = TypeVar("T")


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return ``known[name]``.

    Raises:
        ValueError: for an unknown name, with a known one that is like it, if any is, and all of them.
    """
    if name not in known:
        lower = {each.lower(): each for each in known}
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
        hint = f": did you mean {lower[near[0]]!r}?" if near else "."
        raise ValueError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")
    return known[name]


def origin(thing: Any) -> str:
    """Return where a callable was defined, ``module.name``: the same in every process, unlike its ``repr``."""
    if thing is None:
        return ""
    home = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{home.__module__}.{home.__qualname__}"
