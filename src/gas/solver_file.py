"""Solver files: the JSON schema of learned tables, saving, loading, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

import gas
from gas.arguments import MAX_NFE, integer, number, of_type, shape
from gas.display import brief
from gas.errors import UserError
from gas.grids.analytic import as_grid
from gas.io import CHECKSUM, add_checksum, read_json, verify_checksum, write_text
from gas.learned.generalized import GeneralizedSolver
from gas.learned.interpolation import interpolated
from gas.models.protocol import Model
from gas.schedule import Schedule, check_t_end, schedule_from_config
from gas.table import Table, TableMaker, table_of, table_on

__all__ = ["Artefact", "Document", "Entry", "compact", "load", "parse_document", "save"]

Solver = Table | nn.Module


@runtime_checkable
class Learned(Protocol):
    """A solver with a report of its making, as :func:`gas.distill` yields last."""

    @property
    def nfe(self) -> int: ...
    @property
    def solver(self) -> Solver: ...
    @property
    def start(self) -> str: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def measured(self) -> Mapping[str, float]: ...


# What a file is made from; of a solver by name, its table on the schedule of ``model``.
Saved = Solver | TableMaker | Learned

# How a model was asked, not what it is: numbers learned at one precision serve at another.
_ASKED = ("precision", "compiled")
# Which network it is, of those that one solver may serve.
_WHOSE = ("name", "sha256")


@dataclass(frozen=True)
class Artefact:
    """A family of tables as read from a file.

    Attributes:
        document: every field of the file.
        source: where it was read from, for messages.
    """

    document: Document
    source: str

    @property
    def nfes(self) -> list[int]:
        """The NFE that have a table, ascending."""
        return sorted(entry.nfe for entry in self.document.solvers)

    @property
    def schedule(self) -> Schedule | None:
        """The forward process that the tables are for, if the file says."""
        return None if self.document.schedule is None else schedule_from_config(self.document.schedule)

    def write(self, path: str | Path) -> None:
        """Write the solver file, whole or not at all."""
        write_text(path, compact(add_checksum(self.document.model_dump(mode="json", exclude_none=True))))

    def entry(self, nfe: int) -> Entry:
        """Return everything the file says of one NFE.

        Raises:
            ValueError: when the file has no table for it; lists those it has.
        """
        for entry in self.document.solvers:
            if entry.nfe == nfe:
                return entry
        raise UserError(
            f"{self.source} has no table for NFE {nfe}; it has NFE {', '.join(map(str, self.nfes))}"
        )

    def table(self, nfe: int, *, interpolate: bool = False) -> Table:
        """Return the table of one NFE.

        Args:
            nfe: network evaluations.
            interpolate: make one of its neighbours' where the file has none (:mod:`gas.learned.interpolation`).

        Raises:
            ValueError: when the file has no table for it, nor two around it to interpolate; lists those it has.
        """
        around = self.neighbours(nfe) if interpolate else None
        if around is not None:
            schedule, t_end = self._setting()
            return interpolated(schedule, self.table(around[0]), self.table(around[1]), nfe, t_end)
        entry = self.entry(nfe)
        return Table(
            torch.tensor(entry.times, dtype=torch.float64), _square(entry.states), _square(entry.outputs)
        )

    def neighbours(self, nfe: int) -> tuple[int, int] | None:
        """Return the nearest NFE below and above one that the file has no table for, ``None`` where it has.

        Raises:
            ValueError: when it lies outside of those it has.
        """
        below, above = [n for n in self.nfes if n < nfe], [n for n in self.nfes if n > nfe]
        if nfe in self.nfes or not below or not above:
            self.entry(nfe)
            return None
        return below[-1], above[0]

    def solver(self, nfe: int) -> GeneralizedSolver:
        """Return the table as a Generalized Solver, to look into or to train on.

        Raises:
            ValueError: when there is no such table or the file does not say which schedule it is for.
        """
        (schedule, t_end), entry = self._setting(), self.entry(nfe)
        return GeneralizedSolver.from_table(
            schedule, self.table(nfe), t_end, t=entry.nominal, theory=entry.theory
        )

    def _setting(self) -> tuple[Schedule, float]:
        if self.schedule is None or self.document.t_end is None:
            raise UserError(f"{self.source} does not say its schedule and t_end: it has tables, not solvers")
        return self.schedule, self.document.t_end

    def check(self, model: Model, guidance: float = 1.0, *, transfer: bool = False) -> None:
        """Refuse a model that the tables were not made for.

        Args:
            model: to sample with them.
            guidance: that it is sampled with.
            transfer: take those of another network, whose samples, schedule and guidance are the same.

        Raises:
            ValueError: names each thing that differs: model, weights, shape, schedule or guidance; or for weights of
                states and answers that float32 does not hold.
        """
        document, wrong = self.document, []
        here = dict(model.fingerprint())
        passed = (*_ASKED, *(_WHOSE if transfer else ()))
        for key, there in (document.model or {}).items():
            if key not in passed and key in here and here[key] != there:
                wrong.append(f"{key} {_short(there)} (this model: {_short(here[key])})")
        if document.schedule is not None and document.schedule != model.schedule.config():
            wrong.append(f"schedule {document.schedule['kind']} with other parameters than this model's")
        if document.guidance != guidance:
            wrong.append(f"guidance {document.guidance:g} (asked for: {guidance:g})")
        if wrong:
            raise UserError(f"{self.source} was made for another model or use: {'; '.join(wrong)}")
        for entry in document.solvers:
            if abs(entry.largest) > torch.finfo(torch.float32).max:
                told = f"a weight that float32 does not hold, {entry.largest:g}"
                raise UserError(f"{self.source}: NFE {entry.nfe} has {told}")


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
    """Write a table, a solver or a family of them (one for each NFE) to a JSON file; return what was written.

    Numbers keep all their bits. The file appears whole or not at all.

    Args:
        path: the file, usually ``*.json``; ``None`` writes none and only returns what would be in it.
        solvers: one table, solver module or solver by name (:class:`gas.Classical`, whose table on the schedule of
            ``model`` is written), or several of different NFE; or what :func:`gas.distill` yields last,
            which brings the guidance, teacher, loss, training, start and measurements that are not given.
        model: the model they are for; the file will refuse others.
        guidance: the guidance scale they are for; 1, by default, is none.
        teacher: description of the teacher in plain JSON.
        loss: name of the loss they were trained with.
        training: settings of the training in plain JSON.
        starts: by NFE, the classical solver that training started from.
        measured: by NFE, named measurements.

    Raises:
        ValueError: for what is no solver, or one by name without ``model``; when two have the same NFE, a key is not
            its solver's NFE, solvers and model disagree on schedule or t_end, learned solvers were made in different
            ways, or a value is not finite.
    """
    bare, learned = _parted(solvers, model)
    provenance = _shared([each.provenance for each in learned.values()])
    family = _family(bare)
    schedule, t_end = _setting(family, model)
    starts = {nfe: each.start for nfe, each in learned.items()} | dict(starts or {})
    measured = {nfe: each.measured() for nfe, each in learned.items()} | dict(measured or {})
    document = Document(
        schedule=schedule.config() if schedule else None,
        t_end=t_end,
        model=dict(model.fingerprint()) if model else None,
        guidance=provenance.get("guidance", 1.0) if guidance is None else guidance,
        teacher=dict(teacher or provenance.get("teacher") or {}) or None,
        loss=provenance.get("loss") if loss is None else loss,
        training=dict(provenance.get("training", {}) if training is None else training),
        versions={"gas-solver": gas.__version__, "torch": torch.__version__},
        solvers=[_entry(family[nfe], starts.get(nfe), measured.get(nfe, {})) for nfe in sorted(family)],
    )
    artefact = Artefact(document, "this solver" if path is None else str(path))
    if path is not None:
        artefact.write(path)
    return artefact


def load(path: str | Path) -> Artefact:
    """Read a solver file; nothing in it is executed.

    Warns:
        UserWarning: when the file has no checksum.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for anything but a well-formed file of a known version, and for one that was changed since it was
            written: one line that says what and where.
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
    document = parse_document(
        {name: value for name, value in content.items() if name != CHECKSUM}, f"solver file {path}"
    )
    verify_checksum(content, f"solver file {path}")
    artefact = Artefact(document, str(path))
    for nfe in artefact.nfes:
        artefact.table(nfe)
    return artefact


def _parted(solvers: Any, model: Model | None) -> tuple[Any, dict[int, Learned]]:
    """Solvers without the reports around them and with tables for names, and the reports by NFE."""
    if isinstance(solvers, Learned):
        return solvers.solver, {solvers.nfe: solvers}
    if isinstance(solvers, (nn.Module, str)) or not isinstance(solvers, Iterable):
        return _solver(solvers, model), {}
    pairs = list(solvers.items()) if isinstance(solvers, Mapping) else list(enumerate(solvers))
    bare = {key: each.solver if isinstance(each, Learned) else _solver(each, model) for key, each in pairs}
    learned = {each.nfe: each for _, each in pairs if isinstance(each, Learned)}
    return (bare if isinstance(solvers, Mapping) else list(bare.values())), learned


def _solver(solver: Any, model: Model | None) -> Solver:
    if isinstance(solver, (Table, nn.Module)):
        return solver
    if isinstance(solver, Artefact) or not callable(getattr(solver, "table", None)):
        wanted = "gas.Table, gas.Classical, learned solver or several of them"
        raise UserError(f"solvers must be a {wanted}, got {type(solver).__name__}")
    if model is None:
        kind = type(solver).__name__
        raise UserError(
            f"the table of a {kind} depends on a schedule: give model=, or save solver.table(schedule)"
        )
    return table_on(solver, model.schedule)


def _shared(provenances: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one provenance of a file."""
    for other in provenances[1:]:
        if wrong := [name for name in provenances[0] if other.get(name) != provenances[0][name]]:
            raise UserError(
                f"solvers of one file share how they were made, but their {wrong[0]} differ: save one a file"
            )
    return provenances[0] if provenances else {}


def _family(solvers: Solver | Sequence[Solver] | Mapping[int, Solver]) -> dict[int, Solver]:
    if isinstance(solvers, (Table, nn.Module)):
        listed: list[Solver] = [solvers]
    else:
        listed = list(solvers.values()) if isinstance(solvers, Mapping) else list(solvers)
    family = {table_of(solver).nfe: solver for solver in listed}
    if len(family) != len(listed) or not family:
        raise UserError(
            f"a solver file holds one table for each NFE, got NFE {[table_of(s).nfe for s in listed]}"
        )
    if isinstance(solvers, Mapping) and dict(solvers) != family:
        raise UserError(f"solvers are keyed by their NFE, got keys {list(solvers)} for NFE {list(family)}")
    return family


def _setting(family: Mapping[int, Solver], model: Model | None) -> tuple[Schedule | None, float | None]:
    """The one schedule and t_end that all learned solvers and the model share."""
    learned = [s for s in family.values() if isinstance(s, nn.Module) and hasattr(s, "schedule")]
    settings: list[tuple[Any, Any]] = [(s.schedule, s.t_end) for s in learned]
    if model is not None:
        settings.append((model.schedule, model.t_end))
    for schedule, t_end in settings[1:]:
        if (schedule.config(), t_end) != (settings[0][0].config(), settings[0][1]):
            raise UserError(
                "the solvers of one file and their model share schedule and t_end, got "
                f"{settings[0][0]} to {settings[0][1]:g} and {schedule} to {t_end:g}"
            )
    return settings[0] if settings else (None, None)


def _entry(solver: Solver, start: str | None, measured: Mapping[str, float]) -> Entry:
    table = table_of(solver)
    return Entry(
        nfe=table.nfe,
        kind="table" if isinstance(solver, Table) else type(solver).__name__,
        times=table.times.tolist(),
        states=_ragged(table.states),
        outputs=_ragged(table.outputs),
        theory=getattr(solver, "theory", True),
        nominal=solver.t.tolist() if isinstance(solver, GeneralizedSolver) else None,
        start=start,
        measured=dict(measured),
    )


def _ragged(matrix: Tensor) -> list[list[float]]:
    return [row[: n + 1] for n, row in enumerate(matrix.tolist())]


def _square(rows: list[list[float]]) -> Tensor:
    square = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for n, row in enumerate(rows):
        square[n, : n + 1] = torch.tensor(row, dtype=torch.float64)
    return square


def _short(value: Any) -> str:
    text = value[:25] if isinstance(value, str) else brief(value)
    return text if len(text) <= 24 else text[:12] + "..."


"""Network evaluations of the largest table in a file: as many as the published models have training steps."""

# The first error is all that a message shows; a list of a million wrong numbers would otherwise report them all.
_First = Field(fail_fast=True)
Numbers = Annotated[list[float], _First]
_NAMES = 1000  # entries of an object whose names are free


class _Strict(BaseModel):
    """Refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, content: Any) -> Any:
        """Refuse objects of very many names before each of them is checked."""
        if isinstance(content, Mapping):
            objects = [content, *(content.get(name) for name in ("measured", "versions"))]
            if any(isinstance(x, Mapping) and len(x) > _NAMES for x in objects):
                raise UserError(f"an object has more than {_NAMES} names")
        return content


class Entry(_Strict):
    """One table. Row n of ``states`` and ``outputs`` has the n + 1 weights of row n of the table."""

    nfe: int = Field(ge=1, le=MAX_NFE)
    kind: str
    times: Numbers
    states: Annotated[list[Numbers], _First]
    outputs: Annotated[list[Numbers], _First]
    theory: bool = True
    """Whether a Generalized Solver's coefficients follow its times."""
    nominal: Numbers | None = None
    """The N + 1 nominal times of a Generalized Solver; with the table they determine its parameters."""
    start: str | None = None
    measured: dict[str, float] = {}

    @property
    def largest(self) -> float:
        """The weight that is farthest from zero."""
        return max((weight for row in (*self.states, *self.outputs) for weight in row), key=abs)

    @model_validator(mode="after")
    def _shapes(self) -> Entry:
        n = self.nfe
        if len(self.times) != n:
            raise UserError(f"times of NFE {n} must be {n} numbers, got {len(self.times)}")
        if min(self.times) < 0:
            raise UserError(f"times of NFE {n} must not be negative, got {min(self.times):g}")
        for name in ("states", "outputs"):
            lengths = [len(row) for row in getattr(self, name)]
            if lengths != list(range(1, n + 1)):
                raise UserError(
                    f"{name} of NFE {n} must have rows of 1 to {n} numbers, got rows of {brief(lengths)}"
                )
        if self.nominal is not None:
            if len(self.nominal) != n + 1:
                raise UserError(f"nominal times of NFE {n} must be {n + 1} numbers, got {len(self.nominal)}")
            as_grid(self.nominal)
        return self


class Document(_Strict):
    """The whole file, version 1."""

    format: Literal["gas-solver"] = "gas-solver"
    version: Literal[1] = 1
    schedule: dict[str, Any] | None = None
    t_end: float | None = Field(default=None, ge=0, lt=1)
    model: dict[str, Any] | None = None
    guidance: float = 1.0
    teacher: dict[str, Any] | None = None
    loss: str | None = None
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}
    solvers: Annotated[list[Entry], _First] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Document:
        listed = [entry.nfe for entry in self.solvers]
        if len(set(listed)) != len(listed):
            raise UserError(f"each NFE may have one table, got NFE {brief(sorted(listed))}")
        if self.schedule is not None:
            schedule = schedule_from_config(self.schedule)
            if self.t_end is not None:
                check_t_end(schedule, self.t_end)
            limits = schedule.t_min, schedule.t_max
            outside = [t for x in self.solvers for t in x.times if not limits[0] <= t <= limits[1]]
            if outside:
                raise UserError(
                    f"times on schedule {self.schedule['kind']} lie in [{limits[0]:.6g}, {limits[1]:g}], "
                    f"got {outside[0]:g}"
                )
        _check_model(self.model or {})
        _check_teacher(self.teacher or {})
        seeds = self.training.get("seeds", [0, 0])
        if not (isinstance(seeds, list) and len(seeds) == 2 and all(type(seed) is int for seed in seeds)):
            raise UserError("training.seeds must be two integers, first and last")
        json.dumps([self.model, self.teacher, self.training], default=str, allow_nan=False)
        return self


def _check_model(model: Mapping[str, Any]) -> None:
    """Refuse what describes no model: its name and hash are text, its shape positive integers."""
    for name in ("name", "sha256", "prediction"):
        if name in model:
            of_type(f"model.{name}", model[name], str, "text")
    if "sample_shape" in model:
        shape("model.sample_shape", model["sample_shape"])


def _check_teacher(teacher: Mapping[str, Any]) -> None:
    """Refuse what describes no teacher: names are text, NFE an integer, ``t_end`` a time."""
    for name in ("solver", "grid"):
        if name in teacher:
            of_type(f"teacher.{name}", teacher[name], str, "text")
    if "nfe" in teacher:
        integer("teacher.nfe", teacher["nfe"], 1, MAX_NFE)
    if "t_end" in teacher:
        number("teacher.t_end", teacher["t_end"], "[0, 1)")


def parse_document(content: Mapping[str, Any], name: str) -> Document:
    """Return what a solver file holds, checked.

    Args:
        content: of the file, without its checksum.
        name: of the file, for messages.

    Raises:
        ValueError: one line that says what is wrong, and where.
    """
    try:
        return Document.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"][:6]) or "file"
        problem = " ".join(f"{where}: {first['msg']}"[:200].split())
        raise UserError(f"{name}: {problem}") from error


def compact(value: Any, depth: int = 0) -> str:
    """Return JSON with one line a list of numbers: short, and readable in a diff."""
    inner = "  " * (depth + 1)
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + "  " * depth + "}"
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        items = [inner + compact(v, depth + 1) for v in value]
        return "[\n" + ",\n".join(items) + "\n" + "  " * depth + "]"
    return json.dumps(value, allow_nan=False)
