"""``gas paper doctor``: the installation, and the published files of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gas.cli.app import command, paper
from gas.cli.checks import argument, registered
from gas.cli.options import Device, Json
from gas.cli.paper.presets import PRESET_HELP, PresetWeights, Settings
from gas.cli.screen import print_json, print_table
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.paper.presets import Preset

__all__ = ["doctor"]


@command("gas paper doctor imagenet", group=paper)
def doctor(
    preset: Annotated[str, argument(PRESET_HELP, registered("preset", "gas.paper.presets:PRESETS"))] = "",
    settings: Settings = None,
    preset_weights: PresetWeights = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Print what is installed and, for a preset, which of its files exist and are whole, and where to get the others.

    Files are read as data; nothing in them is executed.
    """
    if not preset and (settings or preset_weights):
        raise UserError(
            f"--{'set' if settings else 'preset-weights'} is of a preset: name one, or leave it out"
        )
    from gas.paper.environment import environment, extras
    from gas.paper.presets import preset_by_name

    report: dict[str, Any] = {}
    if preset:
        setup = preset_by_name(preset).changed(settings or [])
        files = _files(setup, preset_weights)
        report = {"preset": setup.name, "settings": setup.settings(), "files": files}
    report = {"environment": environment(device), "extras": extras(), **report}
    if json:
        print_json(report)
        return
    facts = [[name, str(value)] for name, value in (report["environment"] | report["extras"]).items()]
    print_table("This installation", ["what", "value"], facts)
    for row in report.get("files", ()):
        print_table(f"{row['file']}: {row['state']}", ["what", "value"], [list(item) for item in row.items()])


def _files(preset: Preset, weights: Path | None) -> list[dict[str, str]]:
    """Return every file of a preset: its path or where to put it, what it holds, and its checksum."""
    from gas.io import sha256
    from gas.paper.files import describe_file, find_files, find_measuring_files
    from gas.workspace import weights_folder

    rows = []
    folder = weights_folder(weights)
    for file in (*find_files(preset, folder), *find_measuring_files(preset, folder)):
        path = file.path
        row = {"role": file.role, "file": file.name, "what": file.description, "needed for": file.needed_for}
        if path is None:
            row |= {"state": "missing", "place": str(file.place), "source": file.source}
        else:
            try:
                row |= {"state": "whole", "place": str(path), "holds": describe_file(file)}
            except (ValueError, ModuleNotFoundError) as error:
                row |= {"state": "bad", "place": str(path), "holds": str(error)}
            if path.is_file():
                row |= {"bytes": f"{path.stat().st_size:,}", "sha256": sha256(path)}
        rows.append({**row, "expected sha256": file.sha256})
    return rows
