"""The schema of the solver file: what it may hold, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gas.arguments import MAX_NFE, integer, number, of_type, shape
from gas.grids import as_grid
from gas.io import brief
from gas.schedule import check_t_end, schedule_from_config

__all__ = ["Document", "Entry", "compact", "document_of"]

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
                raise ValueError(f"an object has more than {_NAMES} names")
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
            raise ValueError(f"times of NFE {n} must be {n} numbers, got {len(self.times)}")
        if min(self.times) < 0:
            raise ValueError(f"times of NFE {n} must not be negative, got {min(self.times):g}")
        for name in ("states", "outputs"):
            lengths = [len(row) for row in getattr(self, name)]
            if lengths != list(range(1, n + 1)):
                raise ValueError(
                    f"{name} of NFE {n} must have rows of 1 to {n} numbers, got rows of {brief(lengths)}"
                )
        if self.nominal is not None:
            if len(self.nominal) != n + 1:
                raise ValueError(f"nominal times of NFE {n} must be {n + 1} numbers, got {len(self.nominal)}")
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
            raise ValueError(f"each NFE may have one table, got NFE {brief(sorted(listed))}")
        if self.schedule is not None:
            schedule = schedule_from_config(self.schedule)
            if self.t_end is not None:
                check_t_end(schedule, self.t_end)
            limits = schedule.t_min, schedule.t_max
            outside = [t for x in self.solvers for t in x.times if not limits[0] <= t <= limits[1]]
            if outside:
                raise ValueError(
                    f"times on schedule {self.schedule['kind']} lie in [{limits[0]:.6g}, {limits[1]:g}], "
                    f"got {outside[0]:g}"
                )
        _check_model(self.model or {})
        _check_teacher(self.teacher or {})
        seeds = self.training.get("seeds", [0, 0])
        if not (isinstance(seeds, list) and len(seeds) == 2 and all(type(seed) is int for seed in seeds)):
            raise ValueError("training.seeds must be two integers, first and last")
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


def document_of(content: Mapping[str, Any], name: str) -> Document:
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
        raise ValueError(f"{name}: {problem}") from error


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
