"""``gas train``: learn solvers from teacher pairs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas import distributed
from gas.cli.app import command
from gas.cli.checks import checked, existing_file, existing_folder, is_in, output_file, registered
from gas.cli.follow import show
from gas.cli.options import (
    Call,
    Compile,
    CudaGraphs,
    Device,
    GasIterations,
    Iterations,
    Json,
    LearningRate,
    LossName,
    Method,
    ModelName,
    PairsBatch,
    Precision,
    Prompts,
    Relax,
    Seed,
    Start,
    Validation,
    load_model,
    parse_nfes,
    recorded,
    split_pairs,
    was_given,
)
from gas.cli.presets import PresetName, Settings, Weights, chosen_preset, objective_of
from gas.cli.screen import note, print_json, print_table
from gas.cli.settings import adversarial_settings, adversary_of, config_of
from gas.cli.train_preset import PresetRun, train_preset
from gas.display import significant
from gas.errors import UserError
from gas.workspace import scratch

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs
    from gas.training.distillation import Distilled

__all__ = ["train"]

# Of a critic: the paper's is 0.1, and at thousands of times that nothing but the critic is learned from.
_WEIGHTS = "[0, 1000000]"


def _kinds() -> Iterable[str]:
    from gas.learned.registry import SOLVERS

    return SOLVERS


def _objectives() -> Iterable[str]:
    from gas.training.adversarial.losses import OBJECTIVES

    return OBJECTIVES


def _memory_modes() -> Iterable[str]:
    from gas.training.activation_checkpointing import MODES

    return MODES


@command(
    "gas train --model digits --pairs runs/digits-pairs --nfe 3-6 --out runs/digits.json",
    shared=True,
    file="out",
)
def train(
    context: typer.Context,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of teacher pairs, as gas pairs writes it (--preset makes them).",
            callback=checked(existing_folder),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The solver file to write (--preset has a place for it).", callback=checked(output_file())
        ),
    ] = None,
    model: ModelName = "mnist",
    nfe: Annotated[
        str, typer.Option(help="Which NFE, as 4 or 3-6,8,10.", callback=checked(parse_nfes))
    ] = "4",
    validation: Validation = None,
    loss: LossName = "l2",
    method: Method = "auto",
    start: Start = "best",
    solver: Annotated[
        str,
        typer.Option(
            help="What is learned: gs, gs-free (no theory), ld3, s4s, s4s-pc, s4s-alt or bns.",
            callback=checked(registered("solver", _kinds)),
        ),
    ] = "gs",
    theory: Annotated[bool, typer.Option(help="Let coefficients follow the learned times.")] = True,
    iterations: Iterations = None,
    batch: PairsBatch = None,
    learning_rate: LearningRate = None,
    relax: Relax = None,
    objective: Annotated[
        str,
        typer.Option(help="gs, or gas: then learn from a critic too.", callback=checked(objective_of)),
    ] = "gs",
    weight: Annotated[
        float | None,
        typer.Option(
            help="Of the critic in the solver's loss, the paper's w (gas).",
            callback=checked(is_in("weight", _WEIGHTS)),
        ),
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(
            help="The same in units of the loss that GS ends with (gas); the default, 10.",
            callback=checked(is_in("balance", _WEIGHTS)),
        ),
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(
            help="The critic's loss (gas): relativistic (default) or classic.",
            callback=checked(registered("critic", _objectives)),
        ),
    ] = None,
    pairing: Annotated[
        str | None,
        typer.Option(
            help="Fakes and reals (gas): independent noises (default), or paired as the authors' code.",
            callback=checked(registered("pairing", lambda: ("independent", "paired"))),
        ),
    ] = None,
    gas_iterations: GasIterations = None,
    critic_weights: Annotated[
        Path | None,
        typer.Option(
            help="A critic to start from (gas): R3GAN's published pickle, not executed, or safetensors.",
            callback=checked(existing_file),
        ),
    ] = None,
    critic_steps: Annotated[
        int | None,
        typer.Option(help="Of the critic for one of the solver (gas); default 1.", min=1, max=1000),
    ] = None,
    seed: Seed = 0,
    memory: Annotated[
        str,
        typer.Option(
            help="Of Adam's graph: fast (kept), flat (three calls kept, the rest made again), least, or auto.",
            callback=checked(registered("memory", _memory_modes)),
        ),
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that --out names.")
    ] = False,
    preset: PresetName = "",
    settings: Settings = None,
    preset_weights: Weights = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of a preset: say settings and files, and do nothing.")
    ] = False,
    prompts: Prompts = None,
    call: Call = "",
    device: Device = "cpu",
    precision: Precision = "float32",
    compiled: Compile = False,
    cuda_graphs: CudaGraphs = False,
    json: Json = False,
) -> None:
    """Learn a solver for each NFE, with --objective gas an adversarial one, and write them to one file.

    Interrupted, the same command goes on where it stopped. What is written is the best on the validation
    pairs; for gs, whose measure is the loss, never worse there than the best classical solver. For gas the
    measure is the Frechet distance to the teacher's samples, and the loss may well be larger.

    With --preset NAME, a setup of the paper with all of its settings: says them, finds its files, makes its pairs and
    trains as the paper does, a file for each NFE.
    """
    from gas.pairs.dataset import read_pairs
    from gas.training.distillation import STATE, distill_family
    from gas.training.gauss_newton import GaussNewton
    from gas.training.initialization import Race

    setup = chosen_preset(
        context, preset, settings, ("objective", "nfe", "pairs", "out", "overwrite", "dry_run")
    )
    if setup is not None:
        nfes = parse_nfes(nfe) if was_given(context, "nfe") else setup.nfes
        kind, places = objective_of(objective), (preset_weights, pairs, out, prompts)
        if cuda_graphs:
            raise UserError("--cuda-graphs is not for --preset, whose training wants gradients throughout")
        run = PresetRun(setup, kind, tuple(nfes), *places, device, precision, compiled, overwrite)
        train_preset(run, dry=dry_run, json=json)
        return
    if pairs is None or out is None:
        raise UserError("--pairs and --out are needed where no --preset says them")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} exists: name another file, or replace it with --overwrite")
    nfes = parse_nfes(nfe)
    given = {
        "weight": weight,
        "balance": balance,
        "critic": critic,
        "pairing": pairing,
        "gas_iterations": gas_iterations,
        "critic_weights": None if critic_weights is None else str(critic_weights),
        "critic_steps": critic_steps,
    }
    gas_settings = adversarial_settings(objective, given)
    _check_combination(solver, theory, start, nfes)
    config = config_of(method, loss, start, iterations, batch, learning_rate, relax, memory, seed)
    if was_given(context, "memory") and isinstance(config, GaussNewton) and objective == "gs":
        raise UserError(
            "--memory is of Adam's graph, and gauss-newton keeps none: choose --method adam or leave it out"
        )
    loaded = load_model(model, device, precision, compiled, prompts=prompts, call=call, pairs=pairs)
    loaded = recorded(loaded, cuda_graphs)
    training_pairs, validation_pairs = split_pairs(read_pairs(pairs, model=loaded, hold=False), validation)
    state = out.with_name(out.name + ".state")
    adversary = None
    if gas_settings is not None:
        adversary = adversary_of(
            loaded, training_pairs, gas_settings, seed=seed, memory=memory, batch=batch, precision=precision
        )
    _say_split(len(training_pairs), len(validation_pairs))
    options = {"loss": loss, "solver": solver, "theory": theory, "adversary": adversary, "state": state}
    solver_settings = {
        "solver": solver,
        **asdict(config),
        **({} if gas_settings is None else {"objective": "gas", **gas_settings}),
    }
    race = Race(start).seeded(seed)
    total = config.iterations + (0 if adversary is None else adversary.config.iterations)
    with scratch(state, STATE) if distributed.is_first() else nullcontext():
        try:
            reports = distill_family(
                loaded, training_pairs, validation_pairs, nfes, config=config, race=race, **options
            )
            results = [show(reports, loaded, n, total) for n in sorted(nfes)]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"State is in {state}; the same command goes on from there.") from None
        if distributed.is_first():
            _save(out, results, loaded, training_pairs, validation_pairs, loss, solver_settings)
    _report(
        results, loaded, loss, len(validation_pairs), solver.upper() if gas_settings is None else "GAS", json
    )
    note(f"wrote {out}")


def _check_combination(solver: str, theory: bool, start: str, nfes: list[int]) -> None:
    """Refuse a kind without its theory, and a start that does not exist at an NFE, before the model is loaded."""
    from gas.learned.registry import kind_by_name
    from gas.training.initialization import named_start

    kind = kind_by_name(solver, theory=theory)
    for n in nfes if start != "best" else ():
        classical = named_start(start, n, 0.0)
        if not kind.starts_at(classical):
            raise UserError(
                f"--solver {solver} cannot start at {start}, whose times repeat: name another --start"
            )


def _say_split(training: int, validation: int) -> None:
    """Say how many pairs teach and how many choose; a default meant for more pairs may leave few to teach."""
    text = f"{training} pairs to learn from, the last {validation} to choose on"
    if training < validation:
        text += "; few to learn from: make more, or say "
        text += f"--validation {max(1, (training + validation) // 4)}"
    note(text)


def _save(
    out: Path,
    results: list[Distilled],
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str,
    settings: dict[str, Any],
) -> None:
    from gas.solver_file import save

    save(
        out,
        results,
        model=model,
        training={
            "pairs": len(pairs),
            "validation": len(validation),
            "seeds": [int(pairs.seeds[0]), int(validation.seeds[-1]) + 1],
            **settings,
        },
        measured={
            r.nfe: {
                "validation_loss": r.loss,
                **{f"validation_{name}": value for name, value in _robust(r, loss, model).items()},
                "best_classical_loss": r.best_classical_loss,
                "evaluations": float(r.evaluations),
            }
            for r in results
        },
    )


def _robust(result: Distilled, loss: str, model: Model) -> dict[str, float]:
    """What a few bad pairs do not decide: the median loss, and where the loss is a squared error of images, PSNR."""
    from gas.metrics.paired import mean_psnr
    from gas.models.protocol import data_range_of

    if result.losses is None:
        return {}
    psnr = mean_psnr(result.losses, data_range_of(model)) if loss == "l2" else None
    return {"median": float(result.losses.median()), **({} if psnr is None else {"psnr": psnr})}


def _report(results: list[Distilled], model: Model, loss: str, pairs: int, name: str, json: bool) -> None:
    from gas.training.initialization import start_label

    robust = [_robust(r, loss, model) for r in results]
    if json:
        print_json(
            [
                {
                    "nfe": r.nfe,
                    "validation_loss": r.loss,
                    **{f"validation_{name}": value for name, value in more.items()},
                    "best_classical": r.best_classical.label,
                    "best_classical_loss": r.best_classical_loss,
                    "start": r.start,
                    "training_evaluations": r.evaluations,
                }
                for r, more in zip(results, robust, strict=True)
            ]
        )
        return
    rows = [
        [
            str(r.nfe),
            r.best_classical.label,
            significant(r.best_classical_loss),
            start_label(r.start),
            significant(r.loss),
            f"{r.best_classical_loss / r.loss:.1f}x" if r.loss < r.best_classical_loss else "is kept",
            significant(more["median"]) if more else "",
            f"{more['psnr']:.1f}" if "psnr" in more else "",
            f"{r.evaluations:,}",
        ]
        for r, more in zip(results, robust, strict=True)
    ]
    rows.append(["all", *[""] * 7, f"{sum(r.evaluations for r in results):,}"])
    columns = [
        "NFE",
        "best classical",
        "its loss",
        "started from",
        name,
        "better by",
        f"{name}, median",
        "PSNR dB",
    ]
    title = f"{loss} to the teacher on {pairs} validation pairs, on which the best was also chosen"
    print_table(title, [*columns, "network evaluations"], rows)
