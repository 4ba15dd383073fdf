"""CompVis's latent diffusion (LSUN, ImageNet) and its VQ first stage, run by diffusers' modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas.denoise import DiscreteTime, NoiseDenoiser
from gas.display import error_text
from gas.errors import UserError, requires
from gas.io import open_safetensors, read_safetensors, sha256, strip_prefix, write_safetensors
from gas.models.custom import OwnModel
from gas.paper.compvis import averaged, first_stage_weights, unet_weights
from gas.schedule import VPDiscrete
from gas.unpickle.loading import read_pickle

__all__ = [
    "LatentDiffusion",
    "is_checkpoint",
    "is_converted",
    "load",
    "load_first_stage",
    "of_state",
    "read",
    "write",
]

_KIND = "gas-solver latent diffusion"
# The published networks have 4 levels of 2 blocks.
_MOST_LEVELS, _MOST_LAYERS = 8, 16


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """The parts of a checkpoint that sampling needs, as tensors by diffusers' names.

    Attributes:
        tensors: ``unet.*``, ``first.*`` (may be absent), ``classes`` ``(L + 1, E)`` (may be absent; the last row is
            *no class*) and ``alphas_cumprod``.
        card: provenance and ``head_channels``, in plain text.
    """

    tensors: Mapping[str, Tensor]
    card: Mapping[str, str]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the weights of one network."""
        return strip_prefix(self.tensors, prefix)


def is_checkpoint(data: Any) -> bool:
    """Return whether the contents of a file are a checkpoint of latent diffusion or of a first stage alone."""
    state = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping):
        return False
    unet = "model.diffusion_model.input_blocks.0.0.weight" in state and "alphas_cumprod" in state
    return unet or {"quantize.embedding.weight", "decoder.conv_in.weight"} <= set(state)


def of_state(data: Mapping[str, Any], *, head_channels: int = 32, source: str = "") -> LatentDiffusion:
    """Convert the contents of a ``.ckpt``.

    The file does not say the channels of a head of plain attention (32 in ``lsun_bedrooms``).

    Raises:
        UserError: when the weights are of another architecture.
    """
    if not is_checkpoint(data):
        raise UserError(f"{source} holds no latent diffusion model, nor a VQ first stage")
    state = {k: v.float() for k, v in data.get("state_dict", data).items() if isinstance(v, Tensor)}
    tensors: dict[str, Tensor] = {}
    with _explained(f"{source} is"):
        if network := averaged(state):
            renamed = unet_weights(network, head_channels)
            tensors = {f"unet.{name}": value for name, value in renamed.items()}
            tensors["alphas_cumprod"] = state["alphas_cumprod"]
            if (classes := state.get("cond_stage_model.embedding.weight")) is not None:
                tensors["classes"] = classes
        alone = "quantize.embedding.weight" in state
        first = state if alone else strip_prefix(state, "first_stage_model.")
        tensors |= {f"first.{name}": value for name, value in first_stage_weights(first).items()}
    return LatentDiffusion(tensors, {"kind": _KIND, "head_channels": str(head_channels)})


def read(path: str | Path, *, head_channels: int = 32) -> LatentDiffusion:
    """Read a CompVis ``.ckpt``, which is not executed, or its conversion to safetensors by ``gas paper convert``.

    Raises:
        FileNotFoundError: when there is no such file.
        UserError: when the file is damaged, unsafe or holds something else.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return of_state(read_pickle(path), head_channels=head_channels, source=str(path))
    try:
        tensors, card = read_safetensors(path)
    except ValueError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error_text(error)})") from error
    if card.get("kind") != _KIND:
        raise UserError(
            f"{path} is no latent diffusion model; make one with `gas paper convert model.ckpt {path}`"
        )
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

    Args:
        path: ``model.ckpt`` as published, or safetensors as ``gas paper convert`` writes it.
        t_end: time that sampling ends at.
        latent_size: side of the latents, which the file does not say.
        name: of the model; by default the file's name.
        device: of the network.
        head_channels: as in :func:`of_state`.

    Raises:
        FileNotFoundError: when there is no such file.
        UserError: when the file is damaged, unsafe or of another architecture.
        ModuleNotFoundError: without diffusers; install ``gas-solver[diffusers]``.
    """
    checkpoint = read(path, head_channels=head_channels)
    if "alphas_cumprod" not in checkpoint.tensors:
        raise UserError(f"{path} holds a first stage alone, which has nothing to sample")
    with _explained(f"{path} is"):
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
        FileNotFoundError: when there is no such file.
        UserError: when the file has no first stage, or is damaged, unsafe or of another architecture.
        ModuleNotFoundError: without diffusers; install ``gas-solver[diffusers]``.
    """
    weights = read(path).part("first.")
    if not weights:
        raise UserError(f"{path} has no first stage")
    with _explained(f"{path} has a first stage"):
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


@contextmanager
def _explained(subject: str) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{subject} of another architecture: {error_text(error)}") from error


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
