"""Cells on disk: a JSON file a cell, written last, beside its solver file and its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from gas import artefact
from gas.comparison.cell import Cell
from gas.comparison.slug import slug
from gas.files import sha256, write_bytes, write_text
from gas.io import read_json, read_tensors, sealed, unsealed
from gas.model import Model
from gas.table import Table
from gas.workspace import claim

__all__ = ["Kept", "Store", "claim_folders"]

_FORMAT = {"format": "gas-comparison-cell", "version": 1}


_FOLDERS = ("cells", "solvers", "state", "pictures")
_FILES = ("rankings.json", "report.csv", "report.md", "report.html")


def claim_folders(folder: Path) -> Path:
    """Mark a comparison's folder and those in it as this project's, as :func:`gas.workspace.claim` does.

    Raises:
        ValueError: for files of others where a comparison writes its own, or links.
    """
    claim(folder, [*_FOLDERS, *_FILES, "unseen"])
    for name in _FOLDERS:
        claim(folder / name)
    return folder


@dataclass(frozen=True, eq=False)
class Kept:
    """What a folder has of a cell.

    Args:
        cell: it, as it was measured.
        made: what decided its solver.
        measured: what decided its measurements.
    """

    cell: Cell
    made: Mapping[str, Any]
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """A folder of cells. A cell is whole or absent, and one that was damaged is absent.

    Args:
        folder: new, or of an earlier run.
    """

    folder: Path

    def solver(self, spec: str, nfe: int) -> Path:
        """Return the file of a cell's solver."""
        return self.folder / "solvers" / f"{slug(spec)}-{nfe}.json"

    def read(self, spec: str, nfe: int) -> Kept | None:
        """Return what is kept of a cell, whatever it was made for; none where nothing whole is."""
        path, tensors = self._files(spec, nfe)
        try:
            content = unsealed(read_json(path), str(path))
            if {name: content[name] for name in _FORMAT} != _FORMAT:
                return None
            table = None
            if sha256(tensors) != content["sha256"]["tensors"]:
                return None
            if content["sha256"]["solver"] is not None:
                solver = self.solver(spec, nfe)
                if sha256(solver) != content["sha256"]["solver"]:
                    return None
                table = artefact.load(solver).table(nfe)
            parts, _ = read_tensors(tensors)
            kept = {"errors": parts["errors"], "pictures": parts.get("pictures"), "table": table}
            return Kept(Cell.of(content["cell"], **kept), content["made"], content["measured"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, kept: Kept, model: Model, **told: Any) -> None:
        """Keep a cell; ``told`` is what its solver file says of its making."""
        cell = kept.cell
        claim_folders(self.folder)
        path, tensors = self._files(cell.spec, cell.nfe)
        parts: dict[str, Tensor] = {"errors": cell.errors.float()}
        if cell.pictures is not None:
            parts["pictures"] = cell.pictures.half()
        write_bytes(tensors, save({name: part.contiguous() for name, part in parts.items()}))
        solver = None
        if cell.table is not None:
            solver = self._write_solver(cell, cell.table, model, told)
        document = {
            **_FORMAT,
            "model": model.name,
            "cell": cell.row(),
            "made": kept.made,
            "measured": kept.measured,
            "sha256": {"tensors": sha256(tensors), "solver": solver},
        }
        write_text(path, json.dumps(sealed(document), indent=1, allow_nan=False))

    def _write_solver(self, cell: Cell, table: Table, model: Model, told: dict[str, Any]) -> str:
        path = self.solver(cell.spec, cell.nfe)
        training = {"solver": cell.label, **told.pop("training", {})}
        artefact.save(path, table, model=model, training=training, starts={cell.nfe: cell.what}, **told)
        return sha256(path)

    def _files(self, spec: str, nfe: int) -> tuple[Path, Path]:
        name = f"{slug(spec)}-{nfe}"
        return self.folder / "cells" / f"{name}.json", self.folder / "cells" / f"{name}.safetensors"
