"""Solver files: saving and loading families of tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

import gas
from gas.arguments import number, of_type
from gas.compatibility import model_differences
from gas.display import brief, error_text
from gas.errors import UserError, explained
from gas.io import (
    add_checksum,
    plain_json,
    read_json,
    read_safetensors,
    safetensors_bytes,
    sha256,
    verify_checksum,
    write_bytes,
    write_text,
)
from gas.learned.generalized import GeneralizedSolver
from gas.learned.guidance import GuidanceBNS
from gas.learned.interpolation import interpolated
from gas.models.protocol import Model
from gas.schedule import Schedule, schedule_from_config
from gas.solver_schema import (
    MAX_WEIGHTS_BYTES,
    Document,
    Entry,
    RowResidual,
    Term,
    WeightsFile,
    parse_document,
    table_of_entry,
    validated,
)
from gas.table import Table, TableMaker, table_of, table_on

__all__ = ["Artefact", "load", "save"]

Solver = Table | nn.Module


@dataclass(frozen=True)
class Artefact:
    """A family of tables as read from a file.

    Attributes:
        document: every field of the file.
        source: path or description of the file, for messages.
        weights: the tensors of its residuals, by their names in the file beside it.
    """

    document: Document
    source: str
    weights: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        """Return source, NFE and model; the schedule alone may have a thousand numbers."""
        nfes = ", ".join(map(str, self.nfes))
        return f"Artefact({self.source!r}, NFE {nfes}, model {(self.document.model or {}).get('name')!r})"

    @property
    def nfes(self) -> list[int]:
        """The NFE that have a table without branches, ascending."""
        return sorted(entry.nfe for entry in self.document.solvers if entry.branches is None)

    @property
    def forwards(self) -> list[int]:
        """The numbers of forward passes that have a table with branches, ascending."""
        return sorted(entry.nfe for entry in self.document.solvers if entry.branches is not None)

    def check_nfes(self, use: str) -> None:
        """Refuse a file of tables with branches only, for a use that evaluates the denoiser itself."""
        if not self.nfes:
            raise UserError(
                f"{self.source} has tables with branches only, of {brief(self.forwards)} forward passes, which {use} "
                "cannot run: train some NFE too"
            )

    @property
    def schedule(self) -> Schedule | None:
        """The forward process of the tables, if the file names it."""
        return None if self.document.schedule is None else schedule_from_config(self.document.schedule)

    def write(self, path: str | Path) -> None:
        """Write the solver file, atomically; before it, its residuals to a ``.safetensors`` file beside it.

        Its name ends with its hash: an interrupt between the two leaves a file that is replaced with its own residuals.
        """
        document = self.document
        if document.weights is not None:
            data = safetensors_bytes(self.weights, {})
            weights = _weights_file(data, Path(path).stem)
            write_bytes(Path(path).with_name(weights.file), data)
            document = document.model_copy(update={"weights": weights})
        write_text(path, _dumps(add_checksum(document.model_dump(mode="json", exclude_none=True))))

    def entry(self, nfe: int | None = None, *, forwards: int | None = None) -> Entry:
        """Return all fields of the table of one NFE, or of the table with branches of so many forward passes."""
        if (nfe is None) == (forwards is None):
            raise UserError("name a table by nfe or by forwards, one of them")
        for entry in self.document.solvers:
            if (entry.nfe == nfe and entry.branches is None) or (entry.nfe == forwards and entry.branches):
                return entry
        wanted = f"NFE {nfe}" if forwards is None else f"{forwards} forward passes"
        has = [f"NFE {', '.join(map(str, self.nfes))}"] if self.nfes else []
        has += [f"forward passes {', '.join(map(str, self.forwards))}"] if self.forwards else []
        raise UserError(f"{self.source} has no table for {wanted}; it has {' and '.join(has)}")

    def table(
        self, nfe: int | None = None, *, forwards: int | None = None, interpolate: bool = False
    ) -> Table:
        """Return the table of one NFE, or the table with branches of so many forward passes.

        Args:
            nfe: network evaluations.
            forwards: forward passes of the network, in place of ``nfe``.
            interpolate: where the file has no such NFE, interpolate its neighbors (:mod:`gas.learned.interpolation`).
        """
        if interpolate and nfe is not None and (around := self.neighbours(nfe)):
            schedule, t_end = self._process()
            return interpolated(schedule, self.table(around[0]), self.table(around[1]), nfe, t_end)
        return table_of_entry(self.entry(nfe, forwards=forwards), self.weights)

    def at(self, guidance: float) -> Artefact:
        """Return the solvers of one guidance scale, as a file for that scale alone has them.

        Args:
            guidance: a scale that the file serves; a file without a range serves one.

        Raises:
            UserError: when the file does not serve the scale.
        """
        document = self.document
        if not document.serves(guidance):
            raise UserError(
                f"{self.source} serves guidance {document.served}, got {guidance:g}: train it for that"
            )
        if document.guidance_range is None:
            return self
        schedule, t_end = self._process()
        entries = []
        for entry in document.solvers:
            coefficients = [table_of_entry(part) for part in (entry, *(entry.terms or ()))]
            solver = GuidanceBNS(
                schedule, coefficients, t_end, scales=document.scales, reference=document.guidance
            )
            numbers = Term.of(table_of(solver, guidance)).model_dump()
            entries.append(entry.model_copy(update={**numbers, "terms": None, "measured": {}}))
        changes = {"guidance": guidance, "guidance_range": None, "solvers": entries}
        return replace(self, document=document.model_copy(update=changes))

    def neighbours(self, nfe: int) -> tuple[int, int] | None:
        """Return the nearest NFE with a table below and above one without, ``None`` for an NFE with a table.

        An NFE outside of those with a table is refused.
        """
        below, above = [n for n in self.nfes if n < nfe], [n for n in self.nfes if n > nfe]
        if nfe in self.nfes or not below or not above:
            self.entry(nfe)
            return None
        return below[-1], above[0]

    def solver(self, nfe: int) -> GeneralizedSolver:
        """Return the table as a Generalized Solver, to inspect or to train further; the file must name its schedule."""
        (schedule, t_end), entry = self._process(), self.entry(nfe)
        return GeneralizedSolver.from_table(
            schedule, self.table(nfe), t_end, t=entry.nominal, theory=entry.theory
        )

    def _process(self) -> tuple[Schedule, float]:
        if self.schedule is None or self.document.t_end is None:
            raise UserError(f"{self.source} does not say its schedule and t_end: it has tables, not solvers")
        return self.schedule, self.document.t_end

    def check(self, model: Model, guidance: float = 1.0, *, transfer: bool = False) -> None:
        """Refuse a model that the tables were not made for.

        Args:
            model: to sample with them.
            guidance: its guidance scale.
            transfer: accept the tables of another network with the same samples, schedule and guidance.

        Raises:
            UserError: names each difference (:func:`gas.compatibility.differences`), a weight beyond float32, or what
                samples its residuals are for.
        """
        if differences := model_differences(self.document, model, guidance, transfer=transfer):
            raise UserError(f"{self.source} was made for another model or use: {'; '.join(differences)}")
        for entry in self.document.solvers:
            rows = [row for part in (entry, *(entry.terms or ())) for row in (*part.states, *part.outputs)]
            largest = max((weight for row in rows for weight in row), key=abs)
            if abs(largest) > torch.finfo(torch.float32).max:
                raise UserError(
                    f"{self.source}: NFE {entry.nfe} has a weight that float32 does not hold, {largest:g}"
                )
            _check_residuals(table_of_entry(entry, self.weights), model)


def load(path: str | Path) -> Artefact:
    """Read a solver file; nothing in it is executed. One without checksum is warned of.

    Raises:
        UserError: for anything but a well-formed file of a known version, and for one that was changed since it was
            written: one line that names the problem and its place.
    """
    path = Path(path)
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"solver file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != "gas-solver":
        raise UserError(f'{path} is not a solver file: it lacks "format": "gas-solver"')
    if content.get("version") != 1:
        raise UserError(
            f"solver file {path} has version {brief(content.get('version'))}, this library reads version 1: "
            "upgrade gas-solver or export the file again"
        )
    document = parse_document(content, f"solver file {path}")
    verify_checksum(content, f"solver file {path}")
    return Artefact(document, str(path), _read_weights(path, document))


def _read_weights(path: Path, document: Document) -> dict[str, Tensor]:
    """Return the tensors of the file beside a solver file, after building every residual of theirs."""
    if (expected := document.weights) is None:
        return {}
    beside = path.with_name(expected.file)
    if not beside.exists():
        raise UserError(
            f"{path} needs {beside.name} beside it, which has its residuals: put both into one folder"
        )
    with explained(f"{beside}, the residuals of {path.name}"):
        if beside.stat().st_size != expected.bytes or sha256(beside) != expected.sha256:
            raise UserError(
                "is another file than was written with it: put both into one folder, or save them again"
            )
        weights, _ = read_safetensors(beside, MAX_WEIGHTS_BYTES)
        known = tuple(entry.prefix(part.row) for entry in document.solvers for part in entry.residuals or ())
        for name, x in weights.items():
            if not name.startswith(known):
                raise UserError(f"the tensor {brief(name)} of {x.dtype} is no residual's")
            _check_numbers(name, x)
        for entry in document.solvers:
            table_of_entry(entry, weights)
    return weights


def _check_numbers(name: str, x: Tensor) -> None:
    """Refuse a tensor of a residual that files do not hold."""
    if x.dtype not in (torch.float32, torch.float64):
        raise UserError(f"the tensor {brief(name)} of {x.dtype} is no residual's: float32 or float64 is")
    if not bool(x.isfinite().all()) or (name.endswith("scales") and not bool((x > 0).all())):
        raise UserError(f"the tensor {brief(name)} has numbers out of range")


@runtime_checkable
class Learned(Protocol):
    """A solver with a report of its training, as :func:`gas.distill` yields last."""

    @property
    def solver(self) -> Solver: ...
    @property
    def start(self) -> str: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def measured(self) -> Mapping[str, float]: ...


# Accepted by `save`; of a solver by name, its table on the schedule of ``model`` is written.
Saved = Solver | TableMaker | Learned


def save(
    path: str | Path | None,
    solvers: Saved | Sequence[Saved] | Mapping[int, Saved],
    *,
    model: Model | None = None,
    guidance: float | None = None,
    teacher: Mapping[str, Any] | None = None,
    loss: str | None = None,
    training: Mapping[str, Any] | None = None,
    starts: Mapping[int, str] | None = None,
    measured: Mapping[int, Mapping[str, float]] | None = None,
) -> Artefact:
    """Write a table, a solver or a family of them (one for each NFE) to a JSON file, atomically; return its content.

    Args:
        path: the file, usually ``*.json``; ``None`` writes none.
        solvers: one table, solver module or solver by name (:class:`gas.Classical`, whose table on the schedule of
            ``model`` is written), or several of different NFE; or results of :func:`gas.distill`, which also supply
            the guidance, teacher, loss, training, start and measurements that are not given.
        model: the model they are for; the file will refuse others.
        guidance: the guidance scale they are for; 1, by default, is none. Solvers of a range have their reference.
        teacher: description of the teacher in plain JSON.
        loss: name of the training loss.
        training: settings of the training in plain JSON.
        starts: by NFE, of tables without branches, the classical solver that training started from.
        measured: by NFE, of tables without branches, named measurements.

    Raises:
        UserError: when two have the same NFE, a key is not its solver's NFE or no solver's, solvers and model disagree
            on schedule or t_end, learned solvers were made in different ways, or a value is not finite or not JSON.
    """
    if guidance is not None:
        guidance = number("guidance", guidance, "(-inf, inf)")
    family = _family(solvers, model)
    nfes = [table.nfe for _, table, _ in family if table.branches is None]
    starts, measured = _by_nfe("starts", starts, nfes), _by_nfe("measured", measured, nfes)
    scales, guidance = _common_scales([solver for solver, _, _ in family], guidance)
    provenance = _common_provenance([report.provenance for _, _, report in family if report is not None])
    schedule, t_end = _common_process([solver for solver, _, _ in family], model)
    training = provenance.get("training", {}) if training is None else training
    with validated("this solver file"):
        entries = [_entry(*member, starts, measured) for member in family]
        weights = _weights([table for _, table, _ in family], entries, model)
        document = Document(
            schedule=schedule.config() if schedule else None,
            t_end=t_end,
            model=_plain("the fingerprint of model", model.fingerprint()) if model else None,
            guidance=provenance.get("guidance", 1.0) if guidance is None else guidance,
            guidance_range=scales,
            teacher=_plain("teacher", teacher or provenance.get("teacher") or {}) or None,
            loss=provenance.get("loss") if loss is None else loss,
            training=_plain("training", training),
            versions={"gas-solver": gas.__version__, "torch": torch.__version__},
            solvers=entries,
            weights=_weights_file(safetensors_bytes(weights, {}), "solver") if weights else None,
        )
    artefact = Artefact(document, "this solver" if path is None else str(path), weights)
    if path is not None:
        artefact.write(path)
    return artefact


def _by_nfe(name: str, given: Mapping[int, Any] | None, nfes: Sequence[int]) -> Mapping[int, Any]:
    """Return what was given for each NFE, nothing by default; refuse an NFE that is not saved."""
    of_type(name, given or {}, Mapping, "an object by NFE")
    if unknown := [nfe for nfe in given or {} if nfe not in nfes]:
        raise UserError(f"{name} must be by NFE of the tables, {brief(nfes)}, got {brief(unknown[0])}")
    return given or {}


def _plain(name: str, description: Any) -> dict[str, Any]:
    """Return a description as its file has it; refuse what JSON does not hold."""
    of_type(name, description, Mapping, "an object of plain JSON")
    try:
        return dict(plain_json(to_jsonable_python(dict(description))))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be plain JSON: {error_text(error)}") from error


def _family(solvers: Any, model: Model | None) -> list[tuple[Solver, Table, Learned | None]]:
    """Return solvers with tables and reports, ascending in NFE, those with branches last; tables for names."""
    if isinstance(solvers, Mapping):
        listed = list(solvers.values())
    elif isinstance(solvers, (nn.Module, str, Learned)) or not isinstance(solvers, Iterable):
        listed = [solvers]
    else:
        listed = list(solvers)
    reports = [each if isinstance(each, Learned) else None for each in listed]
    bare = [report.solver if report else _solver(x, model) for x, report in zip(listed, reports, strict=True)]
    tables = [table_of(solver) for solver in bare]
    nfes = [table.nfe for table in tables]
    keys = [(table.branches is not None, table.nfe) for table in tables]
    if len(set(keys)) != len(keys) or not keys:
        raise UserError(f"a solver file holds one table for each NFE, got NFE {nfes}")
    if isinstance(solvers, Mapping) and list(solvers) != nfes:
        raise UserError(f"solvers are keyed by their NFE, got keys {list(solvers)} for NFE {nfes}")
    return [(bare[i], tables[i], reports[i]) for i in sorted(range(len(keys)), key=keys.__getitem__)]


def _solver(solver: Any, model: Model | None) -> Solver:
    if isinstance(solver, (Table, nn.Module)):
        return solver
    kind = type(solver).__name__
    if isinstance(solver, Artefact) or not callable(getattr(solver, "table", None)):
        wanted = "gas.Table, gas.Classical, learned solver or several of them"
        raise UserError(f"solvers must be a {wanted}, got {kind}")
    if model is None:
        raise UserError(
            f"the table of a {kind} depends on a schedule: give model=, or save solver.table(schedule)"
        )
    return table_on(solver, model.schedule)


def _common_provenance(provenances: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    for other in provenances[1:]:
        if wrong := [name for name in provenances[0] if other.get(name) != provenances[0][name]]:
            raise UserError(
                f"solvers of one file share how they were made, but their {wrong[0]} differ: save one a file"
            )
    return provenances[0] if provenances else {}


def _common_process(family: Sequence[Solver], model: Model | None) -> tuple[Schedule | None, float | None]:
    """Return the schedule and t_end that all learned solvers and the model share."""
    learned: list[Any] = [s for s in family if isinstance(s, nn.Module) and hasattr(s, "schedule")]
    processes = [(each.schedule, each.t_end) for each in (*learned, *([] if model is None else [model]))]
    for schedule, t_end in processes[1:]:
        if (schedule.config(), t_end) != (processes[0][0].config(), processes[0][1]):
            raise UserError(
                "the solvers of one file and their model share schedule and t_end, got "
                f"{processes[0][0]} to {processes[0][1]:g} and {schedule} to {t_end:g}"
            )
    return processes[0] if processes else (None, None)


def _common_scales(
    family: Sequence[Solver], guidance: float | None
) -> tuple[list[float] | None, float | None]:
    """Return the range of guidance scales that all solvers share, if one has any, and their reference scale."""
    ranges = {
        (each.first, each.last, each.reference) if isinstance(each, GuidanceBNS) else None for each in family
    }
    if len(ranges) > 1:
        raise UserError("the solvers of one file serve the same guidance scales: save one a file")
    if (common := ranges.pop()) is None:
        return None, guidance
    if guidance is not None and guidance != common[2]:
        raise UserError(
            f"guidance of a range's file is its reference scale, {common[2]:g}, got {guidance:g}: leave it out; "
            f"at({guidance:g}) of the file is for that scale alone"
        )
    return [common[0], common[1]], common[2]


def _entry(
    solver: Solver,
    table: Table,
    report: Learned | None,
    starts: Mapping[int, str],
    measured: Mapping[int, Mapping[str, float]],
) -> Entry:
    if table.branches is not None:  # NFE are of the others
        starts, measured = {}, {}
    start = starts.get(table.nfe, report.start if report else None)
    of_type("a start", start, str | None, "the name of a solver")
    numbers = measured.get(table.nfe, report.measured() if report else {})
    of_type("what was measured", numbers, Mapping, "numbers by name")
    coefficients = solver.coefficients()[1:] if isinstance(solver, GuidanceBNS) else ()
    return Entry(
        nfe=table.nfe,
        kind="table" if isinstance(solver, Table) else type(solver).__name__,
        **Term.of(table).model_dump(),
        terms=[Term.of(q) for q in coefficients] or None,
        branches=None if table.branches is None else list(table.branches),
        residuals=[RowResidual(row=row, config=r.config()) for row, r in (table.residuals or {}).items()]
        or None,
        theory=getattr(solver, "theory", True),
        nominal=solver.t.tolist() if isinstance(solver, GeneralizedSolver) else None,
        start=start,
        measured={
            name: number(f"the measured {name} of NFE {table.nfe}", value, "(-inf, inf)")
            for name, value in numbers.items()
        },
    )


def _check_residuals(table: Table, model: Model) -> None:
    """Refuse residuals of other samples than a model's."""
    for residual in (table.residuals or {}).values():
        residual.cost(model.sample_shape)


def _weights(tables: Sequence[Table], entries: Sequence[Entry], model: Model | None) -> dict[str, Tensor]:
    """Return the tensors of all residuals by their names in a weights file."""
    weights: dict[str, Tensor] = {}
    for table, entry in zip(tables, entries, strict=True):
        if model is not None:
            _check_residuals(table, model)
        for row, residual in (table.residuals or {}).items():
            weights |= {f"{entry.prefix(row)}{name}": x.cpu() for name, x in residual.state_dict().items()}
    for name, x in weights.items():
        _check_numbers(name, x)
    return weights


def _weights_file(data: bytes, stem: str) -> WeightsFile:
    """Describe a weights file; characters of the stem that some file system refuses are replaced."""
    digest = hashlib.sha256(data).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:100]
    return WeightsFile(file=f"{name}-{digest[:12]}.safetensors", bytes=len(data), sha256=digest)


def _dumps(content: Any, end: str = "\n") -> str:
    """Return JSON with one line for each list of numbers: short, and readable in a diff."""
    nested = isinstance(content, list) and any(isinstance(value, (dict, list)) for value in content)
    if not content or not (nested or isinstance(content, dict)):
        return json.dumps(content, allow_nan=False)
    line = f"{end}  "  # json's own indent is written in Python, and takes four times as long
    if nested:
        parts = (_dumps(value, line) for value in content)
    else:
        parts = (f"{json.dumps(name)}: {_dumps(value, line)}" for name, value in content.items())
    first, last = "[]" if nested else "{}"
    return f"{first}{line}{f',{line}'.join(parts)}{end}{last}"
