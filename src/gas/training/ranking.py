"""Ranking: every classical solver on every grid, by its loss on teacher pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas import distributed
from gas.classical.registry import Classical, candidate_solvers, candidates
from gas.errors import UserError
from gas.io import add_checksum, plain_json, read_json, verify_checksum, write_text
from gas.losses import Loss, l2
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.table import Table
from gas.training.validation import PairLosses


@dataclass(frozen=True, eq=False)
class RankedSolver:
    """A classical solver and its losses in one round of a ranking.

    Args:
        classical: the solver by name.
        table: its table on the model's schedule.
        losses: ``(S,)``, of each pair of this round and those before.
        round: number of the round, from 0.
        evaluations: network evaluations of single samples in this round. The prediction at x_T is the same for all
            solvers of a round; the first of them pays for it.
    """

    classical: Classical
    table: Table
    losses: Tensor
    round: int = 0
    evaluations: int = 0

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    @property
    def finite_loss(self) -> float:
        """Mean loss to sort by: infinite for a solver that diverges, so that NaN sorts last."""
        return self.loss if math.isfinite(self.loss) else math.inf


def rank_classical(
    model: Model,
    pairs: Pairs,
    nfe: int,
    loss: Loss,
    *,
    entries: Iterable[tuple[Classical, Table]] | None = None,
    rounds: Sequence[tuple[int | None, int | None]] = ((None, 64), (6, None)),
    batch: int = 64,
) -> Generator[RankedSolver, None, list[RankedSolver]]:
    """Rank classical solvers by successive halving: each round runs fewer of them on further pairs.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs for validation.
        nfe: network evaluations.
        loss: distance to the teacher.
        entries: solvers to rank; by default the whole catalogue on every grid.
        rounds: for each round, how many of the best solvers of the round before go on, and how many of the first
            pairs they are then measured on; ``None`` is all. By default all solvers run on 64 pairs, and the best 6 of
            them on all pairs.
        batch: samples a network call.

    Yields:
        RankedSolver: each solver of each round, as soon as it is measured; those of the last of several rounds best
            first. ``yield from`` returns all of them.
    """
    entries = list(candidates(model.schedule, nfe, model.t_end) if entries is None else entries)
    solvers = [RankedSolver(classical=c, table=t, losses=torch.empty(0)) for c, t in entries]
    measured, all_ranked = 0, list[RankedSolver]()
    for number, (count, size) in enumerate(rounds):
        stop = len(pairs) if size is None else max(measured, min(size, len(pairs)))
        losses = PairLosses(model, pairs.view(slice(measured, stop)), loss, batch)
        final = 0 < number == len(rounds) - 1
        ranked = []
        for solver in _measure(losses, solvers[:count], number):
            ranked.append(solver)
            if not final:
                yield solver
        ranked.sort(key=lambda solver: solver.finite_loss)
        if final:
            yield from ranked
        solvers, measured = ranked, stop
        all_ranked += ranked
    return all_ranked


def _measure(validation: PairLosses, solvers: Sequence[RankedSolver], number: int) -> Iterator[RankedSolver]:
    """Measure solvers one by one on further pairs; several processes share them."""
    first_prediction = False
    if not len(validation.pairs):  # those of the round before
        yield from (replace(solver, round=number, evaluations=0) for solver in solvers)
        return
    losses = distributed.map_sharded(lambda solver: validation.losses(solver.table), solvers)
    for solver, values in zip(solvers, losses, strict=True):
        starts_at_noise = float(solver.table.times[0]) == 1.0
        calls = solver.table.nfe - (first_prediction and starts_at_noise)
        first_prediction = first_prediction or starts_at_noise
        yield replace(
            solver,
            losses=torch.cat([solver.losses, values]),
            round=number,
            evaluations=len(values) * calls,
        )


def best_classical(
    model: Model, pairs: Pairs, nfe: int, names: Sequence[str], *, loss: Loss = l2, finalists: int = 8
) -> RankedSolver:
    """Return the best of some classical solvers: all run on the first 64 pairs, the best of them on all pairs.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs.
        nfe: network evaluations.
        names: ``SOLVER``, on any grid, or ``SOLVER/GRID``.
        loss: distance to the teacher.
        finalists: solvers that run on all pairs.

    Raises:
        ValueError: for an unknown name, or when none of them exists at this NFE.
    """
    entries = [
        entry
        for solver, _, grid in (name.partition("/") for name in names)
        for entry in candidates(
            model.schedule, nfe, model.t_end, solvers=[solver], grids=[grid] if grid else ()
        )
    ]
    if not entries:
        raise UserError(f"none of {', '.join(names)} exists at NFE {nfe}")
    rounds = ((None, 64), (finalists, None))
    ranked = rank_classical(model, pairs, nfe, loss, entries=entries, rounds=rounds)
    return next(solver for solver in ranked if solver.round == 1)


class RankingCache:
    """Mean losses of classical solvers on the same pairs, each measured once and stored in a file.

    Args:
        model: whose denoiser to call.
        pairs: validation pairs to rank on.
        loss: distance to the teacher.
        fingerprint: everything that decides the losses, in plain JSON; a file of another fingerprint is replaced.
        path: the file; by default losses stay in memory.
    """

    def __init__(
        self, model: Model, pairs: Pairs, loss: Loss, fingerprint: Mapping[str, Any], path: Path | None = None
    ) -> None:
        self.model, self.pairs, self.loss, self.path = model, pairs, loss, path
        self.fingerprint = plain_json(fingerprint)
        self.losses: dict[str, float | None] = {}
        if path is not None and path.exists():
            self._read(path)

    def rank(self, nfe: int, solvers: Sequence[str]) -> list[tuple[Classical, float]]:
        """Return solvers on every grid of :data:`gas.grids.GRIDS` with their losses, best first.

        The loss of a solver that diverges is infinite.
        """
        schedule = self.model.schedule
        entries = list(candidate_solvers(schedule, nfe, self.model.t_end, solvers=solvers))
        missing = [(entry, entry.table(schedule)) for entry in entries if _key(entry) not in self.losses]
        for ranked in self._rank(nfe, missing):
            self.losses[_key(ranked.classical)] = ranked.loss if math.isfinite(ranked.loss) else None
        if missing and self.path is not None:
            write_text(
                self.path, json.dumps(add_checksum({"fingerprint": self.fingerprint, "losses": self.losses}))
            )
        losses = [(classical, self.losses[_key(classical)]) for classical in entries]
        finite = [(classical, math.inf if loss is None else loss) for classical, loss in losses]
        return sorted(finite, key=lambda entry: entry[1])

    def best_on(self, nfe: int, solvers: Sequence[str], t: Tensor) -> Classical:
        """Return the best of some solvers on a given grid ``(nfe + 1,)``; its losses are not stored."""
        entries = list(candidates(self.model.schedule, nfe, self.model.t_end, solvers=solvers, times=t))
        if len(entries) == 1:
            return entries[0][0]
        return min(self._rank(nfe, entries), key=lambda ranked: ranked.finite_loss).classical

    def _rank(self, nfe: int, entries: Sequence[tuple[Classical, Table]]) -> list[RankedSolver]:
        rounds = ((None, None),)
        return list(rank_classical(self.model, self.pairs, nfe, self.loss, entries=entries, rounds=rounds))

    def _read(self, path: Path) -> None:
        """Take over the losses of an earlier run; a damaged file is one of another fingerprint."""
        try:
            content = verify_checksum(read_json(path), str(path))
            if content["fingerprint"] == self.fingerprint:
                self.losses = dict(content["losses"])
        except (OSError, ValueError, KeyError, TypeError):
            return


def _key(classical: Classical) -> str:
    return f"{classical.nfe} {classical.spec}"
