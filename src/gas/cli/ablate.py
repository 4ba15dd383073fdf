"""``gas ablate``: what each choice in training is worth, in one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gas.arguments import MAX_NFE
from gas.cli.app import command
from gas.cli.checks import checked, registered
from gas.cli.comparisons import print_comparisons, print_distributions
from gas.cli.evaluate import taught
from gas.cli.measuring import yardstick
from gas.cli.options import (
    Device,
    GasIterations,
    Json,
    ModelName,
    PairsBatch,
    PairsFolder,
    Seed,
    Validation,
    load_model,
    measured_seeds,
    parse_seeds,
    split_pairs,
)
from gas.cli.screen import bar, print_json
from gas.cli.settings import against_of

__all__ = ["ablate"]


def _questions() -> Iterable[str]:
    from gas.ablation import ABLATIONS

    return (*ABLATIONS, "transfer")


@command("gas ablate weight --model mnist --pairs runs/mnist-pairs --nfe 2")
def ablate(
    question: Annotated[
        str,
        typer.Argument(
            help="objective, weight, balance, penalty, pairs, pairing, theory, or transfer (with --onto).",
            callback=checked(registered("ablation", _questions)),
        ),
    ],
    pairs: Annotated[Path, PairsFolder],
    model: ModelName = "mnist",
    nfe: Annotated[int, typer.Option(help="Network evaluations.", min=1, max=MAX_NFE)] = 2,
    validation: Validation = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds to measure on, as N or FIRST:LAST.", callback=checked(measured_seeds))
    ] = "50000:50512",
    gas_iterations: GasIterations = None,
    batch: PairsBatch = None,
    onto: Annotated[str, typer.Option(help="The model that a transfer is measured on.")] = "",
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Train the same solver with one thing changed at a time, and measure each on the same unseen noise.

    A transfer trains GS and GAS on --model and measures both on the model --onto.
    """
    from gas.ablation import Variant, ablation_by_name
    from gas.ablation import ablate as run_ablation
    from gas.catalogue import Classical
    from gas.compare import run
    from gas.pairs import read_pairs

    transfer = question == "transfer"
    if transfer != bool(onto):
        raise ValueError("--onto MODEL and the question transfer belong together")
    variants = (Variant("GS", None), Variant("GAS")) if transfer else ablation_by_name(question)
    loaded = load_model(model, device)
    measured = load_model(onto, device) if transfer else loaded
    if measured.schedule.config() != loaded.schedule.config():
        raise ValueError(f"{onto} has another schedule than {model}: their solvers are not each other's")
    training_pairs, validation_pairs = split_pairs(read_pairs(pairs, model=loaded, hold=False), validation)
    config = against_of(gas_iterations, seed, batch)
    teacher = Classical(**{"t_end": loaded.t_end, **training_pairs.teacher})
    unseen = taught(measured, teacher, parse_seeds(seeds), training_pairs.guidance)
    ruler, rows = yardstick(measured, unseen), []
    with bar(f"{question}, NFE {nfe}", len(variants)) as running:
        trained = run_ablation(
            loaded, training_pairs, validation_pairs, nfe, variants, config=config, seed=seed
        )
        for done, (variant, table) in enumerate(trained, start=1):
            rows.append(ruler.measure(variant.label, run(measured, unseen, table), nfe))
            running.at(done, variant.label)
    if json:
        print_json({"question": question, "model": measured.name, "rows": [asdict(row) for row in rows]})
        return
    title = f"{question}: {measured.name}, NFE {nfe}, {len(unseen)} unseen seeds"
    print_comparisons(title, rows)
    print_distributions("the same, as distributions of features; 95% intervals", rows)
