"""Results on disk: one file per method and NFE, made once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save
from torch import Tensor

from gas import solver_file
from gas.evaluation.evaluator import SolverMetrics
from gas.io import add_checksum, read_json, read_safetensors, sha256, verify_checksum, write_bytes, write_text
from gas.models.protocol import Model
from gas.table import Table
from gas.workspace import claim

_FORMAT = {"format": "gas-comparison-cell", "version": 2}

_FOLDERS = ("cells", "solvers", "state", "pictures")
_FILES = ("rankings.json", "report.csv", "report.md", "report.html")

_METRICS = TypeAdapter(SolverMetrics | None)
# Fields that are stored beside a result's row.
_BESIDE = ("errors", "table", "pictures", "solver_fingerprint", "metrics_fingerprint")


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method at one NFE, made and measured.

    Attributes:
        spec: the method's name on the command line.
        label: its name in reports.
        category: ``"classical"``, ``"schedule"``, ``"learned"`` or ``"teacher"``.
        nfe: network evaluations per sample.
        origin: ``"SOLVER / GRID"`` of the classical solver: itself, or the start of training.
        metrics: the measurements; ``None`` where a sample is not finite.
        evaluations: network evaluations of training; ``None`` without training.
        stopped: why training ended early, if it did.
        seconds: time to make and first measure it; measuring again by another evaluator does not change it.
        command: the command line that makes this result alone.
        errors: ``(S,)`` squared error of every sample, for pairwise comparisons.
        table: the solver; ``None`` for the teacher.
        pictures: ``(K, C, H, W)`` in [-1, 1] of the first samples, where samples are images.
        solver_fingerprint: of the method, which decides the solver; a stored result with another is made again.
        metrics_fingerprint: of the evaluator, which decides the measurements.
    """

    spec: str
    label: str
    category: str
    nfe: int
    origin: str
    metrics: SolverMetrics | None
    errors: Tensor
    evaluations: int | None = None
    stopped: str = ""
    seconds: float = 0.0
    command: str = ""
    table: Table | None = None
    pictures: Tensor | None = None
    solver_fingerprint: Mapping[str, Any] = field(default_factory=dict)
    metrics_fingerprint: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return everything but tensors and fingerprints, in plain JSON."""
        row = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _BESIDE}
        return {**row, "metrics": _METRICS.dump_python(self.metrics)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], **fields: Any) -> MethodResult:
        """Return the result of a :meth:`row` and its other fields; KeyError, TypeError or ValueError for others."""
        return cls(**{**row, "metrics": _METRICS.validate_python(row["metrics"])}, **fields)


@dataclass(frozen=True)
class Store:
    """A folder of results, new or of an earlier run. A result is whole or absent; a damaged one counts as absent."""

    folder: Path

    def solver(self, spec: str, nfe: int) -> Path:
        """Return the solver file of a result."""
        return self.folder / "solvers" / f"{file_stem(spec, nfe)}.json"

    def read(self, spec: str, nfe: int) -> MethodResult | None:
        """Return a stored result, whatever its fingerprints; ``None`` where there is no whole one."""
        path, tensors = self._files(spec, nfe)
        try:
            content = verify_checksum(read_json(path), str(path))
            digests, solver = content["sha256"], self.solver(spec, nfe)
            if {name: content[name] for name in _FORMAT} != _FORMAT or sha256(tensors) != digests["tensors"]:
                return None
            if digests["solver"] not in (None, solver.is_file() and sha256(solver)):
                return None
            table = None if digests["solver"] is None else solver_file.load(solver).table(nfe)
            parts, _ = read_safetensors(tensors)
            return MethodResult.from_row(
                content["cell"],
                errors=parts["errors"],
                pictures=parts.get("pictures"),
                table=table,
                solver_fingerprint=content["made"],
                metrics_fingerprint=content["measured"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, result: MethodResult, model: Model, **provenance: Any) -> None:
        """Write a result; ``provenance`` is recorded in its solver file, as :func:`gas.save` takes it."""
        claim_folders(self.folder)
        path, tensors_path = self._files(result.spec, result.nfe)
        tensors = {"errors": result.errors.float()}
        if result.pictures is not None:
            tensors["pictures"] = result.pictures.half()
        write_bytes(tensors_path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        digests = {"tensors": sha256(tensors_path), "solver": None}
        if result.table is not None:
            provenance["training"] = {"solver": result.label, **provenance.get("training", {})}
            solver, starts = self.solver(result.spec, result.nfe), {result.nfe: result.origin}
            solver_file.save(solver, result.table, model=model, starts=starts, **provenance)
            digests["solver"] = sha256(solver)
        document = {
            **_FORMAT,
            "model": model.name,
            "cell": result.row(),
            "made": result.solver_fingerprint,
            "measured": result.metrics_fingerprint,
            "sha256": digests,
        }
        write_text(path, json.dumps(add_checksum(document), indent=1, allow_nan=False))

    def _files(self, spec: str, nfe: int) -> tuple[Path, Path]:
        stem = self.folder / "cells" / file_stem(spec, nfe)
        return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.safetensors")


def claim_folders(folder: Path) -> Path:
    """Mark an experiment's folder and its subfolders as this project's; raises as :func:`gas.workspace.claim`."""
    claim(folder, [*_FOLDERS, *_FILES, "unseen"])
    for name in _FOLDERS:
        claim(folder / name)
    return folder


def file_stem(spec: str, nfe: int) -> str:
    """Return the name of a result's files, safe on every file system; different methods have different names.

    >>> file_stem("unipc-3-bh2/log_snr", 4), file_stem("gs@uniform", 4)
    ('unipc-3-bh2+log_snr-4', 'gs=uniform-4')
    """
    name = re.sub(r"[^A-Za-z0-9._-]", lambda match: {"/": "+", "@": "="}.get(match[0], "%"), spec)
    return f"{name}-{nfe}"
