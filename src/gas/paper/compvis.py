"""Weights of CompVis's latent diffusion checkpoints under diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from gas.errors import UserError

__all__ = ["averaged", "first_stage_weights", "unet_weights"]

_UNET = "model.diffusion_model."
_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"}
_RESNET |= {"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
_ENDS = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
_ENDS |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
_FIRST = [
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"\bmid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\bup\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"\bup\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\bnorm_out\.", "conv_norm_out."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
]


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the U-Net's weights by CompVis's names: the running average where the file has one.

    The average of ``model.diffusion_model.a.b`` is ``model_ema.diffusion_modelab``; CompVis samples with it.
    """
    network: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(_UNET):
            short = "model_ema." + name.removeprefix("model.").replace(".", "")
            network[name.removeprefix(_UNET)] = state.get(short, value)
    return network


def unet_weights(network: Mapping[str, Tensor], head_channels: int) -> dict[str, Tensor]:
    """Rename the weights of a U-Net of latent diffusion to those of ``UNet2DModel`` or ``UNet2DConditionModel``.

    Args:
        network: by CompVis's names, ``input_blocks.1.0.in_layers.0.weight`` and so on.
        head_channels: channels of a head of plain attention blocks, which store queries, keys and values as one weight.

    Raises:
        UserError: for a name of another architecture.
    """
    renamed: dict[str, Tensor] = {}
    downs = [int(x[1]) for name in network if (x := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    if not downs:
        raise UserError("a U-Net of one level is not known")
    blocks = min(downs) - 1  # residual blocks a level
    plain = any(".qkv." in name for name in network)
    for name, value in network.items():
        place, dot, leaf = name.rpartition(".")
        if place in _ENDS:
            renamed[f"{_ENDS[place]}{dot}{leaf}"] = value
            continue
        block, rest = _block(name, blocks)
        if "attentions" not in block:
            layer, _, leaf = rest.rpartition(".")
            renamed[f"{block}.{_RESNET.get(layer, layer)}.{leaf}"] = value
        elif plain:
            renamed |= _plain_attention(block, rest, value, head_channels)
        else:
            renamed[f"{block}.{rest}"] = value
    return renamed


def _block(name: str, blocks: int) -> tuple[str, str]:
    """Return the block of diffusers that a weight belongs to, and the weight's name within it."""
    if middle := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        part = "attentions.0" if middle[1] == "1" else f"resnets.{int(middle[1]) // 2}"
        return f"mid_block.{part}", middle[2]
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", name)
    if match is None:
        raise UserError(f"{name!r} is no weight of a U-Net of latent diffusion")
    side, rest, first = match[1], match[4], match[3] == "0"
    level, index = divmod(int(match[2]) - (side == "input"), blocks + 1)
    prefix = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if side == "input" and rest.startswith("op."):
        return f"{prefix}.downsamplers.0", rest.replace("op.", "conv.")
    if side == "output" and not first and rest.startswith("conv."):
        return f"{prefix}.upsamplers.0", rest
    return f"{prefix}.{'resnets' if first else 'attentions'}.{index}", rest


def _plain_attention(block: str, rest: str, value: Tensor, head_channels: int) -> dict[str, Tensor]:
    """Rename a weight of a plain attention block, and split queries, keys and values head by head."""
    layer, _, leaf = rest.rpartition(".")
    value = value.flatten(1) if value.ndim == 3 else value  # 1 x 1 convolutions become linear layers
    if layer == "qkv":
        if value.shape[0] % (3 * head_channels):
            raise UserError(
                f"{rest} of {block} has {value.shape[0]} rows, not heads of {head_channels} channels"
            )
        parts = value.unflatten(0, (-1, 3, head_channels)).transpose(0, 1).flatten(1, 2)
        return {f"{block}.to_{letter}.{leaf}": part for letter, part in zip("qkv", parts, strict=True)}
    name = {"norm": "group_norm", "proj_out": "to_out.0"}.get(layer, layer)
    return {f"{block}.{name}.{leaf}": value}


def first_stage_weights(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a first stage (VQ) to those of diffusers' ``VQModel``, without its training loss."""
    ups = {int(match[1]) for name in network if (match := re.match(r"decoder\.up\.(\d+)\.", name))}
    renamed: dict[str, Tensor] = {}
    for name, value in network.items():
        if name.startswith(("loss.", "colorize", "model_ema.")):
            continue
        new = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{max(ups) - int(m[1])}.", name)
        for pattern, to in _FIRST:
            new = re.sub(pattern, to, new)
        linear = ".attentions." in new and value.ndim == 4
        renamed[new] = value.flatten(1) if linear else value
    return renamed
