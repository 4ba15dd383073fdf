"""A solver in a scheduler's config: the name of its file stands there, the numbers stay out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gas.artefact import Artefact, load, save
from gas.document import document_of
from gas.io import CHECKSUM, unsealed

__all__ = ["SOLVER", "SolverFile", "solver_file"]

SOLVER = "solver.json"


class SolverFile(str):
    """The name of the solver file beside a scheduler's config, with the solver itself.

    A plain string to JSON, ``==`` and ``repr``, so that a config stays short; conversion to another scheduler and back,
    copies and pickles take the solver along.
    """

    artefact: Artefact


def solver_file(solver: Any) -> SolverFile:
    """Return what a scheduler's config holds of a solver.

    Args:
        solver: a path to a solver file, what such a file holds, an artefact, or what :func:`gas.save` takes: a table,
            a solver module, or several of different NFE.

    Raises:
        ValueError: when it is none of these or damaged.
    """
    if isinstance(solver, SolverFile):
        return solver
    name = SolverFile(SOLVER)
    if isinstance(solver, Mapping) and "format" in solver:
        name.artefact = _read(solver)
    elif isinstance(solver, (str, Path)):
        name.artefact = load(solver)
    else:
        name.artefact = solver if isinstance(solver, Artefact) else save(None, solver)
    return name


def _read(told: Mapping[str, Any]) -> Artefact:
    content, name = dict(told), "the scheduler's solver"
    if CHECKSUM in content:  # as a file has it; a config has none
        content = unsealed(content, name)
    return Artefact(document_of(content, "the solver in the scheduler's config is damaged"), name)
