"""Names of things: what is chosen by name, and what a callable is called."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from gas.errors import UserError

__all__ = ["named", "origin"]

T = TypeVar("T")

# Characters of known names in an error: two lines of a terminal.
_LISTED = 160


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return ``known[name]``.

    Raises:
        ValueError: for an unknown name, with a known one that is like it, if any is, and all of them.
    """
    if not isinstance(name, str):
        raise UserError(f"{kind} must be a name, got a {type(name).__name__}: one of {_listed(known)}")
    if name not in known:
        lower = {each.lower(): each for each in known}
        near = difflib.get_close_matches(name.lower()[:60], lower, n=1, cutoff=0.4)
        hint = f": did you mean {lower[near[0]]!r}?" if near else "."
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise UserError(f"unknown {kind} {shown!r}{hint} Known: {_listed(known)}")
    return known[name]


def _listed(known: Mapping[str, object]) -> str:
    """The known names, as many of them as fit into a line with what is said of them."""
    text = ", ".join(known)
    return text if len(text) <= _LISTED else f"{text[:_LISTED].rpartition(', ')[0]}, ..."


def origin(thing: Any) -> str:
    """Return where a callable was defined, ``module.name``: the same in every process, unlike its ``repr``."""
    if thing is None:
        return ""
    home = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{home.__module__}.{home.__qualname__}"
