"""One cell of a comparison: one solver at one NFE, made and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from gas.compare import Comparison
from gas.metrics import PRDC, Distribution
from gas.table import Table

__all__ = ["Cell"]


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
