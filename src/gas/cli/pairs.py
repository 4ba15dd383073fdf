"""``gas pairs``: run the teacher and store its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import gas
from gas.cli.app import command, holding, resumable
from gas.cli.checks import GUIDANCE, NFE, option
from gas.cli.loading import free_text_encoders, guidance_of
from gas.cli.options import ArrayOptions, Json, NetworkOptions, SamplesBatch, parse_seeds
from gas.cli.screen import bar, note, print_json


@command("gas pairs --model digits --seeds 1280 --out runs/digits-pairs", shared=True, folder="out")
def pairs(
    out: Annotated[Path, option("Folder for shards and manifest.")],
    seeds: Annotated[str, option("Seeds, as N or FIRST:STOP (not included).", parse_seeds)] = "1280",
    teacher: Annotated[str, option("Solver of the teacher.")] = "unipc-3-bh2",
    grid: Annotated[str, option("Time grid of the teacher: a name, or times as 1,0.5,0.001.")] = "log_snr",
    nfe: Annotated[int, option("Network evaluations a sample of the teacher.", **NFE)] = 20,
    guidance: Annotated[
        float | None, option("Guidance scale; default: that of a pipeline's call, else 1 (none).", **GUIDANCE)
    ] = None,
    batch: SamplesBatch = 64,
    decoded: Annotated[bool, option("Also store the decoded samples.")] = False,
    *,
    array: ArrayOptions,
    network: NetworkOptions,
    json: Json = False,
) -> None:
    """Write teacher pairs: noise by seed and the teacher's samples, in checksummed shards.

    Killed at any point, the same command goes on where it stopped and ends with the same bytes.
    """
    chosen = parse_seeds(seeds)
    gas.Classical(teacher, grid, nfe, 0.0)  # refused before the model is loaded
    model = network.load()
    guidance = guidance_of(network.model, model, guidance)
    free_text_encoders(network.model, model, guidance)
    solver = gas.Classical(teacher, grid, nfe, model.t_end)
    run_teacher(model, solver, out, chosen, guidance, batch, decoded, array)
    note(f"teacher pairs are in {out}")
    if json:
        report = {"out": str(out), "model": model.name, "seeds": [chosen.start, chosen.stop]}
        print_json({**report, "guidance": guidance, **solver.config()})


def run_teacher(
    model: gas.models.Model,
    teacher: gas.Classical,
    out: Path,
    seeds: range,
    guidance: float = 1.0,
    batch: int = 64,
    decoded: bool = False,
    array: ArrayOptions | None = None,
) -> None:
    """Write pairs with a progress bar; an interrupt says how to go on."""
    array = array or ArrayOptions()
    spec = gas.PairsSpec(seeds, teacher.config(), guidance, array.shard, decoded=decoded)
    table = teacher.table(model.schedule)
    # Refuses settings that do not fit before there is a bar.
    gas.pairs.fingerprint.pairs_fingerprint(model, table, spec, batch)
    with (
        resumable(f"Whole shards are kept in {out}"),
        holding(out, "making teacher pairs", folder=True, shared=array.shared),
        bar("teacher pairs", len(seeds)) as running,
    ):
        for progress in gas.write_pairs(model, table, out, spec, batch=batch, shared=array.shared):
            running.at(progress.done)
