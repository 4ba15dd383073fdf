"""The model of a preset: its published network, driven as the paper drives it, with a decoder where it has one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gas.errors import UserError
from gas.models.custom import OwnModel
from gas.models.protocol import Model
from gas.models.runtime import PreciseModel
from gas.paper.files import need, prompts_of
from gas.paper.presets import Preset
from gas.workspace import weights_folder

__all__ = ["ending_at", "open_backbone"]


def open_backbone(
    preset: Preset,
    folder: Path | str | None = None,
    *,
    prompts: Path | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Load the network of a preset as a model that ends at the student's ``t_end``.

    Args:
        preset: which, with ``size`` as the file has it.
        folder: of weights, as :func:`gas.paper.weights_folder` takes it.
        prompts: a file of one prompt a line, for a preset of prompts; by default ``prompts.txt`` among the weights.
        device: where to sample.

    Raises:
        FileNotFoundError: when a file is missing; says where to put it.
        ValueError: when a file is damaged, unsafe, of another layout, or of another size than the preset.
        ModuleNotFoundError: when its network needs an extra that is not installed.
    """
    where = weights_folder(folder)
    path = need(preset, "network", where)
    told = prompts_of(preset, where, prompts)
    if preset.kind == "edm":
        return _edm(preset, path, device)
    if preset.kind == "ldm":
        return _ldm(preset, path, device)
    return _pipeline(preset, path, told, device)


def ending_at(model: Model, t_end: float) -> Model:
    """Return a preset's model for a run that ends at another time: EDM's schedule depends on it.

    Raises:
        ValueError: for a model that is no preset's.
    """
    from gas.paper.edm import EDMNetwork, model_of
    from gas.pipelines.model import PipelineModel

    if t_end == model.t_end:
        return model
    if isinstance(model, PreciseModel):
        return replace(model, model=ending_at(model.model, t_end))
    if isinstance(model, OwnModel) and isinstance(model.weights, EDMNetwork):
        return model_of(model.weights, t_end=t_end, name=model.name)
    if isinstance(model, (OwnModel, PipelineModel)):
        return replace(model, t_end=t_end)
    raise UserError(f"model {model.name} cannot be run to t_end {t_end:g}: it is no preset's")


def _edm(preset: Preset, path: Path, device: str | torch.device) -> OwnModel:
    from gas.paper import edm

    network = edm.read(path).to(device)
    if network.img_resolution != preset.size:
        raise UserError(_other_size(preset, path, network.img_resolution))
    return edm.model_of(network, t_end=preset.t_end, name=preset.name)


def _ldm(preset: Preset, path: Path, device: str | torch.device) -> OwnModel:
    from gas.paper import ldm

    first = ldm.build(path, device=device)
    factor = 2 ** (len(first.config.block_out_channels) - 1)  # type: ignore[union-attr,arg-type]
    if preset.size % factor:
        raise UserError(
            f"size must be a multiple of {factor}, which its first stage divides by, got {preset.size}"
        )
    loaded = ldm.load(
        path, t_end=preset.t_end, latent_size=preset.size // factor, name=preset.name, device=device
    )
    return replace(loaded, decode=functools.partial(_decoded, first))


def _decoded(first: nn.Module, latents: Tensor) -> Tensor:
    """Images in [-1, 1] of latents, by diffusers' ``VQModel``."""
    decode: Callable[..., Tensor] = lambda z: first.decode(z).sample  # type: ignore[operator]  # noqa: E731
    return decode(latents.to(next(first.parameters()).device)).clamp(-1, 1)


def _pipeline(preset: Preset, path: Path, prompts: Path | None, device: str | torch.device) -> Model:
    from gas.pipelines.loading import open_pipeline, read_prompts
    from gas.pipelines.model import from_pipeline

    lines = [] if prompts is None else read_prompts(prompts)
    side = preset.size
    pipe = open_pipeline(str(path))
    model = from_pipeline(pipe, lines, name=preset.name, t_end=preset.t_end, height=side, width=side)
    return model.to(device)


def _other_size(preset: Preset, path: Path, side: int) -> str:
    return (
        f"{path} is a network for images of {side} x {side}, preset {preset.name} of {preset.size} x {preset.size}: "
        f"change it by --set size={side}, or give its own file"
    )
