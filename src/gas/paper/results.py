"""Results on disk, read for comparing with the paper: what ``gas evaluate --json`` and ``gas compare`` write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gas.display import one_line
from gas.errors import UserError
from gas.io import CHECKSUM, read_json, verify_checksum
from gas.paper.tables import Cell

__all__ = ["Measured", "best_of", "names_of", "read_results"]

# How rows of results are called, by the paper's names of solvers: their beginnings, before a grid or a file's name.
_NAMES = {
    "DPM++(3M)": ("dpmpp-3m",),
    "UniPC": ("unipc", "unipc-3-bh1", "unipc-3-bh2"),
    "iPNDM": ("ipndm", "ipndm-3"),
    "GAS of FFHQ": ("GAS of ffhq",),
}


@dataclass(frozen=True)
class Measured:
    """One solver in a file of results.

    Attributes:
        preset: that it was measured on.
        name: as the file has it.
        nfe: of it.
        figures: by metric: ``"FID"`` where features were Inception's and the reference real data's, ``"recall"``,
            ``"coverage"``.
        samples: measured on.
        path: the file.
        settings: of the preset that were not the published ones.
    """

    preset: str
    name: str
    nfe: int
    figures: Mapping[str, float]
    samples: int
    path: Path
    settings: Mapping[str, str] = field(default_factory=dict)


def read_results(folder: Path) -> list[Measured]:
    """Read every result below a folder; files of other kinds are passed over.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: for a file of results that is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of results {folder}")
    found: list[Measured] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            document = read_json(path)
            if isinstance(document, dict) and CHECKSUM in document:
                document = verify_checksum(document, "it")
        except (OSError, ValueError) as error:
            raise UserError(
                f"result {path} is damaged ({one_line(error)}): make it again, or take it away"
            ) from error
        if isinstance(document, dict):
            found += _rows(document, path)
    return found


def best_of(cell: Cell, found: Sequence[Measured], settings: Mapping[str, str]) -> Measured | None:
    """Return the result that belongs to a cell: of the most samples, and of those with the cell's figure first.

    Args:
        cell: of the paper.
        found: results.
        settings: that differ from the published ones, beside those that a row's name says; others' results are not it.
    """
    mine = [one for one in found if _belongs(cell, one) and _unnamed(one.settings) == _unnamed(settings)]
    return max(mine, key=lambda one: (cell.metric in one.figures, one.samples), default=None)


def names_of(cell: Cell) -> tuple[str, ...]:
    """Return how a cell's rows may be called in results."""
    return _NAMES.get(cell.solver, (cell.solver,))


def _unnamed(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings that the name of a row does not say."""
    return {name: value for name, value in settings.items() if name not in ("solver", "objective")}


def _belongs(cell: Cell, one: Measured) -> bool:
    if one.preset != cell.preset:
        return False
    if cell.solver == "teacher":
        return one.name.endswith("(teacher)") and (not cell.nfe or one.nfe == cell.nfe + 1)
    return one.nfe == cell.nfe and one.name in names_of(cell)


def _rows(document: Mapping[str, Any], path: Path) -> Iterator[Measured]:
    """The rows of one file: of ``gas evaluate``, or the one of a cell of ``gas compare``."""
    cell = document.get("cell")
    told = {**document, **(document.get("measured") or {})} if isinstance(cell, dict) else document
    rows = _row_of(cell) if isinstance(cell, dict) else document.get("rows")
    preset = told.get("preset") or told.get("model")
    if not isinstance(rows, list) or not isinstance(preset, str):
        return
    for row in rows:
        try:
            name = str(row["name"])
            alone = name.split(" (")[0] if not name.endswith("(teacher)") else name
            label = alone if name.endswith("(teacher)") else alone.split(" / ")[0]
            figures, settings = _figures(row, told), dict(told.get("settings") or {})
            yield Measured(preset, label, int(row["nfe"]), figures, int(row["samples"]), path, settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"result {path} is damaged ({type(error).__name__}: {one_line(error)})"
            ) from error


def _row_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A cell as a row of ``gas evaluate`` would name it; none where its samples were not finite."""
    if cell.get("comparison") is None:
        return []
    spec = str(cell["spec"])
    name = cell["label"] if cell["family"] == "learned" else spec.partition("/")[0]
    return [{**cell["comparison"], "name": "(teacher)" if spec == "teacher" else name, "nfe": cell["nfe"]}]


def _figures(row: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, float]:
    """Figures that mean what the paper's do: in Inception's features, to real data."""
    if told.get("features") != "inception":
        return {}
    figures = {}
    if row.get("frechet_data") is not None:
        figures["FID"] = float(row["frechet_data"])
    shares = (row.get("to_data") or {}).get("prdc") or {}
    return figures | {name: float(shares[name]) for name in ("recall", "coverage") if name in shares}
