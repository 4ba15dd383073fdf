"""``gas paper pairs``: the teacher pairs of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import gas
from gas.cli.app import command, paper
from gas.cli.checks import NFE, option
from gas.cli.options import ArrayOptions, Json, ObjectiveName, SamplesBatch, parse_objective, parse_seeds
from gas.cli.pairs import run_teacher
from gas.cli.paper.presets import PresetNetworkOptions, PresetOptions, show_preset
from gas.cli.screen import note, print_json


@command("gas paper pairs cifar10", group=paper, shared=True, folder="out")
def pairs(
    *,
    preset: PresetOptions,
    objective: ObjectiveName = "gs",
    nfe: Annotated[
        int | None, option("NFE of the student, where the teacher's depends on it.", **NFE)
    ] = None,
    seeds: Annotated[str, option("Seeds, as N or FIRST:STOP (not included); default: the preset's.")] = "",
    batch: SamplesBatch = 64,
    decoded: Annotated[bool, option("Also store the decoded samples.")] = False,
    out: Annotated[Path | None, option("Folder for shards and manifest; default: one under runs.")] = None,
    array: ArrayOptions,
    network: PresetNetworkOptions,
    json: Json = False,
) -> None:
    """Write the teacher pairs of a preset; gas paper train makes them too where they are missing."""
    setup, kind = preset.load(), parse_objective(objective)
    chosen = parse_seeds(seeds) if seeds else setup.seeds(kind)
    if (nfe is None) != bool(setup.teacher_nfe):
        reason = "depends on the student's: --nfe" if nfe is None else "has its own: --set teacher_nfe"
        raise gas.UserError(f"the NFE of the teacher of preset {setup.name} {reason}")
    model = network.load(setup)
    show_preset(setup)
    model = gas.models.runtime.ending_at(model, setup.teacher_t_end)
    teacher = setup.teacher_for(nfe or 0)
    out = setup.pairs_folder(kind, nfe or 0) if out is None else out
    run_teacher(model, teacher, out, chosen, setup.guidance, batch, decoded, array)
    note(f"teacher pairs are in {out}")
    if json:
        report = {"out": str(out), "model": model.name, "seeds": [chosen.start, chosen.stop]}
        print_json({**report, "guidance": setup.guidance, **teacher.config()})
