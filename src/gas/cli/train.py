"""``gas train``: learn solvers from teacher pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import gas
from gas.arguments import MAX_SEED
from gas.cli import options
from gas.cli.app import command, resumable
from gas.cli.checks import FOLDER, option, output_file
from gas.cli.follow import show
from gas.cli.loading import free_text_encoders
from gas.cli.screen import note, print_json, print_table
from gas.cli.teacherless import UNUSED, TeacherlessOptions, report_teacherless
from gas.display import significant

if TYPE_CHECKING:
    # Pairs to train on, and to validate on.
    Sets = tuple[gas.Pairs, gas.Pairs]


@command(
    "gas train --model digits --pairs runs/digits-pairs --nfe 3-6 --out runs/digits.json",
    shared=True,
    file="out",
)
def train(
    context: typer.Context,
    out: Annotated[Path, option("Solver file to write.", output_file(".json"))],
    pairs: Annotated[
        list[Path] | None,
        option(
            "Folder of teacher pairs, as gas pairs writes it; several of other guidance scales give one solver for "
            "all between. Not needed with --judge or --real.",
            **FOLDER,
        ),
    ] = None,
    nfe: Annotated[str, option("NFE to learn, as 4 or 3-6,8,10.", options.parse_nfes)] = "4",
    forwards: Annotated[
        str | None, option("Forward passes to learn, with guidance; alone, no NFE.", options.parse_nfes)
    ] = None,
    validation: options.Validation = None,
    solver: Annotated[str, option("Kind: gs, gs-free (no theory), ld3, s4s, s4s-pc, s4s-alt or bns.")] = "gs",
    theory: Annotated[bool, option("Let coefficients follow the learned times.")] = True,
    checkpointing: Annotated[
        str,
        option("Activation checkpointing of Adam: auto (by free memory), none, or the calls not recomputed."),
    ] = "auto",
    budget: Annotated[
        int | None,
        option("Most network evaluations in all; gas plan lists what they buy.", min=1, max=MAX_SEED),
    ] = None,
    student: Annotated[
        bool, option("The model is a student of the pairs' model: a quantized copy, say.")
    ] = False,
    overwrite: Annotated[bool, option("Replace the file that --out names.")] = False,
    *,
    optimizer: options.OptimizerOptions,
    discriminator: options.DiscriminatorOptions,
    teacherless: TeacherlessOptions,
    lifting: options.LiftOptions,
    network: options.NetworkOptions,
    json: options.Json = False,
) -> None:
    """Learn one solver for each NFE, from the best classical start, or with --objective gas against a discriminator.

    With --lift, a small network at the last row goes on where the table's numbers end, which helps at 1 to 3 NFE.

    With --forwards also, or only, one for each number of forward passes: which calls to guide is learned. With --pairs
    of several guidance scales, each solver serves every scale from the least to the largest.

    Resumable: an interrupt leaves the best solver so far in --out, and the same command goes on where it stopped. The
    solver that is written is chosen on the validation pairs. For gs, that is by the paired loss, never worse there than
    the best classical solver's. For gas, it is the Frechet distance to the teacher's samples, and the paired loss may
    be larger. For several guidance scales, it is the geometric mean of their paired losses: at one of them a classical
    solver may be better.

    Without a teacher: --judge learns from scores of samples, and --real with --objective gas from real images alone.
    """
    pairs, alone = pairs or [], teacherless.replaces_pairs(context, pairs or [], discriminator)
    replaces = _replaces(out, overwrite)
    if alone:
        _train_teacherless(
            teacherless, pairs, out, nfe, optimizer, discriminator, network, budget, replaces, json
        )
        return
    nfes, budgets = _counts(context, nfe, forwards, budget)
    stored, usual = options.parse_checkpointing(checkpointing), lifting.against()
    gas_settings = discriminator.settings(usual)
    config, search = optimizer.config(stored), optimizer.search
    checkpointed = gas_settings is None and options.was_given(context, "checkpointing")
    _check_combination(solver, theory, search.start, nfes, config if checkpointed else None)
    _check_scales(context.params, len(pairs), lifting.lift)
    model = network.load(pairs[0])
    lifting.check(model, nfes)
    ranges, sets = _read(pairs, model, student, validation)
    free_text_encoders(network.model, model, *(part.guidance for part, _ in ranges))
    adversary = discriminator.adversary(model, sets[0], optimizer, stored, network.precision, usual)
    if budgets:
        gas.training.elimination.check_branches(model, sets[0])
    progress = gas.training.BestSoFar(model)
    with _state(out, progress if replaces else None, sets[0].guidance) as state:
        settings: dict[str, Any] = {"config": config, "search": search}
        settings |= {"loss": optimizer.loss, "solver": solver, "theory": theory, "state": state}
        run, against = _Run(model, sets, progress, settings), None if lifting.lift else adversary
        starts = sorted({*nfes, *gas.training.elimination.guided_starts(budgets)})
        results = run.learn(starts, solver.upper(), adversary=against, budget=budget)
        if lifting.lift:
            results = run.lift(results, lifting, optimizer.seed, adversary)
        results = run.widen(ranges, results)
        results += run.guided(budgets, results)
        results = [result for result in results if result.branched or result.nfe in nfes]
        if gas.distributed.is_first():
            _save(out, results, model, optimizer.loss, gas_settings, lifting.recorded())
    title = "lifted" if lifting.lift else "GAS" if gas_settings is not None else solver.upper()
    _report(results, model, optimizer.loss, len(sets[1]), title, json)
    note(f"wrote {out}")


def _train_teacherless(
    teacherless: TeacherlessOptions,
    pairs: list[Path],
    out: Path,
    nfe: str,
    optimizer: options.OptimizerOptions,
    discriminator: options.DiscriminatorOptions,
    network: options.NetworkOptions,
    budget: int | None,
    replaces: bool,
    json: bool,
) -> None:
    """Learn a solver of each NFE from a judge, or from real images alone, and write them."""
    model = network.load(pairs[0] if pairs else None)
    state = out.with_name(out.name + ".state")
    arguments = optimizer, discriminator, budget, state, network.precision
    train, guidance = teacherless.reports(model, pairs, *arguments)
    progress, title = gas.training.BestSoFar(model), "GAS" if teacherless.judge is None else "judge"
    with _state(out, progress if replaces else None, guidance):
        nfes = options.parse_nfes(nfe)
        results = [show(progress.watch(train(each)), model, each, title) for each in nfes]
        if gas.distributed.is_first():
            settings = {k: x for k, x in (discriminator.settings() or {}).items() if k not in UNUSED["real"]}
            training = {**results[0].provenance["training"], **settings}
            gas.save(out, results, model=model, training=training)
    report_teacherless(results, json)
    note(f"wrote {out}")


def _counts(
    context: typer.Context, nfe: str, forwards: str | None, budget: int | None
) -> tuple[list[int], list[int]]:
    """Return the NFE and the numbers of forward passes to learn."""
    if forwards is not None and budget is not None:
        raise gas.UserError("--budget counts network evaluations of --nfe: leave out --forwards or --budget")
    passes = options.parse_nfes(forwards) if forwards is not None else []
    return options.parse_nfes(nfe) if not passes or options.was_given(context, "nfe") else [], passes


# What --pairs of several guidance scales go with: the values of these options.
_OF_SCALES = {
    "forwards": (None,),
    "budget": (None,),
    "objective": ("gs",),
    "method": ("auto", "gauss-newton"),
    "loss": ("l2",),
    "solver": ("gs",),
    "theory": (True,),
}


def _check_scales(given: Mapping[str, Any], count: int, lift: bool) -> None:
    """Refuse options that do not go with pairs of several guidance scales or --lift, and name those that were given."""
    if lift and (count > 1 or given["forwards"] is not None or given["budget"] is not None):
        raise gas.UserError("--lift goes with one --pairs and --nfe alone: leave out --forwards and --budget")
    if given["forwards"] is not None and given["objective"] != "gs":
        raise gas.UserError(
            "--forwards learns from pairs alone, without a discriminator: leave out --objective gas"
        )
    wrong = [name for name, allowed in _OF_SCALES.items() if given[name] not in allowed]
    if count > 1 and wrong:
        names = ", ".join(f"--{name}" for name in wrong).replace("--theory", "--no-theory")
        raise gas.UserError(
            f"--pairs of several guidance scales go with gauss-newton and --nfe alone: leave out {names}"
        )


def _read(
    folders: list[Path], model: gas.models.Model, student: bool, validation: int | None
) -> tuple[list[Sets], Sets]:
    """Return the sets of each guidance scale, to train and to validate on, and those of the middle scale.

    The last rows of each set are to validate on, and none of any set may be trained on: sets have the same seeds.
    """
    data = [gas.read_pairs(folder, model=model, student=student, hold=False) for folder in folders]
    seeds = dict.fromkeys("{}:{}".format(*each.manifest["recipe"]["seeds"]) for each in data)
    if len(seeds) > 1:
        raise gas.UserError(f"--pairs: make every folder with the same --seeds; got {', '.join(seeds)}")
    sets = [options.split_pairs(each, validation) for each in data]
    if len(sets) == 1:
        return sets, sets[0]
    middle, chosen_on = gas.training.scales.middle_sets(*zip(*sets, strict=True))
    gas.pairs.dataset.check_scales(data)
    return sets, (middle, chosen_on)


@dataclass(frozen=True)
class _Run:
    """A training: its stages, each of which takes the solvers of the one before."""

    model: gas.models.Model
    sets: Sets
    progress: gas.training.BestSoFar
    settings: dict[str, Any]  # of gas.distill

    def learn(self, nfes: list[int], title: str, **family: Any) -> list[gas.Distilled]:
        """Learn a solver of each NFE; what is refused before the first report is one line, without the note."""
        family |= self.settings
        reports = gas.distill_family(self.model, *self.sets, nfes, **family)
        first, (training, validation) = next(reports), map(len, self.sets)
        text = f"{training} pairs to learn from, the last {validation} to choose on"
        if training < validation:
            advice = f"--validation {max(1, (training + validation) // 4)}"
            text += f"; few to learn from: make more, or say {advice}"
        note(text)
        watched = self.progress.watch(chain([first], reports))
        return [show(watched, self.model, nfe, title) for nfe in nfes]

    def lift(
        self,
        members: list[gas.Distilled],
        lifting: options.LiftOptions,
        seed: int,
        adversary: gas.Adversary | None,
    ) -> list[gas.Distilled]:
        """Lift the solver of each NFE."""
        results, state = [], self.settings["state"]
        for member in members:
            runs = gas.training.lifting.record_runs(self.model, member.table(), self.sets[0])
            config = _size(self.model, runs, lifting, seed, state / f"nfe-{member.nfe}-lift.json")
            settings: dict[str, Any] = {"loss": self.settings["loss"], "config": config, "state": state}
            reports = gas.training.lift(
                self.model, runs, self.sets[1], member, adversary=adversary, **settings
            )
            results.append(show(reports, self.model, member.nfe, "lifted"))
            self.progress.results[member.nfe] = results[-1]
        return results

    def widen(self, ranges: list[Sets], members: list[gas.Distilled]) -> list[gas.Distilled]:
        """Learn the solvers of every guidance scale from those of the middle one, where there are several."""
        if len(ranges) == 1:
            return members
        settings = {name: self.settings[name] for name in ("config", "loss", "state")}
        pairs, validation = zip(*ranges, strict=True)
        nfes = [member.nfe for member in members]
        reports = gas.training.distill_scales(
            self.model, pairs, validation, nfes, members=members, **settings
        )
        return [show(reports, self.model, nfe, "guidance scales") for nfe in nfes]

    def guided(self, budgets: list[int], members: list[gas.Distilled]) -> list[gas.Distilled]:
        """Learn a solver of each number of forward passes from those of the NFE."""
        reports = gas.training.distill_forwards(
            self.model, *self.sets, budgets, members=members, **self.settings
        )
        counts = sorted(budgets, reverse=True)
        return [show(reports, self.model, count, "BNS", "forward passes") for count in counts]


def _size(
    model: gas.models.Model,
    runs: gas.training.RecordedPairs,
    lifting: options.LiftOptions,
    seed: int,
    file: Path,
) -> gas.training.Lifting:
    """Return the settings with the size of the residual; a size that was measured is stored, so that it stays."""
    config = lifting.config(seed)
    if lifting.lift_width is None:
        share = gas.training.lifting.SHARE if lifting.lift_share is None else lifting.lift_share

        def size() -> dict[str, Any]:
            known = gas.io.read_json(file) if file.exists() else {}
            if known.pop("share", None) != share:
                sized = gas.training.lifting.sized(config, model, runs, share)
                known = {"width": sized.width, "patch": sized.patch}
                gas.io.write_text(file, dumps({**known, "share": share}))
            return known

        # In one process: a measured time differs among processes, whose residuals must not.
        config = replace(config, **gas.distributed.broadcast(size))
    cost = gas.training.lifting.measured_cost(config, model, runs)
    note(
        f"NFE {runs.outputs.shape[1]}: a residual of {cost.numbers:,} numbers (width {config.width}, patch "
        f"{config.patch}), {cost.share:.1%} of a network call"
    )
    return config


def _save(
    out: Path,
    results: list[gas.Distilled],
    model: gas.models.Model,
    loss: str,
    settings: dict[str, Any] | None,
    lifting: dict[str, Any],
) -> None:
    """Write the solvers with the settings of GAS and lifting and robust measurements beside their own provenance."""
    training = {**results[0].provenance["training"], **lifting}
    if settings is not None:
        training |= {"objective": "gas", **settings}
    plain = [result for result in results if not result.branched]
    measured = {r.nfe: {**_validation(r, loss, model), **r.measured()} for r in plain}
    gas.save(out, results, model=model, training=training, measured=measured)


@contextmanager
def _state(out: Path, progress: gas.training.BestSoFar | None, guidance: float) -> Iterator[Path]:
    """Own the folder of the resumable state of a file; an interrupt writes the progress, if any is to be written."""
    state, first = out.with_name(out.name + ".state"), gas.distributed.is_first()
    owned = gas.workspace.scratch(state, gas.training.distillation.STATE) if first else nullcontext()
    saved = _saved_if_interrupted(out, progress, guidance) if progress and first else nullcontext()
    with owned, resumable(f"State is in {state}"), saved:
        yield state


@contextmanager
def _saved_if_interrupted(out: Path, progress: gas.training.BestSoFar, guidance: float) -> Iterator[None]:
    """Write the best solvers so far when the training is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if results := list(progress.results.values()):
            # One that is still being ranked does not say how it is made, as the finished ones do.
            provenance = next((result.provenance for result in results if result.provenance), {})
            results = [replace(result, provenance=provenance) for result in results]
            gas.save(out, results, model=progress.model, guidance=guidance, training={"unfinished": True})
            note(f"wrote the best so far to {out}")
        raise


def _replaces(out: Path, overwrite: bool) -> bool:
    """Return whether an interrupt may write a file: it is new, or unfinished; without ``overwrite`` refuse others."""
    if not (new := not out.exists() or _unfinished(out)) and not overwrite:
        raise gas.UserError(f"--out {out} exists: name another file, or replace it with --overwrite")
    return new


def _unfinished(out: Path) -> bool:
    """Return whether a solver file is of an interrupted training."""
    try:
        return bool(gas.load(out).document.training.get("unfinished"))
    except (OSError, ValueError):
        return False


def _check_combination(
    solver: str,
    theory: bool,
    start: str | gas.solver_file.Artefact,
    nfes: list[int],
    checkpointed: gas.Adam | gas.GaussNewton | None,
) -> None:
    """Refuse options that do not go together; ``checkpointed`` is the optimizer that ``--checkpointing`` is for."""
    kind = gas.learned.kind_by_name(solver, theory=theory)
    named = start if isinstance(start, str) and start != "best" else ""
    for n in nfes if named else ():
        if not kind.starts_at(gas.training.initialization.named_start(named, n, 0.0)):
            raise gas.UserError(f"--solver {solver} cannot start at {start}: its times repeat, name another")
    if isinstance(checkpointed, gas.GaussNewton):
        raise gas.UserError(
            "--checkpointing is of Adam's graph, and gauss-newton has none: choose --method adam or leave it out"
        )


def _validation(result: gas.Distilled, loss: str, model: gas.models.Model) -> dict[str, float]:
    """Return the loss, and what a few bad pairs do not decide: the median loss and, for images, the PSNR."""
    measures = {"validation_loss": result.loss}
    if result.losses is not None:
        measures["validation_median"] = float(result.losses.median())
        range_ = gas.models.data_range_of(model) if loss == "l2" else None
        if (psnr := gas.metrics.paired.mean_psnr(result.losses, range_)) is not None:
            measures["validation_psnr"] = psnr
    return measures


def _report(
    results: list[gas.Distilled], model: gas.models.Model, loss: str, validation: int, name: str, json: bool
) -> None:
    """Print the result of each NFE, as JSON or as a table."""
    document, rows = [], []
    for result in results:
        measures, best = _validation(result, loss, model), result.best_classical_loss
        ranged = isinstance(result.solver, gas.learned.GuidanceBNS)
        document.append(
            {
                "forwards" if result.branched else "nfe": result.nfe,
                **measures,
                "best_classical": result.best_classical.label,
                "best_classical_loss": best,
                "start": result.start,
                "training_evaluations": result.evaluations,
            }
        )
        median, psnr = (measures.get(f"validation_{measure}") for measure in ("median", "psnr"))
        rows.append(
            {
                "NFE": f"{result.nfe} passes" if result.branched else result.nfe,
                "best classical": result.best_classical.label,
                "its loss": significant(best),
                "started from": gas.training.initialization.start_label(result.start),
                name: significant(result.loss),
                "better by": f"{best / result.loss:.1f}x" if result.loss < best or ranged else "is kept",
                f"{name}, median": None if median is None else significant(median),
                "PSNR dB": None if psnr is None else f"{psnr:.1f}",
                "network evaluations": f"{result.evaluations:,}",
            }
        )
    if json:
        print_json(document)
        return
    total = sum(result.evaluations for result in results)
    rows.append({"NFE": "all", "network evaluations": f"{total:,}"})
    # A budget may not pay for all validation pairs.
    pairs = min(validation if result.losses is None else len(result.losses) for result in results)
    title = f"{loss} to the teacher on {pairs} validation pairs, on which the solver was also chosen"
    print_table(title, rows)
