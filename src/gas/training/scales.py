"""Scales: one solver for every guidance scale of a range, learned from pairs at several of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gas.arguments import integer
from gas.errors import UserError
from gas.learned.guidance import MAX_DEGREE, GuidanceBNS
from gas.losses import ROUNDING, Loss, is_sum_of_squares, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, join_scales
from gas.table import Table, table_of
from gas.training.distillation import Distilled, Report, checkpoint_file, distill_family
from gas.training.gauss_newton import GaussNewton
from gas.training.loop import check_seeds, fit
from gas.training.plan import FINISH
from gas.training.validation import evaluate


def reference_scale(scales: Sequence[float]) -> float:
    """Return the scale of the solver that training starts from: the middle one, of two the smaller."""
    if len(set(scales)) != len(scales) or len(scales) < 2:
        raise UserError(f"pairs of at least two guidance scales, one set each, got {_named(scales)}")
    return sorted(scales)[(len(scales) - 1) // 2]


def middle_sets(*kinds: Sequence[Pairs]) -> list[Pairs]:
    """Return the set of the middle scale (:func:`reference_scale`) of each kind: to train on, to validate on."""
    middle = reference_scale([part.guidance for part in kinds[0]])
    return [next(part for part in sets if part.guidance == middle) for sets in kinds]


def distill_scales(
    model: Model,
    pairs: Sequence[Pairs],
    validation: Sequence[Pairs],
    nfes: Sequence[int],
    *,
    members: Sequence[Distilled] = (),
    degree: int = 2,
    loss: str = "l2",
    config: GaussNewton | None = None,
    state: Path | None = None,
    **options: Any,
) -> Generator[Report, None, list[Distilled]]:
    """Learn a solver of each NFE for every guidance scale from the least to the largest of the pairs.

    Each starts at the solver of the middle scale, and is trained on all pairs as a :class:`gas.learned.GuidanceBNS`.
    A relative gain at one scale counts as much as at another. The best solver is the one of the least geometric mean
    of the scales' losses.

    Args:
        model: whose denoiser to call.
        pairs: teacher pairs to train on, a set for each scale.
        validation: teacher pairs of other seeds to choose by, a set for each of the same scales.
        nfes: network evaluations of each solver.
        members: solvers of the middle scale (:func:`reference_scale`) to start from; missing ones are learned first.
        degree: of the polynomials in the scale, 1 to 8. K + 1 scales determine a degree K; fewer lower it.
        loss: a name of :data:`gas.losses.LOSSES` that is a sum of squares.
        config: settings of the training.
        state: folder of the resumable state.
        options: further ones of :func:`gas.distill`, for the starts.

    Yields:
        The records of the missing starts, as :func:`gas.distill_family`; FitRecord of each solver, and its Distilled,
        whose loss is that of the middle scale.

    Raises:
        UserError: before any training: when two sets have one scale, or differ in more than that; when validation has
            other scales, or seeds of the pairs; when the degree is out of range, or the loss or the optimizer another
            than Gauss-Newton on sums of squares.
    """
    scales = [part.guidance for part in pairs]
    reference = reference_scale(scales)
    degree = min(integer("degree", degree, 1, MAX_DEGREE), len(scales) - 1)
    joint, chosen = _joined(pairs, validation)
    settings = config or FINISH
    if not is_sum_of_squares(loss_by_name(loss)) or not isinstance(settings, GaussNewton):
        raise UserError(
            f"a range of scales is learned by Gauss-Newton on l2, got {loss} and {type(settings).__name__}"
        )
    training = {**_counts(joint, chosen), **settings.config(), "degree": degree}
    starts = {member.nfe: member for member in members if not member.branched}
    if missing := set(nfes) - starts.keys():
        middle, chosen_on = middle_sets(pairs, validation)
        learned = yield from distill_family(
            model, middle, chosen_on, sorted(missing), config=config, loss=loss, state=state, **options
        )
        starts |= {member.nfe: member for member in learned}
    results = []
    for nfe in sorted(set(nfes)):
        solver = GuidanceBNS.from_table(
            model.schedule,
            starts[nfe].table(),
            model.t_end,
            scales=(min(scales), max(scales)),
            reference=reference,
            degree=degree,
        )
        file = checkpoint_file(state, f"scales-{nfe}")
        criterion = _GeometricMean(solver, model, chosen.by_scale(), loss_by_name(loss))
        fitting: dict[str, Any] = {"validation": chosen, "config": settings, "checkpoint": file}
        record = yield from fit(solver, model, joint, loss=loss, criterion=criterion, **fitting)
        results.append(_result(starts[nfe], solver, criterion.losses(), record.evaluations, training))
        yield results[-1]
    return results


def _joined(pairs: Sequence[Pairs], validation: Sequence[Pairs]) -> tuple[Pairs, Pairs]:
    """Return the pairs of all scales to train and to validate on, once they fit each other."""
    scales, chosen = (sorted(part.guidance for part in parts) for parts in (pairs, validation))
    joint = join_scales(pairs)
    if scales != chosen:
        raise UserError(
            f"validation must have the scales of the pairs, {_named(scales)}, got {_named(chosen)}: "
            "give a set of other seeds for each"
        )
    joint_validation = join_scales(validation)
    check_seeds(joint, joint_validation)
    return joint, joint_validation


def _named(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales) or "none"


@dataclass(frozen=True, eq=False)
class _GeometricMean:
    """The criterion: ``exp mean_w log loss(w)``, of the solver as it is now."""

    solver: GuidanceBNS
    model: Model
    sets: Sequence[Pairs]
    loss: Loss

    @property
    def samples(self) -> int:
        return sum(map(len, self.sets))

    def losses(self) -> dict[float, torch.Tensor]:
        """Return the losses of the pairs of each scale."""
        tables = [table_of(self.solver, part.guidance) for part in self.sets]
        losses = [evaluate(self.model, *each, self.loss) for each in zip(self.sets, tables, strict=True)]
        return {part.guidance: values for part, values in zip(self.sets, losses, strict=True)}

    def __call__(self, table: Table) -> float:
        # The table given is that of the reference scale: the tables of all scales come from the solver.
        means = torch.stack([values.mean() for values in self.losses().values()])
        return float(means.clamp(min=ROUNDING).log().mean().exp())


def _result(
    start: Distilled,
    solver: GuidanceBNS,
    losses: Mapping[float, torch.Tensor],
    evaluations: int,
    training: Mapping[str, Any],
) -> Distilled:
    """Return the result of a range: the start's, with the new solver, its losses and its training."""
    spent = evaluations + solver.nfe * sum(map(len, losses.values()))
    begun = start.provenance.get("training", {})
    seeds = [*training["seeds"], *begun.get("seeds", [])]
    training = {**begun, **training, "seeds": [min(seeds), max(seeds)], "scales": list(losses)}
    return replace(
        start,
        solver=solver,
        loss=float(losses[solver.reference].mean()),
        losses=losses[solver.reference],
        criterion=None,
        stopped="",
        evaluations=start.evaluations + spent,
        provenance={"guidance": solver.reference, **start.provenance, "training": training},
        measures={f"validation_loss_guidance_{w:g}": float(x.mean()) for w, x in losses.items()},
    )


def _counts(pairs: Pairs, validation: Pairs) -> dict[str, Any]:
    """Return the numbers of pairs of all scales, and the range of their seeds, first and last plus one."""
    seeds = torch.cat([pairs.seeds, validation.seeds])
    ends = [int(seeds.min()), int(seeds.max()) + 1]
    return {"pairs": len(pairs), "validation": len(validation), "seeds": ends}
