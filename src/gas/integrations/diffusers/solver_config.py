"""A solver inside a scheduler's config: plain lists and numbers, as a solver file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gas.artefact import Artefact, load, save
from gas.document import Document

__all__ = ["artefact_of", "plain"]


def plain(solver: Any) -> dict[str, Any]:
    """Return a solver as a solver file holds it.

    Args:
        solver: a path to a solver file, what such a file holds, an artefact, or what :func:`gas.save` takes: a table,
            a solver module, or several of different NFE.

    Raises:
        ValueError: when it is none of these or damaged.
    """
    if isinstance(solver, Mapping) and "format" in solver:
        artefact = _read(solver)
    elif isinstance(solver, (str, Path)):
        artefact = load(solver)
    else:
        artefact = solver if isinstance(solver, Artefact) else save(None, solver)
    told: dict[str, Any] = artefact.document.model_dump(mode="json", exclude_none=True)
    return told


def artefact_of(told: Mapping[str, Any] | None) -> Artefact | None:
    """Return the artefact that :func:`plain` described."""
    return None if told is None else _read(told)


def _read(told: Mapping[str, Any]) -> Artefact:
    try:
        return Artefact(Document.model_validate(dict(told)), "the scheduler's solver")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "solver"
        raise ValueError(
            f"the solver in the scheduler's config is damaged: {where}: {first['msg']}"
        ) from error
