"""Learning from a judge: a solver's numbers against any score of its samples, without a gradient and without pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.errors import Diverged, UserError
from gas.evaluation.sampler import sample_pairs, teacher_pairs
from gas.features.judges import ClassifierJudge, Judge, JudgeError, scores_of
from gas.metrics.coverage import prdc
from gas.metrics.frechet import extract
from gas.models.protocol import Model, features_of
from gas.models.runtime import full_precision
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs, check_pairs
from gas.registry import origin
from gas.solver_file import Artefact
from gas.table import Table, table_of
from gas.training.distillation import Distilled, Report, checkpoint_file
from gas.training.initialization import (
    StartChoice,
    check_file,
    pairs_fingerprint,
    read_choice,
    reference_solver,
    start_without_pairs,
    write_choice,
)
from gas.training.judge_steps import JudgeAscent, JudgeSteps
from gas.training.loop import FitRecord, Run, run_fingerprint
from gas.training.ranking import RankedSolver
from gas.training.validation import surely_positive

# Seeds of the reference: far from those of pairs, of the criterion of GAS and of its fresh noise.
_FIRST_SEED = 2**42

# Standard errors that recall or coverage may fall by: what two equal solvers differ by in 2 of 100 looks. They are
# those of two independent shares; samples of one noise differ by less, so that chance hardly ever stops a training.
_FALL = 2.0

# Samples that a judge is tried on before any work: two, as one could hide a mistaken shape.
_CHECKED = 2

# Samples that a judge scores in one call.
_BATCH = 64

# Side of the images that distributions are compared in where the judge sees the model's own features.
_SIDE = 16


def distill_judge(
    model: Model,
    judge: Judge,
    nfe: int,
    *,
    start: Artefact | None = None,
    pairs: Pairs | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    settings: JudgeAscent | None = None,
    guidance: float = 1.0,
    name: str = "judge",
    state: Path | None = None,
) -> Generator[Report, None, Distilled]:
    """Learn a solver's numbers against a judge: maximize ``E judge(sample)`` within a trust region.

    The trust region is the mean squared distance to a reference from the same noise: the teacher's samples where there
    are pairs, else those of a classical solver with more evaluations. Each step linearizes samples in the numbers of
    the table (:func:`gas.training.linearization.linearize`) and scores along the tangents, by differences alone, and
    goes where the linear model of the score is largest within the quadratic model of the distance.

    A solver is chosen by its mean score on noise that no step saw, where it must be within the region, too. When recall
    or coverage of the reference falls there by more than two standard errors, training stops with the best solver
    before: the judge is being exploited. The same when the judge fails. A solver that does not surely score higher is
    not taken.

    Args:
        model: whose denoiser to call.
        judge: ``(samples (B, *), labels (B,) or None) -> scores (B,)``, higher is better; :mod:`gas.features.judges`.
        nfe: network evaluations.
        start: solver file to start from; by default the best classical solver on some of the reference.
        pairs: teacher pairs as the reference, the last ``samples`` to choose on; by default the reference is made.
        features: ``(B, *) -> (B, F)`` for recall and coverage; by default :func:`unseen_features`.
        settings: :class:`JudgeAscent`.
        guidance: scale of classifier-free guidance, where there are no pairs.
        name: of the judge, for the solver file.
        state: folder of the resumable state; with a judge that repeats its scores, an interrupted run resumes from it
            and ends with the same bits. The reference and the choice of the start are not made again.

    Yields:
        RankedSolver: of the classical solvers. StartChoice: once. FitRecord: at each choice; its losses are negative
        scores, its logs ``distance`` in units of the start's, ``recall``, ``coverage`` and ``judged``, the samples
        scored. Distilled: last; ``loss`` is the negative mean score, ``stopped`` the reason of an early end.

    Raises:
        UserError: for arguments out of range, or a state of another run. JudgeError: when the judge fails before the
            first choice.

    References:
        Schulman et al., "Trust region policy optimization", arXiv 1502.05477, for the step.
    """
    settings, model = settings or JudgeAscent(), full_precision(model)
    check_file(start, model, nfe, guidance if pairs is None else pairs.guidance)
    features, judge = features or unseen_features(model, judge), _Counted(judge)
    path = checkpoint_file(state, f"nfe-{nfe}.start")
    pool, held, choice, solver = yield from _reference_and_start(
        model, judge, nfe, start, pairs, settings, guidance, path
    )
    _check_budget(settings, choice.evaluations + 2 * len(held) * nfe)
    validation = _Validation(model, judge, held, features)
    classical = validation.measure(choice.best.table(model.schedule))
    table, spent = table_of(solver), choice.evaluations + len(held) * nfe
    losses = -validation.measure(table)
    if not validation.distance:
        raise UserError(
            "the start's samples are those of the reference, and their distance is the unit of the trust region: learn "
            "fewer network evaluations, or from pairs of a better teacher"
        )
    choice = replace(choice, losses=tuple((-classical).tolist()), evaluations=spent)
    yield choice
    steps = _CountedSteps(solver, model, judge, pool, validation.distance, settings)
    criterion = _Guarded(validation, steps, losses)
    logs, run = criterion.logs, Run(solver, steps, criterion, budget=settings.budget - spent)
    stopped = yield from _until_stopped(run, steps, validation, checkpoint_file(state, f"nfe-{nfe}"), name)
    if run.best.losses is not None and surely_positive(losses - run.best.losses):
        table, losses, logs = run.best.table, run.best.losses, dict(run.best.logs)
    result = Distilled(
        nfe=nfe,
        solver=table,
        start=choice.start,
        best_classical=choice.best,
        best_classical_loss=float(-classical.mean()),
        loss=float(losses.mean()),
        evaluations=spent + run.evaluations,
        stopped=stopped,
        losses=losses,
        provenance=_provenance(pool, settings, name),
        measures={**logs, "judged": float(judge.samples), "start_loss": run.start_loss},
    )
    yield result
    return result


def _until_stopped(
    run: Run, steps: _CountedSteps, validation: _Validation, path: Path | None, name: str
) -> Generator[FitRecord, None, str]:
    """Yield the records of a run, from its checkpoint if there is one; return why it ended before its last step."""
    settings, judge, features = steps.config, steps.judge.judge, origin(validation.features)
    identity = run_fingerprint(
        run.solver, steps, steps.pairs, validation.held, judge, None, run.budget, run.keep
    )
    try:
        yield from run.records(path, hashlib.sha256(f"{name} {features} {identity}".encode()).hexdigest())
    except (JudgeError, Diverged) as error:
        return f"step {steps.iteration}: {error}"
    if steps.iteration < settings.iterations:
        return f"the budget of {settings.budget:,} network evaluations is spent"
    return ""


def unseen_features(model: Model, judge: Judge) -> Callable[[Tensor], Tensor]:
    """Return features in which a judge cannot be pleased: the model's own, or pixels where these are the judge's."""
    features = features_of(model)
    if features is not None and not isinstance(judge, ClassifierJudge):
        return features
    return _pixels


def _pixels(samples: Tensor) -> Tensor:
    """Samples as vectors, images and latents of at most 16 x 16."""
    if samples.ndim == 4 and max(samples.shape[2:]) > _SIDE:
        samples = F.adaptive_avg_pool2d(samples, _SIDE)
    return samples.flatten(1)


def _reference_and_start(
    model: Model,
    judge: Judge,
    nfe: int,
    start: Artefact | None,
    pairs: Pairs | None,
    settings: JudgeAscent,
    guidance: float,
    path: Path | None,
) -> Generator[RankedSolver, None, tuple[Pairs, Pairs, StartChoice, nn.Module]]:
    """Return the reference for steps and for choices, and the start, whose evaluations are those of both.

    An interrupted run stored the choice of the start at ``path``, with the samples of the reference that it made.
    """
    fingerprint = {
        "settings": [settings.pool, settings.samples, settings.reference_nfe],
        "model": dict(model.fingerprint()),
        "guidance": guidance,
        "start": None if start is None else start.entry(nfe).model_dump(),
        "pairs": None if pairs is None else pairs_fingerprint(pairs),
    }
    known, target = None, None
    if path is not None and path.exists():
        known, content = read_choice(path, fingerprint)
        target = content.get("target")
    pool, held, spent = _reference(model, judge, pairs, settings, guidance, target)
    choice, solver = yield from start_without_pairs(model, pool, nfe, start, known)
    if path is not None and known is None:
        target = torch.cat([pool.target, held.target]) if pairs is None else None
        write_choice(path, fingerprint, choice, target=target)
    return pool, held, replace(choice, evaluations=choice.evaluations + spent), solver


def _reference(
    model: Model,
    judge: Judge,
    pairs: Pairs | None,
    settings: JudgeAscent,
    guidance: float,
    target: Tensor | None,
) -> tuple[Pairs, Pairs, int]:
    """Return the reference for steps and for choices, and its network evaluations, once the judge has scored two."""
    spent, given = 0, pairs is not None
    if pairs is None:
        reference = reference_solver(model, settings.reference_nfe)
        seeds = range(_FIRST_SEED, _FIRST_SEED + settings.pool + settings.samples)
        _check_budget(settings, (len(seeds) + _CHECKED) * reference.nfe)
        make = partial(teacher_pairs, model, reference, guidance=guidance)
        few = make(seeds[:_CHECKED])
        scores_of(judge, few.target.to(model.device), few.labels)
        spent = (len(seeds) + _CHECKED) * reference.nfe
        if target is None:
            pairs = make(seeds)
        else:
            labels = labels_of_seeds(model.classes, seeds)
            pairs = Pairs(torch.tensor(seeds), noise=model.noise(seeds).cpu(), target=target, labels=labels)
        recipe = {"guidance": guidance, "teacher": reference.config()}
        pairs = replace(pairs, manifest={"recipe": recipe})
    check_pairs(pairs, model)
    pool, held = pairs.split(min(settings.samples, len(pairs) // 2))
    if given:
        few = held.subset(slice(0, _CHECKED))
        scores_of(judge, few.target.to(model.device), few.labels)
    return pool, held.load(), spent


def _check_budget(settings: JudgeAscent, needed: int) -> None:
    """Refuse a budget that does not pay for the reference and the first choice."""
    if needed > settings.budget:
        raise UserError(
            f"budget must be more than the {needed:,} network evaluations of the reference and the start, "
            f"got {settings.budget:,}: raise it"
        )


def _provenance(pool: Pairs, settings: JudgeAscent, name: str) -> dict[str, Any]:
    training = {key: None if value == math.inf else value for key, value in asdict(settings).items()}
    # Without what an address asks for, which may be a key.
    training |= {"objective": "judge", "judge": name.partition("?")[0][:200]}
    return {"guidance": pool.guidance, "loss": "judge", "teacher": dict(pool.teacher), "training": training}


@dataclass
class _Counted:
    """A judge that counts the samples it scores."""

    judge: Judge
    samples: int = 0

    def __call__(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        self.samples += len(samples)
        return self.judge(samples, labels)


class _CountedSteps(JudgeSteps):
    """Steps whose state has the number of samples that their judge has scored."""

    judge: _Counted

    def state(self) -> dict[str, Any]:
        return {**super().state(), "judged": self.judge.samples}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.judge.samples = state["judged"]


@dataclass
class _Validation:
    """Scores, distance and diversity of solvers on held noise; the last two are those of the last table."""

    model: Model
    judge: _Counted
    held: Pairs
    features: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        self.reference = extract(self.features, self.held.target)

    def measure(self, table: Table) -> Tensor:
        """Return the scores ``(S,)`` of a table's samples."""
        samples = sample_pairs(self.model, self.held, table)
        if not bool(samples.isfinite().all()):
            raise Diverged("the samples are not finite")
        self.distance = float((samples - self.held.target).double().square().mean())
        parts = samples.to(self.model.device).split(_BATCH)
        given = self.held.labels
        labels = [None] * len(parts) if given is None else given.split(_BATCH)
        scores = torch.cat([scores_of(self.judge, x, y) for x, y in zip(parts, labels, strict=True)])
        self.diversity = prdc(extract(self.features, samples), self.reference)
        return scores


class _Guarded:
    """The criterion: negative scores within the trust region, until the diversity of the start falls.

    Args:
        validation: as the start's measurement left it.
        steps: whose region shrinks by what a choice lies outside.
        losses: of the start ``(S,)``, which is not measured again.
    """

    def __init__(self, validation: _Validation, steps: JudgeSteps, losses: Tensor) -> None:
        self.validation, self.steps, self.losses = validation, steps, losses
        self.first, self.region, self.eligible = validation.diversity, steps.bound, True

    @property
    def samples(self) -> int:
        """Samples of a call."""
        return len(self.validation.held)

    @property
    def logs(self) -> dict[str, float]:
        """Distance, diversity and samples scored."""
        diversity = self.validation.diversity
        return {
            "distance": self.validation.distance / self.steps.unit,
            "recall": diversity.recall,
            "coverage": diversity.coverage,
            "judged": float(self.validation.judge.samples),
        }

    def __call__(self, table: Table) -> Tensor:
        """Return the negative scores ``(S,)``; refuse a solver that exploits its judge."""
        if not self.steps.iteration:
            return self.losses
        scores = self.validation.measure(table)
        self._check_diversity()
        # What is within on the noises of the steps may be outside on others: aim for less.
        outside = max(1.0, self.validation.distance / self.region)
        self.steps.bound /= outside
        self.eligible = outside == 1.0
        return -scores

    def _check_diversity(self) -> None:
        """Stop when recall or coverage of the reference fell by more than chance."""
        for name in ("recall", "coverage"):
            before, after = getattr(self.first, name), getattr(self.validation.diversity, name)
            # Of a share of 1, too, one sample may be lost.
            share = (before * self.samples + 1) / (self.samples + 2)
            least = before - _FALL * math.sqrt(2 * share * (1 - share) / self.samples)
            if after < least:
                raise Diverged(
                    f"{name} of the reference fell from {before:.3f} to {after:.3f}, below {least:.3f}: the judge is "
                    "exploited, the solver before is kept"
                )
