"""A solver inside a scheduler's config: plain lists and numbers, as a solver file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gas.artefact import Artefact, load, save
from gas.document import document_of
from gas.io import CHECKSUM, unsealed

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
    content, name = dict(told), "the scheduler's solver"
    if CHECKSUM in content:  # as a file has it; a config has none
        content = unsealed(content, name)
    return Artefact(document_of(content, "the solver in the scheduler's config is damaged"), name)
