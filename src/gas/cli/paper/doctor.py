"""``gas paper doctor``: the installation, and the published files of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import gas
from gas.cli.app import command, paper
from gas.cli.checks import argument
from gas.cli.options import Device, Json
from gas.cli.paper.presets import PRESET_HELP, PresetWeights, Settings
from gas.cli.screen import print_facts, print_json


@command("gas paper doctor imagenet", group=paper)
def doctor(
    preset: Annotated[str, argument(PRESET_HELP)] = "",
    settings: Settings = None,
    preset_weights: PresetWeights = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Print what is installed and, for a preset, which of its files exist and are whole, and where to get the others.

    Files are read as data; nothing in them is executed.
    """
    if not preset and (settings or preset_weights):
        raise gas.UserError(f"--{'set' if settings else 'preset-weights'} is of a preset: name that too")

    setup = gas.paper.preset_by_name(preset).changed(settings or []) if preset else None
    report: dict[str, Any] = {
        "environment": gas.paper.environment.environment(device),
        "extras": gas.paper.environment.extras(),
    }
    if setup is not None:
        files = _files(setup, preset_weights)
        report |= {"preset": setup.name, "settings": setup.settings(), "files": files}
    if json:
        print_json(report)
        return
    print_facts("This installation", report["environment"] | report["extras"])
    for row in report.get("files", ()):
        print_facts(f"{row['file']}: {row['state']}", row)


def _files(preset: gas.paper.Preset, weights: Path | None) -> list[dict[str, str]]:
    """Return every file of a preset: its path or where to put it, what it holds, and its checksum."""
    rows = []
    folder = gas.workspace.weights_folder(weights)
    for file in (*gas.paper.find_files(preset, folder), *gas.paper.find_measuring_files(preset, folder)):
        path = file.path
        row = {"role": file.role, "file": file.name, "what": file.description, "needed for": file.needed_for}
        if path is None:
            row |= {"state": "missing", "place": str(file.place), "source": file.source}
        else:
            try:
                row |= {"state": "whole", "place": str(path), "holds": gas.paper.files.describe_file(file)}
            except (ValueError, ModuleNotFoundError) as error:
                row |= {"state": "bad", "place": str(path), "holds": str(error)}
            if path.is_file():
                row |= {"bytes": f"{path.stat().st_size:,}", "sha256": gas.io.sha256(path)}
        rows.append({**row, "expected sha256": file.sha256})
    return rows
