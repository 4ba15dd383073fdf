"""``gas paper train``: from a preset's files to a solver, by one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gas import distributed
from gas.cli.app import command, holding, paper, resumable
from gas.cli.checks import existing_folder, option, output_file
from gas.cli.options import Json, ObjectiveName, parse_nfes, parse_objective
from gas.cli.pairs import run_teacher
from gas.cli.paper.presets import PresetNetworkOptions, PresetOptions, show_preset
from gas.cli.screen import bar, note, print_json, print_table
from gas.display import significant
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.paper.presets import Objective, Preset

__all__ = ["PresetRun", "train", "train_preset"]


@dataclass(frozen=True, kw_only=True)
class PresetRun:
    """The training of a preset: one solver for each NFE.

    Attributes:
        preset: with its settings changed.
        objective: ``"gs"`` or ``"gas"``.
        nfes: of the students.
        weights: folder of published files.
        network: how the network runs.
        pairs: folder of teacher pairs; by default they are made.
        out: the solver file; by default one under ``runs``.
        overwrite: whether solver files may be replaced.
    """

    preset: Preset
    objective: Objective
    nfes: tuple[int, ...]
    weights: Path
    network: PresetNetworkOptions
    pairs: Path | None = None
    out: Path | None = None
    overwrite: bool = False

    def file(self, nfe: int) -> Path:
        """Return the path of the solver file."""
        return self.out or self.preset.solver_path(self.objective, nfe)

    def folder(self, nfe: int) -> Path:
        """Return the folder of the pairs."""
        return self.pairs or self.preset.pairs_folder(self.objective, nfe)


@command("gas paper train cifar10 --nfe 4 --objective gas", group=paper, shared=True, file="out")
def train(
    *,
    preset: PresetOptions,
    objective: ObjectiveName = "gs",
    nfe: Annotated[
        str,
        option(
            "NFE to learn, as 4 or 3-6,8,10; default: the preset's.", lambda text: text and parse_nfes(text)
        ),
    ] = "",
    pairs: Annotated[
        Path | None, option("Folder of teacher pairs; default: they are made.", existing_folder)
    ] = None,
    out: Annotated[Path | None, option("Solver file; default: one under runs.", output_file())] = None,
    overwrite: Annotated[bool, option("Replace existing solver files.", names=("--overwrite",))] = False,
    dry_run: Annotated[
        bool, option("Print settings and files, and do nothing.", names=("--dry-run",))
    ] = False,
    network: PresetNetworkOptions,
    json: Json = False,
) -> None:
    """Learn a solver for each NFE as the paper does, by Adam; GAS has its discriminator from the first step on.

    Prints the settings, finds the published files, makes the pairs, trains, and writes a file for each NFE. Resumable:
    the same command after an interrupt goes on where it stopped.
    """
    from gas.workspace import weights_folder

    setup = preset.load()
    run = PresetRun(
        preset=setup,
        objective=parse_objective(objective),
        nfes=tuple(parse_nfes(nfe)) if nfe else setup.nfes,
        weights=weights_folder(preset.preset_weights),
        network=network,
        pairs=pairs,
        out=out,
        overwrite=overwrite,
    )
    if run.out is not None and len(run.nfes) > 1:
        raise UserError("--out names one file, so give one --nfe with it")
    if dry_run:
        show_preset(setup)
        _show_files(run)
        return
    rows = train_preset(run)
    if json:
        print_json(rows)
        return
    columns = [name for name in rows[0] if name != "stopped"]  # noted when it happened
    cells = [
        [str(row[name]) if isinstance(row[name], (int, str)) else significant(row[name]) for name in columns]
        for row in rows
    ]
    print_table(f"{setup.title}: {setup.loss} to the teacher on validation pairs", columns, cells)


def train_preset(run: PresetRun) -> list[dict[str, Any]]:
    """Make missing pairs and learn a solver for each NFE; return a report of each.

    Raises:
        UserError: for files that would be replaced, or settings that do not fit.
        FileNotFoundError: when a published file is missing.
    """
    from gas.models.runtime import ending_at, full_precision, precise
    from gas.paper.training import distillation_loss
    from gas.training.adversarial.updates import check_single_process

    if run.objective == "gas":
        check_single_process()
    for nfe in run.nfes:
        if run.file(nfe).exists() and not run.overwrite:
            raise UserError(f"{run.file(nfe)} exists: name another by --out, or replace it with --overwrite")
    distillation_loss(run.preset, run.weights)  # refused before the long loading
    model = run.network.load(run.preset, run.weights)
    show_preset(run.preset)
    raw = full_precision(model)
    teacher = precise(ending_at(raw, run.preset.teacher_t_end), run.network.precision)
    rows = []
    for nfe in run.nfes:
        with holding(run.file(nfe), "gas paper train"):
            rows.append(_learn(run, model, teacher, nfe))
    return rows


def _show_files(run: PresetRun) -> None:
    """Print the files that would be read and written."""
    from gas.paper.files import find_files

    for located in find_files(run.preset, run.weights):
        place = f"{located.path}" if located.path else f"missing, put it at {located.place}"
        note(f": {place}", label=located.role, style="" if located.path else "red")
    seeds = run.preset.seeds(run.objective)
    for nfe in run.nfes:
        note(
            f"NFE {nfe}: pairs of seeds {seeds.start} to {seeds.stop - 1} in {run.folder(nfe)}, then {run.file(nfe)}"
        )
    note("a dry run: nothing was read or written")


def _learn(run: PresetRun, model: Model, teacher: Model, nfe: int) -> dict[str, Any]:
    """Make the pairs of one NFE unless they are given, learn, save, and return a report."""
    from gas.errors import Diverged
    from gas.paper.training import learn, read_preset_pairs, save_solver, starting_solver

    preset, objective, out = run.preset, run.objective, run.file(nfe)
    if run.pairs is None:
        run_teacher(
            teacher, preset.teacher_for(nfe), run.folder(nfe), preset.seeds(objective), preset.guidance
        )
    pairs = read_preset_pairs(preset, objective, teacher, run.folder(nfe))
    solver = starting_solver(preset, model, nfe)
    state = out.with_name(f"{out.name}.state.pt")
    record, stopped = None, ""
    try:
        iterations = preset.training(objective).iterations
        with resumable(f"State is in {state}"), bar(f"{preset.name}, NFE {nfe}", iterations) as running:
            for record in learn(solver, preset, objective, model, pairs, run.weights, checkpoint=state):
                detail = (
                    f"validation {significant(record.validation_loss)}, {record.evaluations:,} evaluations"
                )
                running.at(record.iteration, detail)
    except Diverged as error:
        if record is None:
            raise
        stopped = str(error)
        note(f"stopped early: {stopped}; the solver is the last good one")
    if record is None:
        raise RuntimeError("the training made no report")
    if distributed.is_first():
        save_solver(out, solver, preset, objective, model, pairs, record)
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
