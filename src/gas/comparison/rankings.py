"""Classical solvers on every grid, measured on some validation pairs, once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gas.catalogue import Classical, candidates
from gas.files import write_text
from gas.io import read_json, sealed, unsealed
from gas.losses import Loss
from gas.model import Model
from gas.pairs import Pairs
from gas.start import rank_classical

__all__ = ["Rankings"]


class Rankings:
    """Mean losses of classical solvers against the teacher, kept in a file.

    Args:
        model: whose denoiser to ask.
        pairs: validation pairs to measure on.
        loss: distance to the teacher.
        asked: what decides the losses, in plain JSON: a file of other settings is made anew.
        path: the file; without it, losses are kept in memory only.
    """

    def __init__(
        self, model: Model, pairs: Pairs, loss: Loss, asked: Mapping[str, Any], path: Path | None = None
    ) -> None:
        self.model, self.pairs, self.loss, self.path = model, pairs, loss, path
        self.asked = json.loads(json.dumps(asked))
        self.losses: dict[str, float | None] = {}
        if path is not None and path.exists():
            self._read(path)

    def of(
        self, nfe: int, solvers: Sequence[str], grids: Sequence[str] = ()
    ) -> list[tuple[Classical, float]]:
        """Return these solvers on these grids, or on all that are raced, best first; what blows up comes last."""
        entries = list(candidates(self.model.schedule, nfe, self.model.t_end, solvers=solvers, grids=grids))
        todo = [entry for entry in entries if _key(entry[0]) not in self.losses]
        for measured in self._rank(nfe, todo):
            self.losses[_key(measured[0])] = measured[1] if math.isfinite(measured[1]) else None
        if todo and self.path is not None:
            write_text(self.path, json.dumps(sealed({"asked": self.asked, "losses": self.losses})))
        return _sorted([(classical, self.losses[_key(classical)]) for classical, _ in entries])

    def on(self, nfe: int, solvers: Sequence[str], t: Tensor) -> list[tuple[Classical, float]]:
        """Return these solvers on a grid of one's own, best first."""
        entries = list(candidates(self.model.schedule, nfe, self.model.t_end, solvers=solvers, own=t))
        return _sorted(self._rank(nfe, entries) if len(entries) > 1 else [(c, 0.0) for c, _ in entries])

    def _rank(self, nfe: int, entries: Sequence[tuple[Classical, Any]]) -> list[tuple[Classical, float]]:
        count = len(self.pairs)
        ranked = rank_classical(self.model, self.pairs, nfe, self.loss, entries=entries, first=count, kept=0)
        return [(measured.classical, measured.loss) for measured in ranked]

    def _read(self, path: Path) -> None:
        """Take over what an earlier run measured; a file that cannot be read is one of other settings."""
        try:
            content = unsealed(read_json(path), str(path))
            if content["asked"] == self.asked:
                self.losses = dict(content["losses"])
        except (OSError, ValueError, KeyError, TypeError):
            return


def _key(classical: Classical) -> str:
    return f"{classical.nfe} {classical.spec}"


def _sorted(found: Sequence[tuple[Classical, float | None]]) -> list[tuple[Classical, float]]:
    finite = [(c, math.inf if loss is None or not math.isfinite(loss) else loss) for c, loss in found]
    return sorted(finite, key=lambda entry: entry[1])
