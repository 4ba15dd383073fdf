"""``gas pairs``: run the teacher and keep where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas.arguments import MAX_NFE
from gas.cli.app import command, holding
from gas.cli.checks import GUIDANCE, checked, is_in, output_folder, registered
from gas.cli.options import (
    Call,
    Compile,
    CudaGraphs,
    Device,
    Json,
    ModelName,
    Precision,
    Prompts,
    SamplesBatch,
    check_grid,
    load_model,
    parse_seeds,
    recorded,
    solver_names,
    was_given,
)
from gas.cli.presets import (
    PresetName,
    Settings,
    Weights,
    chosen_preset,
    model_of,
    objective_of,
    pairs_folder,
    show_preset,
)
from gas.cli.screen import bar, note, print_json
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.classical.registry import Classical
    from gas.models.protocol import Model

__all__ = ["pairs", "run_teacher"]


@command("gas pairs --model digits --seeds 1280 --out runs/digits-pairs", shared=True, folder="out")
def pairs(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for shards and manifest (--preset has a place for it).",
            callback=checked(output_folder),
        ),
    ] = None,
    model: ModelName = "mnist",
    seeds: Annotated[
        str, typer.Option(help="Seeds, as N or FIRST:LAST.", callback=checked(parse_seeds))
    ] = "1280",
    teacher: Annotated[
        str, typer.Option(help="The teacher's solver.", callback=checked(registered("solver", solver_names)))
    ] = "unipc-3-bh2",
    grid: Annotated[
        str,
        typer.Option(
            help="The teacher's time grid: a name, or its times as 1,0.5,0.001.", callback=checked(check_grid)
        ),
    ] = "log_snr",
    nfe: Annotated[
        int,
        typer.Option(
            help="The teacher's network evaluations; with --preset coco the student's, one fewer.",
            min=1,
            max=MAX_NFE,
        ),
    ] = 20,
    guidance: Annotated[
        float,
        typer.Option(
            help="Classifier-free guidance scale; 1 is none. Default: of diffusers:... what its call has, else 1.",
            show_default=False,
            callback=checked(is_in("guidance", GUIDANCE)),
        ),
    ] = 1.0,
    batch: SamplesBatch = 64,
    preset: PresetName = "",
    objective: Annotated[
        str,
        typer.Option(help="Of a preset: gs or gas, which decides how many.", callback=checked(objective_of)),
    ] = "gs",
    settings: Settings = None,
    preset_weights: Weights = None,
    prompts: Prompts = None,
    call: Call = "",
    decoded: Annotated[bool, typer.Option("--decoded", help="Also store the decoded samples.")] = False,
    device: Device = "cpu",
    precision: Precision = "float32",
    compiled: Compile = False,
    cuda_graphs: CudaGraphs = False,
    json: Json = False,
) -> None:
    """Write teacher pairs: noise by seed and the teacher's samples, in checksummed shards.

    Killed at any point, the same command goes on where it stopped and ends with the same bytes.
    """
    from gas.classical.registry import Classical
    from gas.models.runtime import precise
    from gas.paper.backbone import ending_at

    chosen = parse_seeds(seeds)
    setup = chosen_preset(context, preset, settings, ("out", "seeds", "objective", "nfe", "batch", "decoded"))
    loaded: Model
    if setup is None:
        if out is None:
            raise UserError("--out is needed where no --preset says it")
        if was_given(context, "objective"):
            raise UserError("--objective is for --preset: say by --seeds how many pairs to make")
        Classical(teacher, grid, nfe, 0.0)  # refused before the model is loaded
        loaded = load_model(model, device, precision, compiled, prompts=prompts, call=call)
        guidance = _guidance(model, loaded, guidance if was_given(context, "guidance") else None)
        master = Classical(teacher, grid, nfe, loaded.t_end)
    else:
        kind, named = objective_of(objective), was_given(context, "nfe")
        if named == bool(setup.teacher_nfe):
            what = "has its own: --set teacher_nfe" if named else "depends on the student's: --nfe"
            raise UserError(f"the NFE of the teacher of preset {preset} {what}")
        raw = model_of(setup, preset_weights, prompts=prompts, device=device)
        show_preset(setup)
        loaded = precise(ending_at(raw, setup.teacher_t_end), precision, compiled=compiled)
        chosen = chosen if was_given(context, "seeds") else setup.seeds(kind)
        master, guidance = setup.master(nfe), setup.guidance
        out = pairs_folder(setup, kind, nfe) if out is None else out
    run_teacher(recorded(loaded, cuda_graphs), master, out, chosen, guidance, batch, decoded)
    note(f"teacher pairs are in {out}")
    if json:
        print_json(
            {
                "out": str(out),
                "model": loaded.name,
                "seeds": [chosen.start, chosen.stop],
                "guidance": guidance,
            }
            | master.config()
        )


def _guidance(name: str, model: Model, given: float | None) -> float:
    """The guidance scale of the pairs: as given, or what a pipeline's own call has; 1 of every other model.

    Raises:
        ValueError: for a pipeline that is guided by prompts and has none.
    """
    from gas.models.runtime import full_precision
    from gas.pipelines.model import PipelineModel

    pipeline = full_precision(model)
    if not isinstance(pipeline, PipelineModel):
        return 1.0 if given is None else given
    if pipeline.family.encode is not None and not pipeline.prompts:
        if given is None:
            raise UserError(
                f"--prompts is needed: {pipeline.name[-80:]} makes what a prompt says "
                "(with --guidance 1 pairs of the empty prompt are made)"
            )
        note("no --prompts: every pair is of the empty prompt")
    if given is not None:
        return given
    usual = pipeline.default_guidance if name.startswith("diffusers:") else 1.0
    if pipeline.default_guidance != 1:
        why = f"the default of {pipeline.name}'s call" if usual != 1 else "none"
        note(f"guidance {usual:g}: {why}; --guidance changes it")
    return usual


def run_teacher(
    model: Model,
    teacher: Classical,
    out: Path,
    seeds: range,
    guidance: float = 1.0,
    batch: int = 64,
    decoded: bool = False,
) -> None:
    """Write pairs with a progress bar; an interrupt says how to go on."""
    from gas.pairs.fingerprint import PairsSpec, pairs_fingerprint
    from gas.pairs.teacher import write_pairs

    spec = PairsSpec(seeds, teacher.config(), guidance, decoded=decoded)
    table = teacher.table(model.schedule)
    pairs_fingerprint(model, table, spec, batch)  # refuses settings that do not fit before there is a bar
    try:
        with holding(out, "making teacher pairs", folder=True), bar("teacher pairs", len(seeds)) as running:
            for progress in write_pairs(model, table, out, spec, batch=batch):
                running.at(progress.done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Whole shards are kept in {out}; the same command goes on from there."
        ) from None
