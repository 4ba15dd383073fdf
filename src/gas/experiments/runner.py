"""The runner: every method at every NFE, made, measured and stored once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gas.errors import UserError
from gas.evaluation.evaluator import Evaluator
from gas.evaluation.sampler import sample_pairs
from gas.experiments.experiment import Experiment
from gas.experiments.methods import Method, SolverResult
from gas.experiments.pictures import PICTURES, thumbnails
from gas.experiments.store import MethodResult, Store
from gas.io import plain_json
from gas.metrics import paired
from gas.pairs.dataset import teacher_of
from gas.training.loop import FitRecord

# The teacher's own row.
TEACHER = "teacher"

# Increases whenever the meaning of a measurement changes, so that stored ones are measured again.
_VERSION = 2


@dataclass(frozen=True)
class TrainingReport:
    """Progress of a method's training."""

    label: str
    nfe: int
    record: FitRecord


def run_experiment(
    experiment: Experiment,
    evaluator: Evaluator,
    methods: Sequence[Method],
    nfes: Sequence[int],
    store: Store,
    command: Callable[[str, int], str] = lambda spec, nfe: "",
) -> Iterator[TrainingReport | MethodResult]:
    """Yield progress of training and each result once: the teacher's, then every method's, in order of NFE.

    A solver is made again when its fingerprint has changed, and only measured again when the evaluator's has.
    A killed run resumes trainings from their last report.

    Args:
        experiment: model, pairs and budget.
        evaluator: unseen pairs and metrics.
        methods: rows.
        nfes: columns.
        store: where results are stored.
        command: returns the command line that makes one result alone, from its spec and NFE.

    Raises:
        UserError: when the evaluator's pairs were trained or chosen on, without methods, or for one that exists at no
            NFE.
    """
    if not methods or not nfes:
        raise UserError(f"an experiment needs solvers and NFE, got {len(methods)} and {len(nfes)}")
    _check_unseen(experiment, evaluator)
    for method in methods:
        reasons = [method.unavailable(experiment, nfe) for nfe in nfes]
        if all(reasons):
            raise UserError(f"{method.spec}: {reasons[0]}")
    runner = _Runner(experiment, evaluator, store, command)
    yield runner.teacher()
    for nfe in nfes:
        for method in methods:
            if not method.unavailable(experiment, nfe):
                yield from runner.run(method, nfe)


def run_method(
    experiment: Experiment, evaluator: Evaluator, method: Method, nfe: int, store: Store
) -> MethodResult:
    """Make and measure one method at one NFE, as :func:`run_experiment` does."""
    *_, result = run_experiment(experiment, evaluator, [method], [nfe], store)
    if not isinstance(result, MethodResult):
        raise RuntimeError(f"method {method.spec} ended without a result")
    return result


@dataclass(frozen=True, eq=False)
class _Runner:
    """The arguments of :func:`run_experiment`."""

    experiment: Experiment
    evaluator: Evaluator
    store: Store
    command: Callable[[str, int], str]

    def run(self, method: Method, nfe: int) -> Iterator[TrainingReport | MethodResult]:
        """Yield progress of training, then the result."""
        experiment, fingerprint = self.experiment, plain_json(method.fingerprint(self.experiment, nfe))
        stored = self.store.read(method.spec, nfe)
        if stored is not None and stored.solver_fingerprint != fingerprint:
            stored = None
        if stored is not None and stored.metrics_fingerprint == self._metrics_fingerprint():
            yield stored
            return
        base = None
        for report in self.run(method.base, nfe) if stored is None and method.base is not None else ():
            if isinstance(report, TrainingReport):
                yield report
            else:
                base = _solver_of(report)
        began = time.perf_counter()
        if stored is None:
            solver = yield from self._make(method, nfe, base)
        else:
            solver = _solver_of(stored)
        table = solver.table()
        samples = sample_pairs(experiment.model, self.evaluator.pairs, table)
        measurements = self._measurements(method.label, samples, nfe)
        result = MethodResult(
            spec=method.spec,
            label=method.label,
            category=method.category,
            nfe=nfe,
            origin=solver.origin,
            evaluations=solver.evaluations,
            stopped=solver.stopped,
            seconds=round(time.perf_counter() - began, 2) if stored is None else stored.seconds,
            command=self.command(method.spec, nfe),
            table=table,
            solver_fingerprint=fingerprint,
            **measurements,
        )
        self.store.write(result, experiment.model, **_provenance(experiment, result))
        experiment.remove_checkpoints(method.spec, nfe)
        yield result

    def _make(
        self, method: Method, nfe: int, base: SolverResult | None
    ) -> Generator[TrainingReport, None, SolverResult]:
        for record in method.make(self.experiment, nfe, base):
            if not isinstance(record, FitRecord):
                return record
            yield TrainingReport(method.label, nfe, record)
        raise RuntimeError(f"method {method.spec} ended without a solver")

    def teacher(self) -> MethodResult:
        """Return the teacher's result: its distance to the data is the best that a student can reach."""
        pairs = self.evaluator.pairs
        nfe = int(pairs.teacher.get("nfe", 0))
        stored = self.store.read(TEACHER, nfe)
        if stored is not None and stored.metrics_fingerprint == self._metrics_fingerprint():
            return stored
        began = time.perf_counter()
        measurements = self._measurements(TEACHER, pairs.target, nfe)
        result = MethodResult(
            spec=TEACHER,
            label=TEACHER,
            category=TEACHER,
            nfe=nfe,
            origin=" / ".join(str(pairs.teacher[key]) for key in ("solver", "grid") if key in pairs.teacher),
            seconds=round(time.perf_counter() - began, 2),
            **measurements,
        )
        self.store.write(result, self.experiment.model)
        return result

    def _measurements(self, name: str, samples: Tensor, nfe: int) -> dict[str, Any]:
        """Errors, metrics and pictures of samples; metrics and pictures only where all samples are finite.

        Errors and pictures are rounded as the store rounds them, so that a resumed run reports the same bits.
        """
        errors = paired.mse(samples, self.evaluator.pairs.target).float()
        measured = {"errors": errors, "metrics": None, "metrics_fingerprint": self._metrics_fingerprint()}
        if not bool(samples.isfinite().all()):
            return measured
        metrics = self.evaluator.measure(name, samples, nfe)
        return {**measured, "metrics": metrics, "pictures": thumbnails(self.experiment.model, samples)}

    def _metrics_fingerprint(self) -> dict[str, Any]:
        fingerprint = {**self.evaluator.fingerprint(), "pictures": PICTURES, "figures": _VERSION}
        return dict(plain_json(fingerprint))


def _solver_of(result: MethodResult) -> SolverResult:
    if result.table is None:
        raise RuntimeError(f"the result of {result.spec} at NFE {result.nfe} has no table")
    return SolverResult(result.table, result.origin, result.evaluations, result.stopped)


def _provenance(experiment: Experiment, result: MethodResult) -> dict[str, Any]:
    """What the solver file records of its training."""
    train, validation, budget = experiment.train, experiment.validation, experiment.budget
    recorded = {"guidance": train.guidance}
    if result.category != "learned":
        return recorded
    seeds = [int(train.seeds[0]), int(validation.seeds[-1]) + 1]
    training = {"pairs": len(train), "validation": len(validation), "seeds": seeds, **budget.config.config()}
    teacher = teacher_of(train, experiment.model)
    return {**recorded, "teacher": teacher, "loss": budget.loss, "training": training}


def _check_unseen(experiment: Experiment, evaluator: Evaluator) -> None:
    train, unseen = experiment.train, evaluator.pairs
    known = {*train.seeds.tolist(), *experiment.validation.seeds.tolist()}
    shared = sorted(known.intersection(unseen.seeds.tolist()))
    if shared:
        raise UserError(
            f"unseen pairs share {len(shared)} seeds with those learned or chosen from, the first {shared[0]}: "
            "measure on other seeds"
        )
    if unseen.guidance != train.guidance:
        raise UserError(f"unseen pairs have guidance {unseen.guidance:g}, the others {train.guidance:g}")
