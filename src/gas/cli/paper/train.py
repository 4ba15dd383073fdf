"""``gas paper train``: from a preset's files to a solver, by one command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import gas
from gas.cli.app import command, holding, paper, resumable
from gas.cli.checks import FOLDER, option, output_file
from gas.cli.options import Json, ObjectiveName, parse_nfes, parse_objective
from gas.cli.pairs import run_teacher
from gas.cli.paper.presets import PresetNetworkOptions, PresetOptions, show_preset
from gas.cli.screen import bar, note, print_json, print_table
from gas.display import significant


@command("gas paper train cifar10 --nfe 4 --objective gas", group=paper, shared=True, file="out")
def train(
    *,
    preset: PresetOptions,
    objective: ObjectiveName = "gs",
    nfe: Annotated[str, option("NFE to learn, as 4 or 3-6,8,10; default: the preset's.")] = "",
    pairs: Annotated[Path | None, option("Teacher pairs; default: they are made.", **FOLDER)] = None,
    out: Annotated[Path | None, option("Solver file; default: one under runs.", output_file(".json"))] = None,
    overwrite: Annotated[bool, option("Replace existing solver files.")] = False,
    dry_run: Annotated[bool, option("Print settings and files, and do nothing.")] = False,
    network: PresetNetworkOptions,
    json: Json = False,
) -> None:
    """Learn a solver for each NFE as the paper does, by Adam; GAS has its discriminator from the first step on.

    Prints the settings, finds the published files, makes the pairs, trains, and writes a file for each NFE. Resumable:
    the same command after an interrupt goes on where it stopped.
    """
    setup, kind = preset.load(), parse_objective(objective)
    nfes = parse_nfes(nfe) if nfe else setup.nfes
    if out is not None and len(nfes) > 1:
        raise gas.UserError("--out names one file, so give one --nfe with it")
    files = {n: out or setup.solver_path(kind, n) for n in nfes}
    if dry_run:
        show_preset(setup)
        for located in gas.paper.find_files(setup, network.folder):
            place = f"{located.path}" if located.path else f"missing, put it at {located.place}"
            note(f": {place}", label=located.role, style="" if located.path else "red")
        first, last = setup.seeds(kind).start, setup.seeds(kind).stop - 1
        for n, file in files.items():
            folder = pairs or setup.pairs_folder(kind, n)
            note(f"NFE {n}: pairs of seeds {first} to {last} in {folder}, then {file}")
        note("a dry run: nothing was read or written")
        return
    rows = train_preset(setup, kind, files, network, pairs=pairs, overwrite=overwrite)
    if json:
        print_json(rows)
        return
    for row in rows:
        row |= {name: significant(row[name]) for name in ("start_loss", "validation_loss")}
        del row["stopped"]  # noted when it happened
    print_table(f"{setup.title}: {setup.loss} to the teacher on validation pairs", rows)


def train_preset(
    preset: gas.paper.Preset,
    objective: gas.paper.presets.Objective,
    files: Mapping[int, Path],
    network: PresetNetworkOptions,
    *,
    pairs: Path | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Make missing pairs and learn a solver for each NFE; return a report of each."""
    for file in files.values():
        if file.exists() and not overwrite:
            raise gas.UserError(f"{file} exists: name another by --out, or replace it with --overwrite")
    gas.paper.training.distillation_loss(preset, network.folder)  # refused before the long loading
    model = network.load(preset)
    show_preset(preset)
    teacher = gas.models.runtime.ending_at(model, preset.teacher_t_end)
    rows = []
    for nfe, file in files.items():
        with holding(file, "gas paper train"):
            folder = pairs or preset.pairs_folder(objective, nfe)
            if pairs is None:
                seeds = preset.seeds(objective)
                run_teacher(teacher, preset.teacher_for(nfe), folder, seeds, preset.guidance)
            data = gas.paper.training.read_preset_pairs(preset, objective, teacher, folder)
            rows.append(_learn(preset, objective, model, data, nfe, network.folder, file))
    return rows


def _learn(
    preset: gas.paper.Preset,
    objective: gas.paper.presets.Objective,
    model: gas.models.Model,
    pairs: tuple[gas.Pairs, gas.Pairs],
    nfe: int,
    weights: Path,
    out: Path,
) -> dict[str, Any]:
    """Learn a solver for one NFE, save it, and return a report."""
    solver = gas.paper.training.starting_solver(preset, model, nfe)
    state = out.with_name(f"{out.name}.state.pt")
    record, stopped = None, ""
    try:
        iterations = preset.training(objective).iterations
        with resumable(f"State is in {state}"), bar(f"{preset.name}, NFE {nfe}", iterations) as running:
            for record in gas.paper.training.learn(
                solver, preset, objective, model, pairs, weights, checkpoint=state
            ):
                loss = significant(record.validation_loss)
                running.at(record.iteration, f"validation {loss}, {record.evaluations:,} evaluations")
    except gas.Diverged as error:
        if record is None:
            raise
        stopped = str(error)
        note(f"stopped early: {stopped}; the solver is the last good one")
    if record is None:
        raise RuntimeError("the training made no report")
    if gas.distributed.is_first():
        gas.paper.training.save_solver(out, solver, preset, objective, model, pairs, record)
        state.unlink(missing_ok=True)
    note(f"wrote {out}")
    return {
        "nfe": nfe,
        "start_loss": record.start_loss,
        "validation_loss": record.best_loss,
        "training_evaluations": record.evaluations,
        "file": str(out),
        "stopped": stopped,
    }
