"""Solver files of a command line: what each is called in a table, and what is odd about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gas.cli.screen import note
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.solver_file import Artefact

__all__ = ["load_named", "nfe_of", "warn_of_known_seeds", "warn_of_unknown_model"]


def load_named(paths: list[Path], model: Model, *, transfer: bool = False) -> dict[str, Artefact]:
    """Read solver files by what they hold, GS, GAS or another, and by their file's name where that is not enough.

    Args:
        paths: of solver files.
        model: that they have to be for.
        transfer: take those of another network too, and say whose they are.

    Raises:
        ValueError: for a solver of another model, or two of one name.
    """
    from gas.solver_file import load

    named: dict[str, Artefact] = {}
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise UserError(f"--solver {path} is given twice: once is enough")
        artefact = load(path)
        _check(artefact, model, transfer)
        name = _title(artefact, model)
        name = f"{name} ({path.stem})" if name in named else name
        if name in named:
            raise UserError(f"--solver {path} is named like another one: rename one of the files")
        named[name] = artefact
    return named


def nfe_of(artefact: Artefact, asked: int | None) -> int:
    """Return the NFE that was asked for, or else the file's only one, or 4."""
    if asked is not None:
        return asked
    return artefact.nfes[0] if len(artefact.nfes) == 1 else 4


def warn_of_unknown_model(artefact: Artefact, model: Model) -> None:
    """Say so where a file does not say what model it is for, so that it cannot be refused."""
    if artefact.document.model is None:
        told = f"{artefact.source} does not say what model it is for: {model.name} is taken on trust"
        note(f": {told}", label="warning")


def _check(artefact: Artefact, model: Model, transfer: bool) -> None:
    guidance = artefact.document.guidance
    try:
        artefact.check(model, guidance, transfer=transfer)
    except ValueError as error:
        if transfer:
            raise
        try:
            artefact.check(model, guidance, transfer=True)
        except ValueError:
            raise error from None
        raise UserError(
            f"{error}; --transfer measures it all the same, as its samples have one shape"
        ) from None


def _title(artefact: Artefact, model: Model) -> str:
    """GS, GAS or another, with what is not usual about it."""
    from gas.learned.registry import SOLVERS

    training, whose = artefact.document.training, artefact.document.model or {}
    name = SOLVERS[key].title if (key := str(training.get("solver"))) in SOLVERS else "GS"
    if training.get("objective") == "gas":
        name = "GAS, classic" if training.get("critic") == "classic" else "GAS"
    other = whose.get("name", model.name)
    return name if other == model.name else f"{name} of {other}"


def warn_of_known_seeds(artefact: Artefact, chosen: range) -> None:
    """Say so where seeds to measure on were trained or chosen on."""
    first, stop = artefact.document.training.get("seeds", [0, 0])
    if max(first, chosen.start) < min(stop, chosen.stop):
        note(f": seeds {first} to {stop - 1} were trained or chosen on", label="warning")
