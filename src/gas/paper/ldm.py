"""CompVis's latent diffusion (LSUN, ImageNet) and its VQ first stage, run by diffusers' modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas.denoise import DiscreteTime, NoiseDenoiser
from gas.errors import UserError, explained, requires
from gas.io import open_safetensors, read_safetensors, sha256, strip_prefix, write_safetensors
from gas.models.custom import OwnModel
from gas.schedule import VPDiscrete
from gas.unpickle.loading import read_pickle

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

_KIND = "gas-solver latent diffusion"
# The published networks have 4 levels of 2 blocks.
_MOST_LEVELS, _MOST_LAYERS = 8, 16


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """The parts of a checkpoint that sampling needs, as tensors by diffusers' names.

    They are ``unet.*`` and ``alphas_cumprod``, ``classes`` ``(L + 1, E)`` (the last row is *no class*) and ``first.*``,
    where there are any. ``card`` has the provenance and ``head_channels``, in plain text.
    """

    tensors: Mapping[str, Tensor]
    card: Mapping[str, str]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return strip_prefix(self.tensors, prefix)


def is_checkpoint(data: Any) -> bool:
    """Return whether the contents of a file are a checkpoint of latent diffusion or of a first stage alone."""
    state = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping):
        return False
    unet = "model.diffusion_model.input_blocks.0.0.weight" in state and "alphas_cumprod" in state
    return unet or {"quantize.embedding.weight", "decoder.conv_in.weight"} <= set(state)


def _of_state(data: Mapping[str, Any], head_channels: int, source: str) -> LatentDiffusion:
    if not is_checkpoint(data):
        raise UserError(f"{source} holds no latent diffusion model, nor a VQ first stage")
    state = {k: v.float() for k, v in data.get("state_dict", data).items() if isinstance(v, Tensor)}
    tensors: dict[str, Tensor] = {}
    with explained(f"{source} is of another architecture"):
        if network := _averaged(state):
            renamed = _unet_weights(network, head_channels)
            tensors = {f"unet.{name}": value for name, value in renamed.items()}
            tensors["alphas_cumprod"] = state["alphas_cumprod"]
            if (classes := state.get("cond_stage_model.embedding.weight")) is not None:
                tensors["classes"] = classes
        alone = "quantize.embedding.weight" in state
        first = state if alone else strip_prefix(state, "first_stage_model.")
        tensors |= {f"first.{name}": value for name, value in _first_stage_weights(first).items()}
    return LatentDiffusion(tensors, {"kind": _KIND, "head_channels": str(head_channels)})


def read(path: str | Path, *, head_channels: int = 32) -> LatentDiffusion:
    """Read a CompVis ``.ckpt``, which is not executed, or its conversion to safetensors by ``gas paper convert``.

    A ``.ckpt`` does not say the channels of a head of plain attention, 32 in ``lsun_bedrooms``.

    Raises:
        UserError: when the file is damaged, unsafe, of another architecture or holds something else.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return _of_state(read_pickle(path), head_channels, str(path))
    with explained(f"{path} is not a whole safetensors file"):
        tensors, card = read_safetensors(path)
    if card.get("kind") != _KIND:
        raise UserError(f"{path} is no latent diffusion model; `gas paper convert` makes one")
    return LatentDiffusion(tensors, card)


def is_converted(path: str | Path) -> bool:
    """Return whether a file is safetensors written by :func:`write`."""
    try:
        with open_safetensors(path) as file:
            return (file.metadata() or {}).get("kind") == _KIND
    except Exception:  # no such file, or no safetensors: whoever opens it says so
        return False


def write(model: LatentDiffusion, path: str | Path, source: str | Path) -> Path:
    """Write a converted checkpoint to safetensors, with its source and that file's hash in the metadata."""
    card = {**model.card, "source": Path(source).name, "source_sha256": sha256(source)}
    return write_safetensors(path, model.tensors, card)


def load(
    path: str | Path,
    *,
    t_end: float = 1e-3,
    latent_size: int = 64,
    name: str | None = None,
    device: str | torch.device = "cpu",
    head_channels: int = 32,
) -> OwnModel:
    """Load a latent diffusion model: noise prediction at 1000 discrete times, with or without classes.

    The file does not say the side of the latents.

    Raises:
        UserError: when the file is damaged, unsafe or of another architecture.
        ModuleNotFoundError: without diffusers.
    """
    checkpoint = read(path, head_channels=head_channels)
    if "alphas_cumprod" not in checkpoint.tensors:
        raise UserError(f"{path} holds a first stage alone, which has nothing to sample")
    with explained(f"{path} is of another architecture"):
        network = _Network(checkpoint).eval().requires_grad_(False).to(device)
    schedule = VPDiscrete(checkpoint.tensors["alphas_cumprod"])

    def conditional(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        timed = DiscreteTime(lambda y, c: network(y, c, labels), schedule)
        return NoiseDenoiser(timed, schedule)(x, t)

    return OwnModel(
        conditional if network.classes else NoiseDenoiser(DiscreteTime(network, schedule), schedule),
        schedule,
        (network.channels, latent_size, latent_size),
        name=name or Path(path).stem,
        t_end=t_end,
        classes=network.classes,
        null=network.classes or None,
        weights=network,
    )


def load_first_stage(path: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """Build the first stage of a checkpoint, diffusers' ``VQModel``: ``load_first_stage(path).decode(latents).sample``.

    Raises:
        UserError, ModuleNotFoundError: as :func:`load`, and when the file has no first stage.
    """
    weights = read(path).part("first.")
    if not weights:
        raise UserError(f"{path} has no first stage")
    with explained(f"{path} has a first stage of another architecture"):
        widths = _widths(weights, "encoder.down_blocks.{}.resnets.0.conv1.weight")
        codes, embedding = weights["quantize.embedding.weight"].shape
        network: nn.Module = _build(
            "VQModel",
            weights,
            in_channels=weights["encoder.conv_in.weight"].shape[1],
            out_channels=weights["decoder.conv_out.weight"].shape[0],
            down_block_types=["DownEncoderBlock2D"] * len(widths),
            up_block_types=["UpDecoderBlock2D"] * len(widths),
            block_out_channels=widths,
            layers_per_block=_layers(weights, r"encoder\.\w+\.0\.resnets\.(\d+)"),
            latent_channels=weights["encoder.conv_out.weight"].shape[0],
            num_vq_embeddings=codes,
            vq_embed_dim=embedding,
        )
    return network.eval().requires_grad_(False).to(device)


class _Network(nn.Module):
    """diffusers' U-Net of a checkpoint with its table of classes, called as ``network(x, step, labels)``."""

    def __init__(self, checkpoint: LatentDiffusion) -> None:
        super().__init__()
        weights = checkpoint.part("unet.")
        widths = _widths(weights, "down_blocks.{}.resnets.0.conv1.weight")
        conditional = "classes" in checkpoint.tensors
        self.channels = weights["conv_in.weight"].shape[1]
        self.classes = len(checkpoint.tensors["classes"]) - 1 if conditional else 0
        kind = "CrossAttn" if conditional else "Attn"
        kinds = [
            kind if any(f"down_blocks.{level}.attentions." in name for name in weights) else ""
            for level in range(len(widths))
        ]
        sizes: dict[str, Any] = {
            "in_channels": self.channels,
            "out_channels": weights["conv_out.weight"].shape[0],
            "block_out_channels": widths,
            "layers_per_block": _layers(weights, r"down_blocks\.0\.resnets\.(\d+)"),
            "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
            "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        }
        if conditional:
            width = checkpoint.tensors["classes"].shape[1]
            # This class counts heads by that argument: CompVis gives its transformers one.
            sizes |= {"cross_attention_dim": width, "attention_head_dim": 1}
            network = _build("UNet2DConditionModel", weights, **sizes)
            self.register_buffer("table", checkpoint.tensors["classes"])
        else:
            heads = int(checkpoint.card["head_channels"][:4])
            network = _build("UNet2DModel", weights, **sizes, attention_head_dim=heads)
        self.unet: nn.Module = network

    def forward(self, x: Tensor, step: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise ``(B, C, H, W)`` at float steps ``(B,)`` for classes ``(B,)``; the last is *no class*."""
        dtype = next(self.unet.parameters()).dtype
        context = [] if labels is None else [self.get_buffer("table")[labels][:, None]]
        prediction: Tensor = self.unet(x.to(dtype), step.to(dtype), *context).sample
        return prediction.to(x.dtype)


def _build(name: str, weights: Mapping[str, Tensor], **sizes: Any) -> nn.Module:
    """Return a network of diffusers with these weights, laid out without memory first: shapes in a file may lie."""
    with requires("diffusers", "latent diffusion needs diffusers"):
        import diffusers

        kind = getattr(diffusers, name)
    with torch.device("meta"):
        network: nn.Module = kind(**sizes)
    network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return network


def _layers(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Return the residual blocks a level, by the highest number in the names of the weights."""
    numbers = [int(match[1][:9]) for name in weights if (match := re.match(pattern, name))]
    if not numbers or max(numbers) >= _MOST_LAYERS:
        raise UserError(f"{max(numbers, default=-1) + 1} residual blocks a level")
    return max(numbers) + 1


def _widths(weights: Mapping[str, Tensor], name: str) -> list[int]:
    """Return the widths of the levels, from the highest resolution down."""
    widths: list[int] = []
    while (weight := weights.get(name.format(len(widths)))) is not None:
        widths.append(weight.shape[0])
        if weight.ndim != 4 or len(widths) > _MOST_LEVELS:
            raise UserError(f"level {len(widths)} of a U-Net has weights of shape {tuple(weight.shape)}")
    return widths


# --- weights under the names of diffusers ------------------------------------------------------------------


def _averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the U-Net's weights by CompVis's names: the running average where the file has one.

    The average of ``model.diffusion_model.a.b`` is ``model_ema.diffusion_modelab``; CompVis samples with it.
    """
    network: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(_UNET):
            short = "model_ema." + name.removeprefix("model.").replace(".", "")
            network[name.removeprefix(_UNET)] = state.get(short, value)
    return network


def _unet_weights(network: Mapping[str, Tensor], head_channels: int) -> dict[str, Tensor]:
    """Rename the weights of a U-Net of latent diffusion to those of ``UNet2DModel`` or ``UNet2DConditionModel``.

    Plain attention blocks store queries, keys and values as one weight, in heads of ``head_channels``.

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
            raise UserError(f"{rest} of {block} has {value.shape[0]} rows, not heads of {head_channels}")
        parts = value.unflatten(0, (-1, 3, head_channels)).transpose(0, 1).flatten(1, 2)
        return {f"{block}.to_{letter}.{leaf}": part for letter, part in zip("qkv", parts, strict=True)}
    name = {"norm": "group_norm", "proj_out": "to_out.0"}.get(layer, layer)
    return {f"{block}.{name}.{leaf}": value}


def _first_stage_weights(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
