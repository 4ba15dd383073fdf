"""``gas train``: learn solvers from teacher pairs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas import distributed
from gas.cli.app import command, resumable
from gas.cli.checks import option, output_file, registered
from gas.cli.follow import show
from gas.cli.options import (
    DiscriminatorOptions,
    Json,
    NetworkOptions,
    OptimizerOptions,
    PairsFolder,
    Validation,
    parse_checkpointing,
    parse_nfes,
    split_pairs,
    was_given,
)
from gas.cli.screen import note, print_json, print_table
from gas.display import significant
from gas.errors import UserError
from gas.workspace import scratch

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.training.adam import Adam
    from gas.training.distillation import Distilled
    from gas.training.gauss_newton import GaussNewton

__all__ = ["train"]


@command(
    "gas train --model digits --pairs runs/digits-pairs --nfe 3-6 --out runs/digits.json",
    shared=True,
    file="out",
)
def train(
    context: typer.Context,
    pairs: Annotated[Path, PairsFolder],
    out: Annotated[Path, option("Solver file to write.", output_file())],
    nfe: Annotated[str, option("NFE to learn, as 4 or 3-6,8,10.", parse_nfes)] = "4",
    forwards: Annotated[
        str | None,
        option(
            "With guidance, forward passes to learn, as 5-8, two of which a guided evaluation needs; alone, no NFE.",
            parse_nfes,
        ),
    ] = None,
    validation: Validation = None,
    solver: Annotated[
        str,
        option(
            "Parameterization to learn: gs, gs-free (no theory), ld3, s4s, s4s-pc, s4s-alt or bns.",
            registered("solver", "gas.learned.registry:SOLVERS"),
        ),
    ] = "gs",
    theory: Annotated[bool, option("Let coefficients follow the learned times.")] = True,
    checkpointing: Annotated[
        str,
        option(
            "Activation checkpointing of Adam: none, the number of network calls that are not recomputed, or "
            "auto (by the free memory).",
            parse_checkpointing,
        ),
    ] = "auto",
    overwrite: Annotated[bool, option("Replace the file that --out names.", names=("--overwrite",))] = False,
    *,
    optimizer: OptimizerOptions,
    discriminator: DiscriminatorOptions,
    network: NetworkOptions,
    json: Json = False,
) -> None:
    """Learn one solver for each NFE, from the best classical start, or with --objective gas against a discriminator.

    With --forwards also, or only, one for each number of forward passes: which calls to guide is learned.

    Resumable: the same command after an interrupt goes on where it stopped. The solver that is written is the best on
    the validation pairs. For gs, that is the paired loss, never worse there than the best classical solver's. For gas,
    it is the Frechet distance to the teacher's samples, and the paired loss may be larger.
    """
    from gas.pairs.dataset import read_pairs
    from gas.training.distillation import STATE, distill_family
    from gas.training.elimination import check_branches, distill_forwards, guided_calls
    from gas.training.initialization import StartSearch

    if out.exists() and not overwrite:
        raise UserError(f"--out {out} exists: name another file, or replace it with --overwrite")
    nfes, stored, gas_settings = parse_nfes(nfe), parse_checkpointing(checkpointing), discriminator.settings()
    budgets = [] if forwards is None else parse_nfes(forwards)
    if budgets and not was_given(context, "nfe"):
        nfes = []
    config = optimizer.config(stored)
    alone = gas_settings is None and was_given(context, "checkpointing")
    _check_combination(solver, theory, optimizer.start, nfes, config if alone else None)
    model = network.load(pairs)
    training_pairs, validation_pairs = split_pairs(read_pairs(pairs, model=model, hold=False), validation)
    adversary = discriminator.adversary(model, training_pairs, optimizer, stored, network.precision)
    if budgets:
        check_branches(model, training_pairs)
    _note_split(len(training_pairs), len(validation_pairs))
    state = out.with_name(out.name + ".state")
    with (
        scratch(state, STATE) if distributed.is_first() else nullcontext(),
        resumable(f"State is in {state}"),
    ):
        options: dict[str, Any] = {
            "config": config,
            "search": StartSearch(optimizer.start).seeded(optimizer.seed),
            "loss": optimizer.loss,
            "solver": solver,
            "theory": theory,
            "state": state,
        }
        starts = sorted({*nfes, *map(guided_calls, budgets)})
        reports = distill_family(
            model, training_pairs, validation_pairs, starts, adversary=adversary, **options
        )
        members = [show(reports, model, n, solver.upper()) for n in starts]
        passes = distill_forwards(
            model, training_pairs, validation_pairs, budgets, members=members, **options
        )
        results = [member for member in members if member.nfe in nfes]
        results += [show(passes, model, n, "BNS", "forward passes") for n in sorted(budgets, reverse=True)]
        if distributed.is_first():
            _save(out, results, model, optimizer.loss, gas_settings)
    title = "GAS" if gas_settings is not None else solver.upper()
    _report(results, model, optimizer.loss, len(validation_pairs), title, json)
    note(f"wrote {out}")


def _check_combination(
    solver: str, theory: bool, start: str, nfes: list[int], checkpointed: Adam | GaussNewton | None
) -> None:
    """Refuse options that do not go together before the model is loaded.

    Args:
        solver: parameterization, which may need its theory.
        theory: whether coefficients follow the times.
        start: which the parameterization has to have at every NFE.
        nfes: to learn.
        checkpointed: the optimizer that ``--checkpointing`` was given for, if it was.
    """
    from gas.learned.registry import kind_by_name
    from gas.training.gauss_newton import GaussNewton
    from gas.training.initialization import named_start

    kind = kind_by_name(solver, theory=theory)
    for n in nfes if start != "best" else ():
        if not kind.starts_at(named_start(start, n, 0.0)):
            raise UserError(
                f"--solver {solver} cannot start at {start}, whose times repeat: name another --start"
            )
    if isinstance(checkpointed, GaussNewton):
        raise UserError(
            "--checkpointing is of Adam's graph, and gauss-newton has none: choose --method adam or leave it out"
        )


def _note_split(training: int, validation: int) -> None:
    """Note how many pairs teach and how many choose; the default may leave few of a small set to teach."""
    text = f"{training} pairs to learn from, the last {validation} to choose on"
    if training < validation:
        text += "; few to learn from: make more, or say "
        text += f"--validation {max(1, (training + validation) // 4)}"
    note(text)


def _save(
    out: Path, results: list[Distilled], model: Model, loss: str, gas_settings: dict[str, Any] | None
) -> None:
    """Write the solvers with the settings of GAS and robust measurements beside their own provenance."""
    from gas.solver_file import save

    training = dict(results[0].provenance["training"])
    if gas_settings is not None:
        training |= {"objective": "gas", **gas_settings}
    measured = {}
    for result in results:
        if result.branched:
            continue
        values = result.measured()
        robust = {f"validation_{name}": value for name, value in _robust(result, loss, model).items()}
        measured[result.nfe] = {"validation_loss": values.pop("validation_loss"), **robust, **values}
    save(out, results, model=model, training=training, measured=measured)


def _robust(result: Distilled, loss: str, model: Model) -> dict[str, float]:
    """Return measures that a few bad pairs do not decide: the median loss and, for images, the PSNR."""
    from gas.metrics.paired import mean_psnr
    from gas.models.protocol import data_range_of

    if result.losses is None:
        return {}
    psnr = mean_psnr(result.losses, data_range_of(model)) if loss == "l2" else None
    return {"median": float(result.losses.median()), **({} if psnr is None else {"psnr": psnr})}


def _report(results: list[Distilled], model: Model, loss: str, pairs: int, name: str, json: bool) -> None:
    """Print the result of each NFE, as JSON or as a table."""
    from gas.training.initialization import start_label

    document, rows = [], []
    for result in results:
        robust = _robust(result, loss, model)
        document.append(
            {
                "forwards" if result.branched else "nfe": result.nfe,
                "validation_loss": result.loss,
                **{f"validation_{measure}": value for measure, value in robust.items()},
                "best_classical": result.best_classical.label,
                "best_classical_loss": result.best_classical_loss,
                "start": result.start,
                "training_evaluations": result.evaluations,
            }
        )
        better = result.loss < result.best_classical_loss
        rows.append(
            [
                f"{result.nfe} passes" if result.branched else str(result.nfe),
                result.best_classical.label,
                significant(result.best_classical_loss),
                start_label(result.start),
                significant(result.loss),
                f"{result.best_classical_loss / result.loss:.1f}x" if better else "is kept",
                significant(robust["median"]) if robust else "",
                f"{robust['psnr']:.1f}" if "psnr" in robust else "",
                f"{result.evaluations:,}",
            ]
        )
    if json:
        print_json(document)
        return
    rows.append(["all", *[""] * 7, f"{sum(result.evaluations for result in results):,}"])
    columns = ["NFE", "best classical", "its loss", "started from", name, "better by", f"{name}, median"]
    title = f"{loss} to the teacher on {pairs} validation pairs, on which the best was also chosen"
    print_table(title, [*columns, "PSNR dB", "network evaluations"], rows)
