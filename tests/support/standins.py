"""Folders of weights as the presets want them: the published layouts, with tiny networks drawn here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gas.paper import edm
from gas.paper.presets import PRESETS, Preset
from support.published import drawn, write_edm, write_r3gan

EDM: dict[str, Any] = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8}
EDM |= {"channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]}
# What is smaller about a stand-in: its images, its critic, and how much is done with it.
SMALL = ["pairs=4", "pairs_gas=4", "validation=2", "batch=2", "iterations=2", "iterations_gas=2"]
# One report only: a critic that two reports of two pairs each find winning is mere chance here.
SMALL += ["validate_every=2", "critic_widths=8,8", "critic_groups=2,2", "critic_blocks=1,1"]
NETWORKS = {
    "edm": ["size=8", "loss=l1"],
    "ldm": ["size=16"],
    "sd": ["size=16"],
}


def small(preset: Preset) -> list[str]:
    """The words of a command line that make a preset fit its stand-in."""
    return [word for setting in (*SMALL, *NETWORKS[preset.kind]) for word in ("--set", setting)]


def write_weights(preset: Preset, folder: Path) -> Path:
    """Write the files of a preset under their published names."""
    network = folder / preset.network
    network.parent.mkdir(parents=True, exist_ok=True)
    if preset.kind == "edm":
        seed = list(PRESETS).index(preset.name)  # networks of two setups are two
        write_edm(network, "EDMPrecond", drawn(edm.EDMNetwork("EDMPrecond", **EDM), seed), EDM)
        tiny = preset.changed(["critic_widths=8,8", "critic_groups=2,2", "critic_blocks=1,1"])
        write_r3gan(folder / preset.critic_file, tiny.critic_network(3))
    elif preset.kind == "ldm":
        from support.ldm_checkpoints import checkpoint, saved

        saved(checkpoint(5 if preset.guidance != 1 else 0), network)
    else:
        from support import pipelines

        pipelines.build("sd1").save_pretrained(network)
        (folder / "prompts.txt").write_text("a cat\ndog on the mat\nred bell\n")
    return folder


def write_lpips(folder: Path) -> None:
    """VGG-16 of a few channels, and LPIPS's weights of them, under the published names."""
    state, last = {}, 3
    for place in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        convolution = torch.nn.Conv2d(last, 4, 3)
        state |= {f"features.{place}.{name}": value for name, value in convolution.state_dict().items()}
        last = 4
    torch.save(state, folder / "vgg16-397923af.pth")
    linear = {f"lin{stage}.model.1.weight": torch.rand(1, 4, 1, 1) for stage in range(5)}
    torch.save(linear, folder / "lpips-vgg.pth")
