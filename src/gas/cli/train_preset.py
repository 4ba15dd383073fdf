"""``gas train --preset``: a published setup from its files to a solver, by one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gas import distributed
from gas.cli.app import holding
from gas.cli.pairs import run_teacher
from gas.cli.presets import model_of, pairs_folder, show_preset, solver_file
from gas.cli.screen import bar, note, print_json, print_table
from gas.display import significant
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs
    from gas.paper.presets import Objective, Preset
    from gas.training.loop import FitRecord

__all__ = ["PresetRun", "train_preset"]


@dataclass(frozen=True)
class PresetRun:
    """What ``gas train --preset`` was asked for."""

    preset: Preset
    objective: Objective
    nfes: tuple[int, ...]
    weights: Path | None
    pairs: Path | None
    out: Path | None
    prompts: Path | None
    device: str
    precision: str
    compiled: bool
    overwrite: bool

    def file(self, nfe: int) -> Path:
        """Where the solver of an NFE goes."""
        return self.out or solver_file(self.preset, self.objective, nfe)

    def folder(self, nfe: int) -> Path:
        """Where its pairs are, or go."""
        return self.pairs or pairs_folder(self.preset, self.objective, nfe)


def train_preset(run: PresetRun, *, dry: bool, json: bool) -> None:
    """Say all settings, make the pairs that are missing, and learn a solver for each NFE.

    Raises:
        ValueError: for files that would be written over, or settings that do not fit.
        FileNotFoundError: when a published file is missing.
    """
    from gas.models.runtime import precise
    from gas.paper.backbone import ending_at
    from gas.paper.files import weights_folder
    from gas.paper.training import loss_of
    from gas.training.adversarial.updates import check_one_process

    if run.objective == "gas":
        check_one_process()
    preset, folder = run.preset, weights_folder(run.weights)
    if run.out is not None and len(run.nfes) > 1:
        raise UserError("--out names one file, so give one --nfe with it")
    if dry:
        show_preset(preset)
        _plan(run, folder)
        return
    for nfe in run.nfes:
        if run.file(nfe).exists() and not run.overwrite:
            raise UserError(f"{run.file(nfe)} exists: name another by --out, or replace it with --overwrite")
    loss_of(preset, folder)  # refused before the long loading
    raw = model_of(preset, run.weights, prompts=run.prompts, device=run.device)
    show_preset(preset)
    model = precise(raw, run.precision, compiled=run.compiled)
    teacher = precise(ending_at(raw, preset.teacher_t_end), run.precision)
    rows = []
    for nfe in run.nfes:
        with holding(run.file(nfe), "gas train"):
            rows.append(_learn(run, model, teacher, nfe, folder))
    if json:
        print_json(rows)
        return
    columns = [name for name in rows[0] if name != "stopped"]  # which was noted when it did
    cells = [
        [str(r[name]) if isinstance(r[name], (int, str)) else significant(r[name]) for name in columns]
        for r in rows
    ]
    print_table(f"{preset.title}: {preset.loss} to the teacher on validation pairs", columns, cells)


def _plan(run: PresetRun, folder: Path) -> None:
    """Say what would be read and written."""
    from gas.paper.files import find_files

    for found in find_files(run.preset, folder):
        place = f"{found.path}" if found.path else f"missing, put it at {found.looked[0]}"
        note(f": {place}", label=found.file.role, style="" if found.path else "red")
    for nfe in run.nfes:
        seeds = run.preset.seeds(run.objective)
        note(
            f"NFE {nfe}: pairs of seeds {seeds.start} to {seeds.stop - 1} in {run.folder(nfe)}, then {run.file(nfe)}"
        )
    note("a dry run: nothing was read or written")


def _learn(run: PresetRun, model: Model, teacher: Model, nfe: int, folder: Path) -> dict[str, Any]:
    """Make the pairs of one NFE where they are not given, learn, save; return what came of it."""
    from gas.errors import Diverged
    from gas.paper.training import learn, paired, solver_of

    preset, objective, out = run.preset, run.objective, run.file(nfe)
    where = run.folder(nfe)
    if run.pairs is None:
        run_teacher(teacher, preset.master(nfe), where, preset.seeds(objective), preset.guidance)
    pairs = paired(preset, objective, teacher, where)
    if pairs[0].guidance != preset.guidance:
        raise UserError(
            f"{where} was made with guidance {pairs[0].guidance:g}, the preset has {preset.guidance:g}"
        )
    solver = solver_of(preset, model, nfe)
    state = out.with_name(f"{out.name}.state.pt")
    last: FitRecord | None = None
    stopped = ""
    try:
        with bar(f"{preset.name}, NFE {nfe}", preset.training(objective).iterations) as running:
            for last in learn(solver, preset, objective, model, pairs, folder, checkpoint=state):
                running.at(last.iteration, f"validation {significant(last.validation_loss)}")
    except Diverged as error:
        if last is None:
            raise
        stopped = str(error)
        note(f"stopped early: {stopped}; the solver is the last good one")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"State is in {state}; the same command goes on from there.") from None
    if last is None:
        raise RuntimeError("the training made no report")
    if distributed.is_first():
        _save(run, solver, last, nfe, pairs, model)
        state.unlink(missing_ok=True)
    note(f"wrote {out}")
    return {
        "nfe": nfe,
        "start_loss": last.start_loss,
        "validation_loss": last.best_loss,
        "training_evaluations": last.evaluations,
        "file": str(out),
        "stopped": stopped,
    }


def _save(
    run: PresetRun, solver: Any, last: FitRecord, nfe: int, pairs: tuple[Pairs, Pairs], model: Model
) -> None:
    from gas.solver_file import save

    kept, held = pairs
    training: dict[str, Any] = {
        "preset": run.preset.name,
        **run.preset.told(),
        "pairs": len(kept),
        "validation": len(held),
        "seeds": [int(kept.seeds[0]), int(held.seeds[-1]) + 1],
        "critic": run.preset.objective,
        "objective": run.objective,
    }
    measured = {"validation_loss": last.best_loss, "evaluations": float(last.evaluations)}
    save(
        run.file(nfe),
        {nfe: solver},
        model=model,
        guidance=kept.guidance,
        teacher=kept.teacher,
        loss=run.preset.loss,
        training=training,
        starts={nfe: run.preset.start},
        measured={nfe: measured},
    )
