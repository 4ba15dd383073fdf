"""``gas train`` without a teacher: against a judge, or against discriminators of real data alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

import gas
from gas.cli import options
from gas.cli.checks import GUIDANCE, option
from gas.cli.screen import note, print_json, print_table
from gas.display import significant

if TYPE_CHECKING:
    from gas.training.distillation import Report

# Options of gas train that say something about pairs, their loss or their optimizer.
_OF_PAIRS = (
    *("forwards", "validation", "solver", "theory", "checkpointing", "student", "loss", "method"),
    *("learning_rate", "relax", "lift"),
)
# Those that the training of a judge, and of real data alone, has no use for: the weight has no paired loss beside it.
UNUSED = {"judge": (), "real": ("budget", "iterations", "weight", "balance", "pairing")}


@dataclass(frozen=True, kw_only=True)
class TeacherlessOptions:
    """What to learn from in place of a teacher's pairs."""

    panel: ClassVar[str] = "Without a teacher"

    judge: Annotated[
        str | None,
        option(
            "Maximize a score: classifier (the model's), http://ADDRESS, or a folder of a CLIP or classifier; --pairs "
            "are its reference."
        ),
    ] = None
    real: Annotated[
        Path | None,
        option(
            "Real images for --objective gas without --pairs: a folder, an .npz, or MNIST's IDX.", exists=True
        ),
    ] = None
    radius: Annotated[
        float | None,
        option(
            "Largest squared distance of --judge's solver to the reference, in the start's; default: 1.5.",
            min=0,
        ),
    ] = None
    guidance: Annotated[
        float | None,
        option("Guidance scale without --pairs; default: of --start's file, else 1.", **GUIDANCE),
    ] = None

    def replaces_pairs(
        self, context: typer.Context, pairs: list[Path], discriminator: options.DiscriminatorOptions
    ) -> bool:
        """Return whether to learn without a teacher; refuse options that do not go together."""
        name = "judge" if self.judge is not None else "real"
        adversarial = options.parse_objective(discriminator.objective) == "gas"
        if self.judge is None and self.radius is not None:
            raise gas.UserError("--radius is of the trust region of --judge: add that or leave it out")
        if self.judge is None and self.real is None:
            if not pairs:
                raise gas.UserError("--pairs are needed, or --judge, or --real with --objective gas")
            if self.guidance is not None:
                raise gas.UserError("--guidance is recorded in the pairs: leave it out")
            return False
        discriminator.settings()
        if self.judge is not None and (self.real is not None or adversarial):
            raise gas.UserError("--judge goes without --real and --objective gas: leave one out")
        if self.real is not None and (pairs or not adversarial):
            raise gas.UserError(
                "--real is for --objective gas without --pairs: leave them out, add --objective gas"
            )
        if len(pairs) > 1 or (pairs and self.guidance is not None):
            raise gas.UserError("--judge takes one folder of --pairs as its reference, with their guidance")
        for given in (*_OF_PAIRS, *UNUSED[name]):
            if options.was_given(context, given):
                raise gas.UserError(f"--{given.replace('_', '-')} does not go with --{name}: leave it out")
        return True

    def reports(
        self,
        model: gas.models.Model,
        pairs: list[Path],
        optimizer: options.OptimizerOptions,
        discriminator: options.DiscriminatorOptions,
        budget: int | None,
        state: Path,
        precision: str,
    ) -> tuple[Callable[[int], Iterator[Report]], float]:
        """Return the training of an NFE, once its judge or real images have been read, and its guidance scale."""
        start = optimizer.search.start
        if isinstance(start, str) and start != "best":
            raise gas.UserError(f"--start {start} needs --pairs: name a solver file, or leave it out")
        artefact = start if isinstance(start, gas.Artefact) else None
        guidance = self.guidance
        if guidance is None:
            guidance = 1.0 if artefact is None else artefact.document.guidance
        if self.judge is not None:
            if gas.distributed.world_size() > 1:
                raise gas.UserError("--judge runs in one process: start it without torchrun")
            reference = gas.read_pairs(pairs[0], model=model) if pairs else None
            guidance = guidance if reference is None else reference.guidance
            train: Callable[[int], Iterator[Report]] = partial(
                gas.training.distill_judge,
                model,
                gas.features.judges.judge_by_name(self.judge, model),
                start=artefact,
                pairs=reference,
                settings=self._ascent(optimizer, budget),
                guidance=guidance,
                name=self.judge,
                state=state,
            )
            return train, guidance
        reals = gas.training.adversarial.real_pairs(model, Path(str(self.real)), guidance)
        note(f"{len(reals):,} real images to learn from")
        # Without a paired loss the weight changes nothing.
        weighted = replace(discriminator, weight=1.0)
        adversary: Any = weighted.adversary(model, reals, optimizer, "auto", precision)

        def against_reals(nfe: int) -> Iterator[Report]:
            checkpoint = state / f"nfe-{nfe}-gas.pt"
            return gas.training.adversarial.distill_real(
                model, adversary, reals, nfe, start=artefact, checkpoint=checkpoint
            )

        return against_reals, guidance

    def _ascent(self, optimizer: options.OptimizerOptions, budget: int | None) -> gas.training.JudgeAscent:
        """Return the settings of a judge's training, with those that were given."""
        given: dict[str, Any] = {"iterations": optimizer.iterations, "batch": optimizer.batch}
        given |= {"seed": optimizer.seed, "radius": self.radius, "budget": budget}
        return gas.training.JudgeAscent(**{name: x for name, x in given.items() if x is not None})


def report_teacherless(results: list[gas.Distilled], json: bool) -> None:
    """Print the measure of each NFE before and after: the mean score, or the Frechet distance to real images."""
    judged = results[0].provenance["loss"] == "judge"
    sign, name = (-1, "score") if judged else (1, "Frechet to real images")
    rows: list[dict[str, Any]] = []
    for result in results:
        rows.append(
            {
                "nfe": result.nfe,
                "start": result.start,
                "before": sign * result.measures["start_loss"],
                "after": sign * result.loss,
                "stopped": result.stopped,
                "training_evaluations": result.evaluations,
                **{key: value for key, value in result.measures.items() if key != "start_loss"},
            }
        )
    if json:
        print_json([{"measure": name, **row} for row in rows])
        return
    shown = []
    for row in rows:
        numbers = {f"{name} before": significant(row["before"]), "after": significant(row["after"])}
        counts = {"network evaluations": f"{row['training_evaluations']:,}"}
        if judged:
            numbers |= {key: f"{row[key]:.3f}" for key in ("recall", "coverage", "distance")}
            counts["samples judged"] = f"{int(row['judged']):,}"
        start = gas.training.initialization.start_label(row["start"])
        shown.append({"NFE": row["nfe"], "started from": start, **numbers, **counts})
    print_table("on noise that no step saw, on which the solver was also chosen", shown)
