"""The schema of the solver file: what it may hold, and nothing else."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gas.grids import as_grid
from gas.schedule import schedule_from_config

__all__ = ["Document", "Entry", "compact"]


class _Strict(BaseModel):
    """Refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Entry(_Strict):
    """One table. Row n of ``states`` and ``outputs`` has the n + 1 weights of row n of the table."""

    nfe: int = Field(ge=1)
    kind: str
    times: list[float]
    states: list[list[float]]
    outputs: list[list[float]]
    theory: bool = True
    """Whether a Generalized Solver's coefficients follow its times."""
    nominal: list[float] | None = None
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
                    f"{name} of NFE {n} must have rows of 1 to {n} numbers, got rows of {lengths}"
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
    solvers: list[Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Document:
        listed = [entry.nfe for entry in self.solvers]
        if len(set(listed)) != len(listed):
            raise ValueError(f"each NFE may have one table, got NFE {sorted(listed)}")
        if self.schedule is not None:
            latest = schedule_from_config(self.schedule).t_max
            late = [t for entry in self.solvers for t in entry.times if t > latest]
            if late:
                raise ValueError(
                    f"times on schedule {self.schedule['kind']} end at {latest:g}, got {late[0]:g}"
                )
        json.dumps([self.model, self.teacher, self.training], default=str, allow_nan=False)
        return self


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
