"""The options of a preset, and its networks as models of the everyday commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import gas
from gas.cli.checks import argument, option
from gas.cli.loading import REPORTED, SOURCES, WITH_PROMPTS
from gas.cli.options import Compile, Device, Precision, Prompts
from gas.cli.screen import note

PresetWeights = Annotated[
    Path | None, option("Folder of published files; default: GAS_WEIGHTS, or ~/.cache/gas-solver/weights.")
]
Settings = Annotated[list[str] | None, option("Change a setting, as batch=8; repeatable.", names=("--set",))]
PRESET_HELP = "Setup of the paper: cifar10, ffhq, afhqv2, lsun, imagenet or coco."


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """A setup of the paper, with its settings changed."""

    panel: ClassVar[str] = "Preset"

    preset: Annotated[str, argument(PRESET_HELP)]
    settings: Settings = None

    def load(self) -> gas.paper.Preset:
        """Return the preset."""
        return gas.paper.preset_by_name(self.preset).changed(self.settings or [])


@dataclass(frozen=True, kw_only=True)
class PresetNetworkOptions:
    """How the network of a preset runs."""

    panel: ClassVar[str] = "Network"

    preset_weights: PresetWeights = None
    prompts: Prompts = None
    device: Device = "cpu"
    precision: Precision = "float32"
    compiled: Compile = False

    @property
    def folder(self) -> Path:
        """The folder of published files."""
        return gas.workspace.weights_folder(self.preset_weights)

    def load(self, preset: gas.paper.Preset) -> gas.models.Model:
        """Load a preset's network as it runs for the student."""
        model = gas.paper.load_backbone(preset, self.folder, prompts=self.prompts, device=self.device)
        return gas.models.precise(model, self.precision, compiled=self.compiled)


def show_preset(preset: gas.paper.Preset) -> None:
    """Print every setting on standard error, with the published value of those that were changed."""
    published, changes = gas.paper.preset_by_name(preset.name).settings(), preset.changes()
    note(f"preset {preset.name}: {preset.title}")
    for name, value in preset.settings().items():
        was = f"   (was {published[name]})" if name in changes else ""
        note(f" {value}{was}", label=f"  {name:<21}", style="yellow" if was else "")


def _load_preset(name: str, device: str, prompts: Path | None = None) -> gas.models.Model:
    return gas.paper.load_backbone(gas.paper.preset_by_name(name), prompts=prompts, device=device)


SOURCES["preset"] = _load_preset
SOURCES["published"] = lambda path, device: gas.paper.load_published(path, device=device)
WITH_PROMPTS.add("preset")
REPORTED["preset"] = lambda name: gas.paper.tables.figures_of(name)
