"""BibTeX of the library and of the methods that it implements."""

from __future__ import annotations

from pathlib import Path

from gas.solver_file import Artefact, load

__all__ = ["citation"]

# Keys of references.bib: of the library and GAS, and of other learned solvers by their kind in a solver file.
_ALWAYS = ("gas_solver", "oganov2025gas")
_METHODS = {"LD3": "tong2025ld3", "S4S": "frankel2025s4s", "BNS": "shaul2024bns"}


def citation(solver: str | Path | Artefact | None = None) -> str:
    """Return the BibTeX entries of this library, of GAS, and of the method of a solver file.

    LD3, S4S and BNS solvers in it add the entry of their paper; Generalized Solvers and classical tables add none.

    >>> print(citation().splitlines()[0])
    @software{gas_solver,
    """
    from gas import __version__

    text = Path(__file__).with_suffix(".bib").read_text(encoding="utf-8").replace("VERSION", __version__)
    entries = {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}
    keys = list(_ALWAYS)
    if solver is not None:
        artefact = solver if isinstance(solver, Artefact) else load(solver)
        kinds = {entry.kind for entry in artefact.document.solvers}
        keys += [key for kind, key in _METHODS.items() if kind in kinds]
    return "\n\n".join(entries[key] for key in keys) + "\n"
