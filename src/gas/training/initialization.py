"""Initialization: the start of a training, chosen by successive halving among classical solvers."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import MAX_SEEDS, integer
from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.classical.registry import Classical, candidates, parse_times
from gas.display import brief, error_text
from gas.errors import UserError
from gas.grids.analytic import as_grid
from gas.learned.registry import Kind, LearnedStart, kind_by_name
from gas.losses import ROUNDING, Loss, l2, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs
from gas.schedule import Schedule
from gas.solver_file import Artefact
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.ranking import RankedSolver, rank_classical
from gas.training.successive_halving import Candidate, halve
from gas.training.validation import typical

# A learned table that is trained further is several times better than any classical solver: a rough ranking says so.
_ROUGH_ROUNDS = (None, 2), (4, 16), (1, None)

# Further rounds for kinds that keep the formula of their start (LD3): which formula has the better minimum shows late.
_EXTRA_ROUNDS = 2

# The grid that learned times of these kinds start from: classical losses say little about where learned times end.
# digits, 4 calls, squared error x 1000 after 7 steps from this grid: unipc-2-bh1 4.03, ipndm-2 5.26, unipc-2-bh2 5.41;
# unipc-2-bh1 from time_cubic 4.39.
_LEARNED_TIMES_GRID = "log_snr"


@dataclass(frozen=True, eq=False)
class StartChoice:
    """The start of a training, ``"uniform"`` or ``"SOLVER/GRID"``, and where its short runs led.

    ``best`` is the best classical solver on the validation pairs, with the loss of each pair; ``state`` is that of
    :class:`gas.training.GaussNewtonSteps` after the short runs; ``evaluations`` are the network evaluations of the
    whole search.
    """

    best: Classical
    losses: tuple[float, ...]
    start: str
    state: Mapping[str, Any] | None = None
    evaluations: int = 0

    @classmethod
    def of(cls, ranked: Sequence[RankedSolver], start: str = "") -> StartChoice:
        """Return the choice of the best solver of the last round of a ranking, or of another start than that."""
        best = next(solver for solver in ranked if solver.round == ranked[-1].round)
        return cls(
            best=best.classical,
            losses=tuple(best.losses.tolist()),
            start=start or best.classical.spec,
            evaluations=sum(solver.evaluations for solver in ranked),
        )

    @property
    def best_loss(self) -> float:
        """Mean loss of the best classical solver."""
        return float(torch.tensor(self.losses, dtype=torch.float64).mean())


@dataclass(frozen=True)
class CandidateRound:
    """A candidate after short run ``run`` of ``runs``: its mean loss at its best typical one, and what the run cost."""

    classical: Classical
    loss: float
    run: int
    runs: int
    evaluations: int


@dataclass(frozen=True, eq=False)
class StartSearch:
    """How the start of a training is chosen.

    ``"best"`` is successive halving: rank all classical solvers on a few validation pairs, the best of them on more,
    and the best of those on all; train the best solver of each of some grids in a short run, the two best in another,
    and go on with the one that then validates best. The training loss has several minima, and which of them is
    reached depends on the grid; the classical solver with the least loss need not lead to the best one.

    Args:
        start: ``"best"``, ``"uniform"`` (the paper's: DPM-Solver++(3M) on the time-uniform grid),
            ``"SOLVER/GRID"``, or a solver file as :func:`gas.load` reads it, of another copy of the model: its table
            is trained further, and the result validates no worse than it.
        screening_pairs: validation pairs that every classical solver is ranked on.
        shortlist: solvers of the second round. The losses of the best few differ by less than the screening resolves.
        validation_pairs: validation pairs that the second round and the short runs are compared on.
        finalists: solvers that are ranked on all validation pairs.
        candidates: most classical solvers that are trained.
        steps: Gauss-Newton steps of a short run. A few tell minima apart, as the first ones gain most.
        extra_grid: a further grid ``(nfe + 1,)``, whose best classical solver is the first candidate.

    Raises:
        ValueError: names the setting that is unknown or out of range.
    """

    start: str | Artefact = "best"
    screening_pairs: int = 16
    shortlist: int = 16
    validation_pairs: int = 64
    finalists: int = 4
    candidates: int = 3
    steps: int = 3
    extra_grid: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.start, Artefact):
            check_start(self.start)
        for field in fields(self):
            if field.type == "int":
                integer(field.name, getattr(self, field.name), 1, MAX_SEEDS)

    @property
    def continues(self) -> bool:
        """Whether the training starts at learned tables."""
        return isinstance(self.start, Artefact)

    @property
    def rounds(self) -> tuple[tuple[int | None, int | None], ...]:
        """The rounds of :func:`gas.rank_classical`."""
        if self.continues:
            return _ROUGH_ROUNDS
        return (None, self.screening_pairs), (self.shortlist, self.validation_pairs), (self.finalists, None)

    def at(self, model: Model, guidance: float) -> StartSearch:
        """Return the search for pairs of one guidance scale, with a solver file's tables of that scale.

        Raises:
            UserError: for a solver file of another use.
        """
        if not isinstance(self.start, Artefact):
            return self
        self.start.check(model, guidance, transfer=True)
        return replace(self, start=self.start.at(guidance))

    def first_steps(self, config: GaussNewton) -> GaussNewton:
        """Return the settings of a training from the short runs on: their batches grow to the first of ``config``."""
        if self.start != "best":
            return config
        return replace(config, batch=max(1, round(config.batch / config.growth ** (2 * self.steps))))

    def run(
        self,
        model: Model,
        pairs: Pairs,
        validation: Pairs,
        nfe: int,
        *,
        loss: str,
        solver: str,
        theory: bool,
        config: GaussNewton,
        state: Path | None,
        limit: float = math.inf,
    ) -> Generator[RankedSolver | CandidateRound, None, StartChoice]:
        """Choose the start, or read the choice of an interrupted run; arguments as in :func:`gas.distill`.

        Short runs take steps of ``config``, which minimize squared errors; the ranking and they together take
        no more network evaluations than ``limit``, if the ranking does not.

        Yields:
            RankedSolver: of each round of the ranking. CandidateRound: after each short run.

        Raises:
            ValueError: for unknown names, or a state of another run.
        """
        kind = kind_by_name(solver, theory=theory)
        start: Any = self.start
        if isinstance(start, Artefact):
            start = start.entry(nfe).model_dump()
        if start != "best":  # refuse an impossible start before the long ranking
            self._named(model.schedule, kind, nfe, model.t_end)
        fingerprint = {
            **vars(self),
            "start": start,
            "extra_grid": None if self.extra_grid is None else self.extra_grid.tolist(),
            "config": config.config() if self.start == "best" else None,
            "limit": limit,
            "loss": loss,
            "solver": solver,
            "theory": theory,
            "model": dict(model.fingerprint()),
            "pairs": pairs_fingerprint(pairs),
            "validation": pairs_fingerprint(validation),
        }
        path = None if state is None else state / f"nfe-{nfe}.start.pt"
        if path is not None and path.exists():
            return read_choice(path, fingerprint)[0]
        choice = yield from self._choose(
            model, pairs, validation, nfe, loss_by_name(loss), kind, config, limit
        )
        if path is not None:
            write_choice(path, fingerprint, choice)
        return choice

    def solver(self, choice: StartChoice, schedule: Schedule, kind: Kind) -> nn.Module:
        """Return the solver to train, at the start that was chosen."""
        nfe, t_end = choice.best.nfe, choice.best.t_end
        if self.start != "best":
            return self._named(schedule, kind, nfe, t_end)
        solver = kind.build(schedule, named_start(choice.start, nfe, t_end))
        if choice.state is not None:
            solver.load_state_dict(choice.state["solver"])
        return solver

    def choice(self, ranked: Sequence[RankedSolver]) -> StartChoice:
        """Return the best solver of a ranking, and where the training starts; of learned tables, where theirs did."""
        if isinstance(self.start, Artefact):
            return StartChoice.of(ranked, self.start.entry(ranked[-1].table.nfe).start or "")
        return StartChoice.of(ranked, "" if self.start == "best" else self.start)

    def _named(self, schedule: Schedule, kind: Kind, nfe: int, t_end: float) -> nn.Module:
        if isinstance(self.start, Artefact):
            return kind.build(schedule, LearnedStart(self.start.table(nfe), t_end))
        return kind.build(schedule, named_start(self.start, nfe, t_end))

    def _choose(
        self,
        model: Model,
        pairs: Pairs,
        validation: Pairs,
        nfe: int,
        distance: Loss,
        kind: Kind,
        config: GaussNewton,
        limit: float,
    ) -> Generator[RankedSolver | CandidateRound, None, StartChoice]:
        """Rank every classical solver; unless the start is named, train the best of each grid in short runs."""
        ranked = yield from rank_classical(model, validation, nfe, distance, rounds=self.rounds)
        choice = self.choice(ranked)
        if self.start != "best" or choice.best_loss < ROUNDING:
            return choice
        starts = _best_starts([solver for solver in ranked if solver.round == 0], self.candidates, kind)
        spent = choice.evaluations
        if self.extra_grid is not None:
            entries = candidates(model.schedule, nfe, model.t_end, times=self.extra_grid)
            rounds = self.rounds[:1]
            ranked = list(rank_classical(model, validation, nfe, distance, entries=entries, rounds=rounds))
            starts = [*_best_starts(ranked, 1, kind), *starts][: self.candidates]
            spent += sum(solver.evaluations for solver in ranked)
        running = []
        for start in starts:
            learned = kind.build(model.schedule, start)
            steps = GaussNewtonSteps(learned, model, pairs, l2, kind.training(config))
            running.append(Candidate(start, steps))
        some = validation.subset(slice(0, self.validation_pairs))
        further = 0 if len(running) == 1 else 1 + _EXTRA_ROUNDS if kind.lasting else 1
        winner, cost = yield from halve(
            running, self.steps, further, some, distance, CandidateRound, limit=limit - spent
        )
        return replace(choice, start=winner.key.spec, state=winner.state, evaluations=spent + cost)


def reference_solver(model: Model, nfe: int = 20) -> Classical:
    """Return the classical solver whose samples stand for a teacher's: UniPC, on log-SNR where that is finite."""
    ends = torch.tensor([1.0, model.t_end], dtype=torch.float64)
    finite = bool(model.schedule.half_log_snr(ends).isfinite().all())
    return Classical("unipc-3-bh2", "log_snr" if finite else "time_uniform", nfe, model.t_end)


def check_file(start: Artefact | None, model: Model, nfe: int, guidance: float) -> None:
    """Refuse a solver file to start from that is of another use, or has no table of this NFE."""
    if start is not None:
        StartSearch(start).at(model, guidance)
        start.entry(nfe)


def start_without_pairs(
    model: Model, reference: Pairs, nfe: int, start: Artefact | None, choice: StartChoice | None = None
) -> Generator[RankedSolver, None, tuple[StartChoice, nn.Module]]:
    """Return the best classical solver on some of a reference, and the solver to train: there, or at a file's table.

    Args:
        model: whose denoiser to call.
        reference: noise and samples of a classical solver with more evaluations, or teacher pairs.
        nfe: network evaluations.
        start: solver file to start from instead.
        choice: of an interrupted run, which is not made again.

    Yields:
        RankedSolver: of each round.
    """
    kind = kind_by_name("gs")
    search = StartSearch("best" if start is None else start).at(model, reference.guidance)
    rounds = _ROUGH_ROUNDS[:2] if search.continues else ((None, search.screening_pairs), (4, 64))
    if choice is None:
        choice = search.choice((yield from rank_classical(model, reference, nfe, l2, rounds=rounds)))
    return choice, search.solver(choice, model.schedule, kind)


def check_start(start: str) -> None:
    """Refuse what names no start of a training: ``"best"``, ``"uniform"``, ``"SOLVER"`` or ``"SOLVER/GRID"``.

    Raises:
        ValueError: for an unknown solver or grid, with the nearest known one, or times that are no grid.
    """
    if not isinstance(start, str):
        raise UserError(f"start must be 'best', 'uniform' or 'SOLVER/GRID', got {start!r}")
    if start != "best":
        classical = named_start(start)
        if "," in classical.grid:
            as_grid(parse_times(classical.grid))


def named_start(start: str, nfe: int = 2, t_end: float = 0.0) -> Classical:
    """Return the classical solver of ``"SOLVER/GRID"``, by default on log-SNR; ``"uniform"`` is the paper's start."""
    if start == "uniform":
        return Classical("dpmpp-3m", "time_uniform", nfe, t_end)
    name, _, grid = start.partition("/")
    return Classical(name.strip(), grid.strip() or "log_snr", nfe, t_end)


def start_label(start: str) -> str:
    """Return :attr:`gas.classical.Classical.label` of a start; one that is unknown here, as files may have, unchanged.

    >>> start_label("uniform"), start_label("unipc-3-bh2/log_snr"), start_label("ddim/1,0.5,0.001")
    ('dpmpp-3m / time_uniform', 'unipc-3-bh2 / log_snr', 'ddim / own times')
    """
    try:
        return named_start(start).label
    except UserError:
        return start


def _best_starts(ranked: Sequence[RankedSolver], most: int, kind: Kind) -> list[Classical]:
    """Return the best solver of every grid that this kind can start at, best first."""
    ranked = sorted(
        (solver for solver in ranked if kind.starts_at(solver.classical)),
        key=lambda solver: typical(solver.losses),
    )
    if kind.lasting:
        return _best_formulas(ranked, most)
    best: dict[str, Classical] = {}
    for solver in ranked:
        best.setdefault(solver.classical.grid, solver.classical)
    return list(best.values())[:most]


def _best_formulas(ranked: Sequence[RankedSolver], most: int) -> list[Classical]:
    """Return the best different solvers, each on the grid that learned times start from, if it was ranked there."""
    best: dict[str, Classical] = {}
    for solver in ranked:
        known = [other for other in ranked if other.classical.solver in best]
        if solver.classical.solver not in best and not _has_twin(solver, known):
            best[solver.classical.solver] = solver.classical
    usual = {s.classical.solver: s.classical for s in ranked if s.classical.grid == _LEARNED_TIMES_GRID}
    return [usual.get(name, classical) for name, classical in list(best.items())[:most]]


def _has_twin(solver: RankedSolver, others: Sequence[RankedSolver]) -> bool:
    """Whether another solver is the same table: at few calls, solvers of several orders coincide."""
    on_its_grid = [other for other in others if other.classical.grid == solver.classical.grid]
    return any(torch.equal(other.table.unrolled(), solver.table.unrolled()) for other in on_its_grid)


def pairs_fingerprint(pairs: Pairs) -> list[Any]:
    """Return the number of pairs, their first and last seed, guidance and teacher, in plain JSON."""
    return [len(pairs), int(pairs.seeds[0]), int(pairs.seeds[-1]), pairs.guidance, dict(pairs.teacher)]


def write_choice(path: Path, fingerprint: Mapping[str, Any], choice: StartChoice, **more: Any) -> None:
    """Write a choice, and what else an interrupted run needs to go on from it."""
    if distributed.is_first():
        values = {**vars(choice), "best": choice.best.config()}
        write_checkpoint(path, {**more, "choice": values, "fingerprint": fingerprint})


def read_choice(path: Path, fingerprint: Mapping[str, Any]) -> tuple[StartChoice, dict[str, Any]]:
    """Return the choice of an interrupted run and all else in its file; refuse that of another run."""
    try:
        content = read_checkpoint(path)
        known, values = content["fingerprint"], content["choice"]
        changed = [name for name, value in fingerprint.items() if known.get(name) != value]
        if changed:
            changes = (
                f"{name} was {brief(known.get(name), 40)}, is {brief(fingerprint[name], 40)}"
                for name in changed[:3]
            )
            raise UserError(f"it is of another run: {'; '.join(changes)}")
        return StartChoice(**{**values, "best": Classical(**values["best"])}), content
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be continued ({error_text(error)}): delete {path.parent} to train afresh"
        ) from error
