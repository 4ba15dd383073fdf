"""The networks of the presets at their published sizes, with random weights: what a network evaluation costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gas.presets.preset import Preset

__all__ = ["Asked", "asked", "parameters", "vgg"]

# Of EDM's published training script (arXiv 2206.00364, Table 7), VP: width, blocks and attention of DDPM++.
_EDM: dict[str, Any] = {
    "model_type": "SongUNet",
    "model_channels": 128,
    "num_blocks": 4,
    "attn_resolutions": [16],
}
_EDM |= {"img_channels": 3, "augment_dim": 9}
# Widths of the levels of CompVis's networks (arXiv 2112.10752, Tables 12 and 13), and of Stable Diffusion 1.
_LSUN, _CIN, _SD = (224, 448, 672, 896), (192, 384, 576, 960), (320, 640, 1280, 1280)


@dataclass(frozen=True, eq=False)
class Asked:
    """A preset's network of random weights, asked as the preset asks it.

    Attributes:
        network: frozen, in evaluation mode.
        shape: of a sample.
        denoise: ``(x, t) -> `` what the network answers, guided in a doubled batch where the preset guides.
    """

    network: nn.Module
    shape: tuple[int, ...]
    denoise: Callable[[Tensor, Tensor], Tensor]


def asked(preset: Preset, device: str | torch.device) -> Asked:
    """Build a preset's network at its published size; ``"meta"`` builds one without numbers.

    Raises:
        ModuleNotFoundError: where the network needs diffusers, without it.
    """
    with torch.device(device):
        made = _edm(preset) if preset.kind == "edm" else _latent(preset)
    made.network.eval().requires_grad_(False)
    return made


def _edm(preset: Preset) -> Asked:
    from gas.backbones.edm import EDMNetwork

    factors = [2, 2, 2] if preset.size <= 32 else [1, 2, 2, 2]
    network = EDMNetwork("EDMPrecond", img_resolution=preset.size, channel_mult=factors, **_EDM)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = network(x, t.to(x).expand(len(x)))
        return answer

    return Asked(network, (3, preset.size, preset.size), denoise)


def _latent(preset: Preset) -> Asked:
    """Latent diffusion's or Stable Diffusion's U-Net, by diffusers."""
    from gas.backbones.ldm import diffusers_class

    channels, side = (4, preset.size // 8) if preset.kind == "sd" else (3, preset.size // 4)
    told: dict[str, Any] = {"in_channels": channels, "out_channels": channels, "layers_per_block": 2}
    width, tokens = 0, 0
    if preset.kind == "sd":
        width, tokens = 768, 77
        places = [True, True, True, False]
        told |= {"block_out_channels": _SD, "cross_attention_dim": width, "attention_head_dim": 8}
    elif preset.guidance != 1:
        width, tokens = 512, 1
        places = [False, True, True, True]
        told |= {"block_out_channels": _CIN, "cross_attention_dim": width, "attention_head_dim": 1}
    else:
        places = [False, True, True, True]
        told |= {"block_out_channels": _LSUN, "attention_head_dim": 32}
    kind = "CrossAttn" if width else "Attn"
    told["down_block_types"] = [f"{kind if here else ''}DownBlock2D" for here in places]
    told["up_block_types"] = [f"{kind if here else ''}UpBlock2D" for here in reversed(places)]
    network: nn.Module = diffusers_class("UNet2DConditionModel" if width else "UNet2DModel")(**told)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        y = torch.cat([x, x]) if preset.guidance != 1 else x
        words = [torch.zeros(len(y), tokens, width, device=x.device)] if width else []
        answer: Tensor = network(y, (999 * t).to(y).expand(len(y)), *words).sample
        return torch.lerp(answer[len(x) :], answer[: len(x)], preset.guidance) if len(y) > len(x) else answer

    return Asked(network, (channels, side, side), denoise)


def vgg(device: str | torch.device) -> nn.Module:
    """Return the convolutions of VGG-16, which LPIPS asks twice a pair, with random weights."""
    layers: list[nn.Module] = []
    last = 3
    for width, count in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(last, width, 3, padding=1, device=device), nn.ReLU()]
            last = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def parameters(network: nn.Module) -> int:
    """Return how many numbers a network has learned."""
    return sum(math.prod(p.shape) for p in network.parameters())
