"""Ranking: every classical solver on every grid, measured on teacher pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gas import distributed
from gas.classical.registry import Classical, candidates
from gas.io import add_checksum, read_json, verify_checksum, write_text
from gas.losses import Loss
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.table import Table
from gas.training.validation import PairLosses

__all__ = ["Measured", "Rankings", "finite_loss", "rank_classical"]


@dataclass(frozen=True)
class Measured:
    """A classical solver with its mean loss against the teacher on ``pairs`` pairs, and what that cost.

    ``evaluations`` are network evaluations of single samples. The prediction at x_T is the same for all solvers of a
    round, and counts for the first of them.
    """

    classical: Classical
    table: Table
    loss: float
    pairs: int
    evaluations: int = 0


def rank_classical(
    model: Model,
    pairs: Pairs,
    nfe: int,
    loss: Loss,
    *,
    entries: Iterable[tuple[Classical, Table]] | None = None,
    first: int = 64,
    kept: int = 6,
    batch: int = 64,
) -> Iterator[Measured]:
    """Measure every classical solver on every grid; the last ones yielded are the finalists, best first.

    All run on the first ``first`` pairs, then the best ``kept`` of them on all pairs. The answer at
    x_T is the same for all and asked once.

    Args:
        model: whose denoiser to ask.
        pairs: teacher pairs for validation.
        nfe: network evaluations.
        loss: distance to the teacher.
        entries: solvers to measure; by default the whole catalogue.
        first: pairs that all are measured on.
        kept: finalists.
        batch: samples a network call.

    Yields:
        Measured: as many as there are solvers, then ``kept`` finalists in order of their loss.
    """
    entries = candidates(model.schedule, nfe, model.t_end) if entries is None else entries
    some = PairLosses(model, pairs.subset(slice(0, first)), loss, batch)
    measured = []
    for entry in _measured(some, list(entries)):
        measured.append(entry)
        yield entry
    measured.sort(key=finite_loss)
    every = PairLosses(model, pairs, loss, batch)
    finalists = _measured(every, [(m.classical, m.table) for m in measured[:kept]])
    yield from sorted(finalists, key=finite_loss)


def _measured(validation: PairLosses, entries: Sequence[tuple[Classical, Table]]) -> Iterator[Measured]:
    """Measure solvers one by one; several processes share them."""
    losses = distributed.map_sharded(lambda entry: float(validation.losses(entry[1]).mean()), entries)
    shared, pairs = False, len(validation.pairs)
    for (classical, table), loss in zip(entries, losses, strict=True):
        starts_at_noise = float(table.times[0]) == 1.0
        calls = table.nfe - (shared and starts_at_noise)
        shared = shared or starts_at_noise
        yield Measured(classical, table, loss, pairs, pairs * calls)


def finite_loss(measured: Measured) -> float:
    """Return the loss to sort by: a solver that blows up comes last, not wherever NaN happens to sort."""
    return measured.loss if math.isfinite(measured.loss) else math.inf


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
            write_text(self.path, json.dumps(add_checksum({"asked": self.asked, "losses": self.losses})))
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
            content = verify_checksum(read_json(path), str(path))
            if content["asked"] == self.asked:
                self.losses = dict(content["losses"])
        except (OSError, ValueError, KeyError, TypeError):
            return


def _key(classical: Classical) -> str:
    return f"{classical.nfe} {classical.spec}"


def _sorted(found: Sequence[tuple[Classical, float | None]]) -> list[tuple[Classical, float]]:
    finite = [(c, math.inf if loss is None or not math.isfinite(loss) else loss) for c, loss in found]
    return sorted(finite, key=lambda entry: entry[1])
