"""Published networks as models: of a preset, as the paper runs it, or of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.errors import UserError
from gas.models.custom import OwnModel
from gas.models.protocol import Model
from gas.paper import edm, ldm
from gas.paper.files import need, prompts_path
from gas.paper.presets import Preset
from gas.workspace import weights_folder


def load_backbone(
    preset: Preset,
    folder: Path | str | None = None,
    *,
    prompts: Path | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Load the network of a preset as a model that ends at the student's ``t_end``.

    Args:
        preset: with ``size`` as the file has it.
        folder: of weights, as :func:`gas.workspace.weights_folder` takes it.
        prompts: a file of one prompt a line, for a preset with prompts; by default ``prompts.txt`` among the weights.

    Raises:
        FileNotFoundError: when a file is missing; says where to put it.
        UserError: when a file is damaged, unsafe, of another layout, or of another size than the preset.
        ModuleNotFoundError: when its network needs an extra that is not installed.
    """
    folder = weights_folder(folder)
    path = need(preset, "network", folder)
    prompts = prompts_path(preset, folder, prompts)
    if prompts is not None:
        return _pipeline(preset, path, prompts, device)
    return (_edm if preset.kind == "edm" else _ldm)(preset, path, device)


def load_published(path: str | Path, *, t_end: float = 1e-3, device: str | torch.device = "cpu") -> OwnModel:
    """Load a published network, EDM's or latent diffusion, by its file: ``.pkl``, ``.ckpt`` or converted safetensors.

    Raises:
        UserError: when the file is damaged, unsafe or of another kind.
    """
    load = ldm.load if Path(path).suffix == ".ckpt" or ldm.is_converted(path) else edm.load
    return load(path, t_end=t_end, device=device)


def _edm(preset: Preset, path: Path, device: str | torch.device) -> OwnModel:
    network = edm.read(path).to(device)
    side = network.img_resolution
    if side != preset.size:
        raise UserError(
            f"{path} is a network for images of {side} x {side}, preset {preset.name} of {preset.size} x "
            f"{preset.size}: change it by --set size={side}, or give its own file"
        )
    return edm.model_of(network, preset.t_end, name=preset.name)


def _ldm(preset: Preset, path: Path, device: str | torch.device) -> OwnModel:
    first_stage = ldm.load_first_stage(path, device=device)
    factor = 2 ** (len(first_stage.config.block_out_channels) - 1)  # type: ignore[union-attr,arg-type]
    if preset.size % factor:
        raise UserError(f"size must be a multiple of {factor} for the first stage, got {preset.size}")
    model = ldm.load(
        path, t_end=preset.t_end, latent_size=preset.size // factor, name=preset.name, device=device
    )

    def decode(latents: Tensor) -> Tensor:
        images: Tensor = first_stage.decode(latents.to(device)).sample  # type: ignore[operator]
        return images.clamp(-1, 1)

    return replace(model, decode=decode)


def _pipeline(preset: Preset, path: Path, prompts: Path, device: str | torch.device) -> Model:
    from gas.pipelines.loading import open_pipeline
    from gas.pipelines.model import from_pipeline
    from gas.pipelines.prompts import read_prompts

    lines, pipe = read_prompts(prompts), open_pipeline(str(path))
    size: dict[str, Any] = {"height": preset.size, "width": preset.size}
    return from_pipeline(pipe, lines, name=preset.name, t_end=preset.t_end, **size).to(device)
