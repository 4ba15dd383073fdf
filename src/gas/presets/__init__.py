"""The published setups: every setting of theirs as data, and what runs them."""

from typing import TYPE_CHECKING

from gas.lazy import submodules_of
from gas.presets.backbone import ending_at, open_backbone
from gas.presets.files import File, Found, find_files, find_measuring_files, weights_folder
from gas.presets.preset import Preset
from gas.presets.setups import PRESETS, preset_by_name
from gas.presets.training import critic_of, learn, loss_of, paired, solver_of

__all__ = [
    "PRESETS",
    "File",
    "Found",
    "Preset",
    "critic_of",
    "ending_at",
    "find_files",
    "find_measuring_files",
    "learn",
    "loss_of",
    "open_backbone",
    "paired",
    "preset_by_name",
    "solver_of",
    "weights_folder",
]

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
