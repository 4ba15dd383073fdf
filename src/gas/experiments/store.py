"""Results on disk: one cell a method and NFE, made once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from gas import solver_file
from gas.evaluation.evaluator import Comparison
from gas.io import add_checksum, read_json, read_safetensors, sha256, verify_checksum, write_bytes, write_text
from gas.metrics.coverage import PRDC
from gas.metrics.distances import Distribution
from gas.models.protocol import Model
from gas.table import Table
from gas.workspace import claim

__all__ = ["Cell", "Kept", "Store", "claim_folders", "slug"]

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
            content = verify_checksum(read_json(path), str(path))
            if {name: content[name] for name in _FORMAT} != _FORMAT:
                return None
            table = None
            if sha256(tensors) != content["sha256"]["tensors"]:
                return None
            if content["sha256"]["solver"] is not None:
                solver = self.solver(spec, nfe)
                if sha256(solver) != content["sha256"]["solver"]:
                    return None
                table = solver_file.load(solver).table(nfe)
            parts, _ = read_safetensors(tensors)
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
        write_text(path, json.dumps(add_checksum(document), indent=1, allow_nan=False))

    def _write_solver(self, cell: Cell, table: Table, model: Model, told: dict[str, Any]) -> str:
        path = self.solver(cell.spec, cell.nfe)
        training = {"solver": cell.label, **told.pop("training", {})}
        solver_file.save(path, table, model=model, training=training, starts={cell.nfe: cell.what}, **told)
        return sha256(path)

    def _files(self, spec: str, nfe: int) -> tuple[Path, Path]:
        name = f"{slug(spec)}-{nfe}"
        return self.folder / "cells" / f"{name}.json", self.folder / "cells" / f"{name}.safetensors"


@dataclass(frozen=True, eq=False)
class Cell:
    """What is known of one solver at one NFE.

    Attributes:
        spec: how the solver was asked for.
        label: what people call it.
        family: ``"classical"``, ``"schedule"``, ``"learned"`` or ``"teacher"``.
        nfe: network evaluations a sample.
        what: classical solver and grid: its own, or the one that learning started from.
        comparison: its measurements; none where a sample is not finite.
        evaluations: network evaluations of learning; none where nothing is learned.
        stopped: why learning ended early, if it did.
        seconds: that making and first measuring it took; measuring it again by another ruler leaves them.
        command: that makes this cell alone.
        errors: ``(S,)`` squared error of every unseen sample, for comparing pair by pair.
        table: the solver; none for the teacher.
        pictures: ``(K, C, H, W)`` in [-1, 1] of the first unseen seeds, where samples are pictures.
    """

    spec: str
    label: str
    family: str
    nfe: int
    what: str
    comparison: Comparison | None
    evaluations: int | None
    stopped: str
    seconds: float
    command: str
    errors: Tensor
    table: Table | None = None
    pictures: Tensor | None = None

    def row(self) -> dict[str, Any]:
        """Return everything but the tensors, in plain JSON."""
        kept = ("spec", "label", "family", "nfe", "what", "evaluations", "stopped", "seconds", "command")
        told = {name: getattr(self, name) for name in kept}
        return {**told, "comparison": None if self.comparison is None else asdict(self.comparison)}

    @classmethod
    def of(cls, row: Mapping[str, Any], **tensors: Any) -> Cell:
        """Build the cell of a :meth:`row` and its tensors.

        Raises:
            TypeError: when a field is missing or unknown.
        """
        found = row["comparison"]
        return cls(**{**row, "comparison": None if found is None else _comparison(found)}, **tensors)


def _comparison(found: Mapping[str, Any]) -> Comparison:
    interval = found["frechet_data_interval"]
    told = {
        "frechet_data_interval": None if interval is None else (interval[0], interval[1]),
        "to_teacher": _distribution(found["to_teacher"]),
        "to_data": _distribution(found["to_data"]),
        "more": {name: (mean, half) for name, (mean, half) in found.get("more", {}).items()},
    }
    return Comparison(**{**found, **told})


def _distribution(found: Mapping[str, Any] | None) -> Distribution | None:
    if found is None:
        return None
    interval = found["frechet_interval"]
    ends = None if interval is None else (interval[0], interval[1])
    prdc = None if found["prdc"] is None else PRDC(**found["prdc"])
    return Distribution(**{**found, "frechet_interval": ends, "prdc": prdc})


def slug(spec: str) -> str:
    """Return a name that every file system takes; names of solvers that differ stay different.

    >>> slug("unipc-3-bh2/log_snr"), slug("gs@uniform")
    ('unipc-3-bh2+log_snr', 'gs=uniform')
    """
    return re.sub(r"[^A-Za-z0-9._-]", lambda found: {"/": "+", "@": "="}.get(found[0], "%"), spec)
