"""What commands share that take a published setup: its options, its settings on the screen, its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas.cli.options import load_model, was_given
from gas.cli.screen import note
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.paper.presets import Objective, Preset

__all__ = [
    "PresetName",
    "Settings",
    "Weights",
    "changed_settings",
    "chosen_preset",
    "model_of",
    "objective_of",
    "opened",
    "pairs_folder",
    "show_preset",
    "solver_file",
]

PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        help="A published setup with all its settings: cifar10, ffhq, afhqv2, lsun, imagenet or coco.",
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting of the preset, as batch=8; repeat it.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--preset-weights",
        help="Folder of the preset's files; default: GAS_WEIGHTS, or ~/.cache/gas-solver/weights.",
    ),
]


def chosen_preset(
    context: typer.Context, name: str, settings: list[str] | None, allowed: tuple[str, ...]
) -> Preset | None:
    """Return the preset with its settings changed, or ``None`` where none is asked for.

    Args:
        context: of the command.
        name: as ``--preset`` takes it.
        settings: as ``--set`` takes them.
        allowed: parameters that go with a preset; of others it has its own settings.

    Raises:
        ValueError: for an unknown preset or setting, or an option that the preset decides.
    """
    from gas.paper.presets import preset_by_name

    if not name:
        for alone in ("settings", "preset_weights", "dry_run"):
            if was_given(context, alone):
                option = "--set" if alone == "settings" else f"--{alone.replace('_', '-')}"
                raise UserError(f"{option} is for --preset: add that or leave it out")
        return None
    known = ("preset", "settings", "preset_weights", "device", "precision", "compiled", "prompts", "json")
    for parameter in context.command.params:
        if parameter.name and parameter.name not in (*known, *allowed) and was_given(context, parameter.name):
            raise UserError(
                f"{parameter.opts[0]} is decided by --preset {name}: leave it out, or change the preset by "
                "--set NAME=VALUE"
            )
    return preset_by_name(name).changed(settings or [])


def objective_of(text: str) -> Objective:
    """Read ``gs`` or ``gas``.

    Raises:
        ValueError: for anything else.
    """
    if text not in ("gs", "gas"):
        raise UserError(f"objective must be gs or gas, got {text!r}")
    return "gas" if text == "gas" else "gs"


def model_of(
    preset: Preset,
    weights: Path | None,
    *,
    prompts: Path | None,
    device: str,
) -> Model:
    """Load a preset's network."""
    from gas.paper.backbone import open_backbone

    return open_backbone(preset, weights, prompts=prompts, device=device)


def opened(
    setup: Preset | None,
    model: str,
    weights: Path | None,
    device: str,
    precision: str,
    compiled: bool,
    prompts: Path | None,
    call: str,
) -> Model:
    """Load the model of a preset, or without one that of ``--model``."""
    from gas.models.runtime import precise

    if setup is None:
        return load_model(model, device, precision, compiled, prompts=prompts, call=call)
    return precise(model_of(setup, weights, prompts=prompts, device=device), precision, compiled=compiled)


def changed_settings(preset: Preset) -> dict[str, str]:
    """Return the settings that are not the published ones, as ``--set`` takes them."""
    from gas.paper.presets import preset_by_name

    usual = preset_by_name(preset.name).told()
    return {name: value for name, value in preset.told().items() if value != usual[name]}


def show_preset(preset: Preset) -> None:
    """Say every setting on standard error, and what those that were changed were."""
    from gas.paper.presets import preset_by_name

    usual, told = preset_by_name(preset.name).told(), preset.told()
    note(f"preset {preset.name}: {preset.title}")
    for name, value in told.items():
        changed = value != usual[name]
        was = f"   (was {usual[name]})" if changed else ""
        note(f" {value}{was}", label=f"  {name:<21}", style="yellow" if changed else "")


def pairs_folder(preset: Preset, objective: Objective, nfe: int) -> Path:
    """Return where the pairs of a preset lie by default."""
    count = len(preset.seeds(objective))
    teacher = "" if preset.teacher_nfe else f"-nfe{nfe}"
    return Path("runs") / preset.name / f"pairs{teacher}-{count}"


def solver_file(preset: Preset, objective: Objective, nfe: int) -> Path:
    """Return where the solver of a preset lies by default."""
    name = "gas" if objective == "gas" else preset.solver
    return Path("runs") / preset.name / f"{name}-{nfe}.json"
