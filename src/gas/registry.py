"""Lookup by name with suggestions, and stable names of callables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from gas.display import brief
from gas.errors import UserError

T = TypeVar("T")

# Characters of known names in an error: two lines of a terminal.
_LENGTH = 160


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return ``known[name]``; for an unknown name, suggest the most similar one and list all."""
    if not isinstance(name, str):
        raise UserError(f"{kind} must be a name, got a {type(name).__name__}: one of {_listed(known)}")
    if name not in known:
        lower = {each.lower(): each for each in known}
        similar = difflib.get_close_matches(name.lower()[:60], lower, n=1, cutoff=0.4)
        hint = f": did you mean {lower[similar[0]]!r}?" if similar else "."
        raise UserError(f"unknown {kind} {brief(name, 62)}{hint} Known: {_listed(known)}")
    return known[name]


def _listed(known: Mapping[str, object]) -> str:
    """Return as many of the known names as fit."""
    text = ", ".join(known)
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH].rpartition(', ')[0]}, ..."


def origin(thing: Any) -> str:
    """Return the qualified name of a callable, ``module.name``: the same in every process, unlike its ``repr``."""
    if thing is None:
        return ""
    definition = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{definition.__module__}.{definition.__qualname__}"
