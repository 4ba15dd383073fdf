"""The JSON schema of solver files: what they may hold, and in which bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from gas.arguments import MAX_NFE, integer, number, of_type, shape
from gas.display import brief
from gas.errors import UserError
from gas.grids.analytic import as_grid
from gas.io import CHECKSUM, strip_prefix
from gas.learned.guidance import MAX_DEGREE, in_scales
from gas.residual import Residual
from gas.schedule import check_t_end, schedule_from_config
from gas.table import Table

# Messages show the first error only; a list of a million wrong numbers would otherwise report them all.
_FailFast = Field(fail_fast=True)
Numbers = Annotated[list[float], _FailFast]
_NAMES = 1000  # most entries of an object with free names
# Of one file: more than a residual at every row of each of 2 to 20 evaluations, and as many numbers in float32 or 64.
_RESIDUALS, MAX_WEIGHTS_BYTES = 256, 64 << 20


class _Strict(BaseModel):
    """Refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, content: Any) -> Any:
        """Refuse objects of very many names before each name is validated."""
        if isinstance(content, Mapping):
            objects = [content, *(content.get(name) for name in ("measured", "versions"))]
            if any(isinstance(x, Mapping) and len(x) > _NAMES for x in objects):
                raise UserError(f"an object has more than {_NAMES} names")
        return content


class Term(_Strict):
    """The coefficients of one power of the guidance scale's coordinate; rows as in :class:`Entry`."""

    times: Numbers
    states: Annotated[list[Numbers], _FailFast]
    outputs: Annotated[list[Numbers], _FailFast]

    @classmethod
    def of(cls, table: Table) -> Term:
        """Return the numbers of a table."""
        states, outputs = (
            [row[: n + 1] for n, row in enumerate(matrix.tolist())]
            for matrix in (table.states, table.outputs)
        )
        return cls(times=table.times.tolist(), states=states, outputs=outputs)


class RowResidual(_Strict):
    """The residual of one row, -1 for the start. Its numbers are tensors of the weights file (:attr:`Entry.prefix`)."""

    row: int = Field(ge=-1, lt=MAX_NFE)
    config: dict[str, str | int] = Field(max_length=16)
    """As :meth:`gas.Residual.config` returns it."""


class WeightsFile(_Strict):
    """The safetensors file beside this one, with the numbers of all residuals."""

    file: str = Field(pattern=r"^[^/\\:\x00]{1,200}\.safetensors$")
    bytes: int = Field(ge=0, le=MAX_WEIGHTS_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Entry(_Strict):
    """One table. Row n of ``states`` and ``outputs`` has the n + 1 weights of row n of the table."""

    nfe: int = Field(ge=1, le=MAX_NFE)
    kind: str
    times: Numbers
    states: Annotated[list[Numbers], _FailFast]
    outputs: Annotated[list[Numbers], _FailFast]
    branches: Annotated[list[str], _FailFast] | None = None
    """The branch of the denoiser that each row evaluates, in a table whose rows are forward passes."""
    theory: bool = True
    """Whether a Generalized Solver's coefficients follow its times."""
    nominal: Numbers | None = None
    """The N + 1 nominal times of a Generalized Solver; with the table they determine its parameters."""
    start: str | None = None
    measured: dict[str, float] = {}
    terms: Annotated[list[Term], _FailFast, Field(min_length=1, max_length=MAX_DEGREE)] | None = None
    """With ``guidance_range``: the terms of u, u^2, .. of the table, u = (guidance - document's) / (last - first)."""
    residuals: Annotated[list[RowResidual], _FailFast, Field(min_length=1, max_length=_RESIDUALS)] | None = (
        None
    )
    """Of a lifted table, whose rows they are added to."""

    def prefix(self, row: int) -> str:
        """Return the beginning of the names that the tensors of a row's residual have in the weights file."""
        return f"{'nfe' if self.branches is None else 'forwards'}-{self.nfe}.row-{row}."

    @model_validator(mode="after")
    def _shapes(self) -> Entry:
        n = self.nfe
        for part in (self, *(self.terms or ())):
            _check_shapes(part, n)
        if min(self.times) < 0:
            raise UserError(f"times of NFE {n} must not be negative, got {min(self.times):g}")
        if self.branches is not None and (len(self.branches) != n or not all(self.branches)):
            raise UserError(f"branches of NFE {n} must be {n} names, got {brief(self.branches)}")
        if self.nominal is not None:
            if len(self.nominal) != n + 1:
                raise UserError(f"nominal times of NFE {n} must be {n + 1} numbers, got {len(self.nominal)}")
            as_grid(self.nominal)
        rows = [part.row for part in self.residuals or ()]
        if len(set(rows)) != len(rows) or (rows and self.terms):
            raise UserError(
                f"a row of NFE {n} may have one residual, and none with terms, got rows {brief(rows)}"
            )
        return self


class Document(_Strict):
    """The whole file, version 1."""

    format: Literal["gas-solver"] = "gas-solver"
    version: Literal[1] = 1
    schedule: dict[str, Any] | None = None
    t_end: float | None = Field(default=None, ge=0, lt=1)
    model: dict[str, Any] | None = None
    guidance: float = 1.0
    guidance_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """First and last guidance scale of tables with ``terms``."""
    teacher: dict[str, Any] | None = None
    loss: str | None = None
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}
    solvers: Annotated[list[Entry], _FailFast] = Field(min_length=1)
    weights: WeightsFile | None = None
    """Of the residuals, where tables have some."""

    @model_validator(mode="after")
    def _consistent(self) -> Document:
        for branched, name in ((False, "NFE"), (True, "number of forward passes")):
            counts = [entry.nfe for entry in self.solvers if (entry.branches is not None) == branched]
            if len(set(counts)) != len(counts):
                raise UserError(f"each {name} may have one table, got {name} {brief(sorted(counts))}")
        if self.schedule is not None:
            schedule = schedule_from_config(self.schedule)
            if self.t_end is not None:
                check_t_end(schedule, self.t_end)
            first, last = schedule.t_min, schedule.t_max
            if outside := [t for x in self.solvers for t in x.times if not first <= t <= last]:
                limits = f"[{first:.6g}, {last:g}]"
                raise UserError(
                    f"times on schedule {self.schedule['kind']} lie in {limits}, got {outside[0]:g}"
                )
        self._check_range()
        residuals = sum(len(entry.residuals or ()) for entry in self.solvers)
        if residuals > _RESIDUALS or (residuals > 0) != (self.weights is not None):
            raise UserError(
                f"residuals, at most {_RESIDUALS}, and weights need each other, got {residuals} residuals"
            )
        _check_descriptions(self.model or {}, self.teacher or {})
        seeds = self.training.get("seeds", [0, 0])
        if not (isinstance(seeds, list) and len(seeds) == 2 and all(type(seed) is int for seed in seeds)):
            raise UserError("training.seeds must be two integers, first and last")
        json.dumps([self.model, self.teacher, self.training], default=str, allow_nan=False)
        return self

    def _check_range(self) -> None:
        """Refuse a range of guidance scales without their terms, terms without a range, or an impossible range."""
        if any((entry.terms is None) != (self.guidance_range is None) for entry in self.solvers):
            raise UserError("guidance_range and the terms of every table need each other")
        if self.guidance_range is not None:
            first, last = self.guidance_range
            if not first < last or not first <= self.guidance <= last:
                raise UserError(
                    f"guidance must lie in a range, got {self.guidance:g} in {first:g} to {last:g}"
                )
            if self.schedule is None or self.t_end is None:
                raise UserError("guidance_range needs the schedule and t_end, which bound the times")

    @property
    def scales(self) -> tuple[float, float]:
        """First and last guidance scale that the tables serve."""
        first, last = self.guidance_range or (self.guidance, self.guidance)
        return first, last

    def forward_passes(self, entry: Entry) -> int | None:
        """Return the forward passes a sample of a table, ``None`` where every evaluation is one."""
        if entry.branches is not None:
            return entry.nfe
        is_input = (self.model or {}).get("guidance") == "input"
        return None if is_input or self.scales == (1.0, 1.0) else 2 * entry.nfe

    def serves(self, guidance: float) -> bool:
        """Return whether the tables are for a guidance scale."""
        return in_scales(guidance, self.scales)

    @property
    def served(self) -> str:
        """The guidance scales for messages: ``2``, or ``1 to 8``."""
        return " to ".join(f"{scale:g}" for scale in dict.fromkeys(self.scales))


def _check_descriptions(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Check the types and ranges of those entries of a model and a teacher that the library reads."""
    original = teacher.get("model", {})
    of_type("teacher.model", original, Mapping, "an object")
    for facts, prefix in ((model, "model"), (original, "teacher.model")):
        for name in {"name", "sha256", "prediction", "quantize"} & facts.keys():
            of_type(f"{prefix}.{name}", facts[name], str, "text")
        if facts.get("shift") is not None:
            number(f"{prefix}.shift", facts["shift"], "(0, inf)")
    for name in {"solver", "grid"} & teacher.keys():
        of_type(f"teacher.{name}", teacher[name], str, "text")
    if "sample_shape" in model:
        shape("model.sample_shape", model["sample_shape"])
    if "nfe" in teacher:
        integer("teacher.nfe", teacher["nfe"], 1, MAX_NFE)
    if "t_end" in teacher:
        number("teacher.t_end", teacher["t_end"], "[0, 1)")


def parse_document(content: Mapping[str, Any], name: str) -> Document:
    """Validate the content of a solver file, with or without its checksum, which is not verified."""
    with validated(name):
        return Document.model_validate({key: value for key, value in content.items() if key != CHECKSUM})


@contextmanager
def validated(name: str) -> Iterator[None]:
    """Turn the errors of a model of this module into one line that names the first field."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"][:6]) or "file"
        problem = " ".join(f"{place}: {first['msg']}"[:200].split())
        raise UserError(f"{name}: {problem}") from error


def table_of_entry(part: Entry | Term, weights: Mapping[str, Tensor] | None = None) -> Table:
    """Return the numbers of an entry, or of one of its terms, as a table; ``weights`` are those of its residuals."""
    times, branches = torch.tensor(part.times, dtype=torch.float64), getattr(part, "branches", None)
    residuals = {}
    if isinstance(part, Entry):
        for each in part.residuals or ():
            state = strip_prefix(weights or {}, part.prefix(each.row))
            residuals[each.row] = Residual.from_state(each.config, state)
    branches = branches and tuple(branches)
    return Table(times, _square(part.states), _square(part.outputs), branches, residuals or None)


def _check_shapes(part: Entry | Term, n: int) -> None:
    """Refuse anything but N times and triangular rows."""
    if len(part.times) != n:
        raise UserError(f"times of NFE {n} must be {n} numbers, got {len(part.times)}")
    for name in ("states", "outputs"):
        lengths = [len(row) for row in getattr(part, name)]
        if lengths != list(range(1, n + 1)):
            raise UserError(
                f"{name} of NFE {n} must have rows of 1 to {n} numbers, got rows of {brief(lengths)}"
            )


def _square(rows: list[list[float]]) -> Tensor:
    square = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for n, row in enumerate(rows):
        square[n, : n + 1] = torch.tensor(row, dtype=torch.float64)
    return square
