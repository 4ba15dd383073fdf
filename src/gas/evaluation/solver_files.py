"""Solver files to evaluate: their names in tables, and what is unusual about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gas.errors import UserError
from gas.learned.registry import SOLVERS
from gas.models.protocol import Model
from gas.solver_file import Artefact, load


def load_solver_files(
    paths: Sequence[Path], model: Model, *, transfer: bool = False, guidance: float | None = None
) -> dict[str, Artefact]:
    """Load solver files of a model by their method's name (GS, GAS, ...), with the file's name where that is ambiguous.

    ``transfer`` also accepts solvers of another network; their names say of which. All are for one guidance
    scale, by default the first file's; files that serve several give their tables there.

    Raises:
        UserError: for a solver of another model or guidance, a path given twice, or two solvers of one name.
    """
    artefacts: dict[str, Artefact] = {}
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise UserError(f"--solver {path} is given twice: once is enough")
        artefact = load(path)
        if guidance is None:
            guidance = artefact.document.guidance
        if index > 0 and not artefact.document.serves(guidance):
            raise UserError(
                f"--solver {path} serves guidance {artefact.document.served}, and {paths[0]} is measured at "
                f"{guidance:g}: measure files of other guidance apart"
            )
        artefact = artefact.at(guidance)
        _check(artefact, model, transfer)
        name = display_name(artefact, model)
        name = f"{name} ({path.stem})" if name in artefacts else name
        if name in artefacts:
            raise UserError(f"two --solver files are called {path.stem!r}: rename one of them")
        artefacts[name] = artefact
    return artefacts


def default_nfe(artefact: Artefact) -> int:
    """Return the file's NFE if it has only one, otherwise 4."""
    return artefact.nfes[0] if len(artefact.nfes) == 1 else 4


def provenance_warnings(artefact: Artefact, model: Model, seeds: range | None = None) -> list[str]:
    """Return warnings about a file that names no model, and about evaluation seeds that it was trained on."""
    warnings = []
    if artefact.document.model is None:
        warnings.append(
            f"{artefact.source} does not say what model it is for: {model.name} is taken on trust"
        )
    if "model" in (artefact.document.teacher or {}):
        warnings.append(
            f"{artefact.source} learned from samples of another model; errors are to those of {model.name} itself"
        )
    first, stop = artefact.document.training.get("seeds", [0, 0])
    if seeds is not None and max(first, seeds.start) < min(stop, seeds.stop):
        warnings.append(f"seeds {first} to {stop - 1} were trained or chosen on")
    return warnings


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
        raise UserError(f"{error}; as the shapes agree, --transfer evaluates it all the same") from None


def display_name(artefact: Artefact, model: Model) -> str:
    """Return the name of a file's method in tables, ``GS`` or ``GAS`` say, and of its network if that is another."""
    training, source = artefact.document.training, artefact.document.model or {}
    recorded = training.get("solver")  # a key of SOLVERS, or the name of a method of gas compare
    name = recorded if isinstance(recorded, str) and recorded else "GS"
    name = SOLVERS[name].title if name in SOLVERS else name
    if training.get("objective") == "gas":
        name = "GAS, classic" if training.get("critic") == "classic" else "GAS"
    source_name = source.get("name", model.name)
    return name if source_name == model.name else f"{name} of {source_name}"
