"""``gas doctor``: what is installed, which files of a preset are there, and what the preset costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas.arguments import MAX_BATCH
from gas.cli.app import command
from gas.cli.checks import checked, is_in
from gas.cli.options import Device, Json, parse_nfes, was_given
from gas.cli.presets import PresetName, Settings, Weights, chosen_preset
from gas.cli.screen import note, print_json, print_table
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.paper.cost import Total, Unit
    from gas.paper.presets import Preset

__all__ = ["doctor"]


@command("gas doctor --preset imagenet --nfe 4-7")
def doctor(
    context: typer.Context,
    preset: PresetName = "",
    settings: Settings = None,
    preset_weights: Weights = None,
    nfe: Annotated[
        str,
        typer.Option(
            help="NFE to say the cost of, as 4 or 4-7; default: the preset's.", callback=checked(parse_nfes)
        ),
    ] = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="Run the preset's network, of random weights, on --device.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(help="Samples at a time for --measure; default: 1 on a CPU.", min=1, max=MAX_BATCH),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Rate to assume without --measure, in 10^12 operations a second.",
            callback=checked(is_in("tflops", "[0.000001, 1000000]")),
        ),
    ] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Say what is installed; of a preset, which files are there and whole, and what pairs, GS and GAS would cost.

    Files are read as data. Costs follow from one network evaluation: its operations counted and divided by an assumed
    rate, or with --measure its time on this machine.
    """
    from gas.paper.environment import environment, extras

    setup = chosen_preset(context, preset, settings, ("nfe", "measure", "batch", "tflops"))
    wrong = [name for name in ("nfe", "measure", "batch", "tflops") if was_given(context, name)]
    if setup is None and wrong:
        raise UserError(f"--{wrong[0]} is for --preset: add that or leave it out")
    _check_measure(measure, batch, tflops)
    told: dict[str, Any] = {"environment": environment(device), "extras": extras()}
    if setup is not None:
        nfes = parse_nfes(nfe) if nfe else list(setup.nfes)
        unit, lacking = _unit(setup, measure, device, batch, tflops)
        told |= _of_preset(setup, preset_weights, unit, nfes)
        told |= {"not counted": lacking} if lacking else {}
    if json:
        print_json(told)
        return
    facts = [[name, str(value)] for name, value in (told["environment"] | told["extras"]).items()]
    print_table("This installation", ["what", "value"], facts)
    if setup is not None:
        _print(setup, told)


def _check_measure(measure: bool, batch: int | None, tflops: float | None) -> None:
    """Refuse what measuring or estimating does not take."""
    if batch is not None and not measure:
        raise UserError("--batch is for --measure: add that or leave it out")
    if tflops is not None and measure:
        raise UserError("--tflops is for an estimate: leave it out, or --measure")


def _unit(
    preset: Preset, measure: bool, device: str, batch: int | None, tflops: float | None
) -> tuple[Unit | None, str]:
    """Cost of one sample; where the network cannot be laid out for want of a package, none and which that is."""
    from gas.paper.cost import counted, measured

    if not measure:
        try:
            return counted(preset, tflops), ""
        except ModuleNotFoundError as error:  # files are told without it
            return None, str(error)
    note(f"measuring the network of preset {preset.name}, of random weights, on {device} ...")
    return measured(preset, device, batch or (1 if device == "cpu" else preset.batch)), ""


def _of_preset(preset: Preset, weights: Path | None, unit: Unit | None, nfes: list[int]) -> dict[str, Any]:
    """Settings, files and, where the cost of a sample is known, what follows from it."""
    told: dict[str, Any] = {"preset": preset.name, "settings": preset.told()}
    told["files"] = _files(preset, weights, None if unit is None else unit.parameters)
    if unit is None:
        return {**told, "unit": None, "cost": []}
    return {**told, "unit": asdict(unit), "cost": _cost(preset, unit, nfes)}


def _files(preset: Preset, weights: Path | None, parameters: int | None) -> list[dict[str, str]]:
    """Look at every file of a preset: where it is or should be, and what it holds."""
    from gas.io import sha256
    from gas.paper.files import find_files, find_measuring_files, layout, weights_folder

    rows = []
    folder = weights_folder(weights)
    for entry in (*find_files(preset, folder), *find_measuring_files(preset, folder)):
        row = {
            "role": entry.file.role,
            "file": entry.file.name,
            "what": entry.file.what,
            "needed for": entry.file.needed_for,
        }
        if entry.path is None:
            row |= {"state": "missing", "place": str(entry.looked[0]), "source": entry.file.source}
        else:
            try:
                row |= {"state": "whole", "place": str(entry.path), "holds": layout(entry)}
            except (ValueError, ModuleNotFoundError) as error:
                row |= {"state": "bad", "place": str(entry.path), "holds": str(error)}
            if entry.path.is_file():
                row |= {"bytes": f"{entry.path.stat().st_size:,}", "sha256": sha256(entry.path)}
        if entry.file.role == "network" and parameters is not None:
            row["expected size"] = (
                f"{parameters:,} parameters, {parameters / 250_000:,.0f} MB in float32 (computed)"
            )
        rows.append({**row, "expected sha256": entry.file.sha256})
    return rows


def _cost(preset: Preset, unit: Unit, nfes: list[int]) -> list[dict[str, Any]]:
    from gas.paper.cost import totals

    rows: list[Total] = [total for nfe in nfes for total in totals(preset, unit, nfe)]
    return [asdict(row) for row in rows]


def _print(preset: Preset, told: dict[str, Any]) -> None:
    for row in told["files"]:
        rows = [[name, value] for name, value in row.items()]
        print_table(f"{row['file']}: {row['state']}", ["what", "value"], rows)
    unit = told["unit"]
    if unit is None:
        note(f": {told['not counted']}", label="cost and expected size are not told")
        return
    kind = "estimated from counted operations at" if unit["source"] == "counted" else "measured on"
    facts = [[name, f"{1000 * unit[name]:,.3f} ms"] for name in ("forward", "gradient", "loss", "critic")]
    facts += [
        [name.replace("_", " "), f"{unit[name] / 1e6:,.0f} MB"]
        for name in ("kept", "kept_by_loss", "weights")
    ]
    print_table(f"One sample, {kind} {unit['where']}", ["what", "cost"], facts)
    costs = [
        [
            r["job"],
            str(r["nfe"]),
            f"{r['evaluations']:,}",
            _time(r["seconds"]),
            f"{r['peak'] / 1e9:.1f}",
            f"{r['flat'] / 1e9:.1f}",
        ]
        for r in told["cost"]
    ]
    columns = ["job", "NFE", "network evaluations", "time", "memory GB", "with memory=flat"]
    print_table(f"{preset.title}: {kind} {unit['where']}", columns, costs)


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
