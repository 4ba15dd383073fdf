"""Layers of EDM's networks, in evaluation, under the published names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.errors import UserError

__all__ = [
    "Attention",
    "Block",
    "Convolution",
    "DhariwalUNet",
    "FourierEmbedding",
    "PositionalEmbedding",
    "SongUNet",
    "group_norm",
]

_HEAD_CHANNELS = 64  # channels of an attention head where the number of heads is not given


class Convolution(nn.Module):
    """Convolution of odd kernel with an optional change of resolution by 2 through a low-pass filter.

    Upsampling spreads every pixel by ``4 f``, downsampling averages neighbors by ``f`` and keeps every other one,
    where ``f`` is the outer product of the normalized filter with itself. The filter acts before the weights, or, as
    one padded operation, after them (``fused``, downsampling only).

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the weights; 0 resamples and nothing else.
        up: double the resolution.
        down: halve the resolution.
        taps: of the one-dimensional filter.
        fused: let the padding of weights and filter be done at once, as in the residual encoder of NCSN++.

    References:
        Karras et al., arXiv 2206.00364, appendix F.1; filters of Zhang, arXiv 1904.11486.
    """

    weight: nn.Parameter | None
    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        taps: Sequence[float] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.up, self.down, self.fused = outputs, up, down, fused
        self.weight = self.bias = None
        if kernel:
            bound = 1 / math.sqrt(inputs * kernel * kernel)
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(outputs))
        if up or down:
            line = torch.as_tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(line, line)[None, None] / line.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs, H', W')``, H' twice, half or once H."""
        if self.fused and self.weight is not None:
            x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + self._margin)
            x = self._low_pass(x, padding=0)
            return x if self.bias is None else x + self.bias[:, None, None]
        if self.up:
            spread = (4 * self.resample_filter).expand(x.shape[1], -1, -1, -1)
            x = F.conv_transpose2d(x, spread, stride=2, padding=self._margin, groups=x.shape[1])
        if self.down:
            x = self._low_pass(x, padding=self._margin)
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    @property
    def _margin(self) -> int:
        """The pixels that the filter needs beyond each edge."""
        return (self.resample_filter.shape[-1] - 1) // 2

    def _low_pass(self, x: Tensor, padding: int) -> Tensor:
        filters = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, filters, stride=2, padding=padding, groups=x.shape[1])


class PositionalEmbedding(nn.Module):
    """``(cos(f_i c), sin(f_i c))`` with frequencies falling geometrically from 1 to 1/10000.

    Args:
        channels: even number of outputs.
        endpoint: reach 1/10000 exactly, as DDPM++ does; else stop one step before, as ADM does.
        sine_first: put the sines before the cosines.
    """

    def __init__(self, channels: int, *, endpoint: bool = False, sine_first: bool = False) -> None:
        super().__init__()
        self.waves, self.endpoint, self.sine_first = channels // 2, endpoint, sine_first

    def forward(self, c: Tensor) -> Tensor:
        """Embed ``(B,)`` to ``(B, channels)``."""
        steps = torch.arange(self.waves, device=c.device, dtype=c.dtype) / (self.waves - int(self.endpoint))
        angles = torch.outer(c, (1 / 10000) ** steps)
        waves = [angles.sin(), angles.cos()] if self.sine_first else [angles.cos(), angles.sin()]
        return torch.cat(waves, dim=1)


class FourierEmbedding(nn.Module):
    """``(sin(2 pi f_i c), cos(2 pi f_i c))`` with random frequencies, drawn once and part of the weights.

    References:
        Tancik et al., arXiv 2006.10739; Song et al., arXiv 2011.13456, appendix C.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c: Tensor) -> Tensor:
        """Embed ``(B,)`` to ``(B, channels)``."""
        angles = torch.outer(c, 2 * math.pi * self.freqs.to(c.dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a group normalization of at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Attention(nn.Module):
    """Self-attention over the positions of a map; holds no weights, which lie in its block.

    Args:
        heads: heads; each attends with its share of the channels.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        """Map ``(B, 3 C, H, W)``, queries, keys and values interleaved within each head, to ``(B, C, H, W)``."""
        batch, channels, height, width = qkv.shape
        split = qkv.reshape(batch, self.heads, channels // (3 * self.heads), 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in split.unbind(3))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(2, 3).reshape(batch, channels // 3, height, width)


class Block(nn.Module):
    """Residual block of both architectures: (norm, SiLU, 3 x 3) twice around the embedding, then attention.

    Args:
        inputs: channels.
        outputs: channels.
        embedding: width of the embedding of noise level and class.
        up: double the resolution.
        down: halve the resolution.
        heads: attention heads; 0 for none, -1 for one per 64 channels, which below 64 is none, as published.
        taps: of the resampling filter.
        scale_and_shift: let the embedding scale the normalized map too (ADM), not only shift it before (DDPM++).
        project: give a resampling shortcut 1 x 1 weights even where the width stays.
        eps: of the normalizations.
        gain: factor on each sum of branch and shortcut.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        taps: Sequence[float] = (1, 1),
        scale_and_shift: bool = True,
        project: bool = False,
        eps: float = 1e-5,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.scale_and_shift, self.gain = scale_and_shift, gain
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = Convolution(inputs, outputs, 3, up=up, down=down, taps=taps)
        self.affine = nn.Linear(embedding, outputs * (2 if scale_and_shift else 1))
        self.norm1 = group_norm(outputs, eps)
        self.conv1 = Convolution(outputs, outputs, 3)
        self.skip: Convolution | None = None
        if inputs != outputs or up or down:
            side = 1 if project or inputs != outputs else 0
            self.skip = Convolution(inputs, outputs, side, up=up, down=down, taps=taps)
        heads = outputs // _HEAD_CHANNELS if heads < 0 else heads
        self.attend = Attention(heads) if heads else None
        if self.attend is not None:
            self.norm2 = group_norm(outputs, eps)
            self.qkv = Convolution(outputs, 3 * outputs, 1)
            self.proj = Convolution(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return ``(B, outputs, H', W')`` for a map ``(B, inputs, H, W)`` and its embedding ``(B, E)``."""
        h: Tensor = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(embedding)[:, :, None, None]
        if self.scale_and_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + condition)
        h = self.conv1(F.silu(h))
        h = (h + (x if self.skip is None else self.skip(x))) * self.gain
        if self.attend is None:
            return h
        mixed: Tensor = self.proj(self.attend(self.qkv(self.norm2(h))))
        return (h + mixed) * self.gain


_SONG: dict[str, Any] = {"scale_and_shift": False, "project": True, "eps": 1e-6, "gain": math.sqrt(0.5)}


@dataclass(frozen=True)
class _Plan:
    """The layout of either architecture: sides and widths of the levels, and the options of their blocks."""

    sides: list[int]
    widths: list[int]
    attended: list[bool]
    blocks: int
    embedding: int
    heads: int = -1  # of blocks with attention
    each: bool = (
        True  # whether every block of an attended level of the decoder has attention, or the last alone
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, side: int, base: int, factors: Sequence[int], blocks: int, at: Sequence[int], embedding: int
    ) -> _Plan:
        if not factors:
            raise UserError("channel_mult must name at least one level, got none")
        sides = [side >> level for level in range(len(factors))]
        return cls(sides, [base * f for f in factors], [s in at for s in sides], blocks, embedding)

    def block(
        self, inputs: int, outputs: int, *, attend: bool = False, up: bool = False, down: bool = False
    ) -> Block:
        heads = self.heads if attend else 0
        return Block(inputs, outputs, self.embedding, up=up, down=down, heads=heads, **self.options)


class SongUNet(nn.Module):
    """DDPM++ and NCSN++ as EDM builds them; dropout, which acts in training alone, is left out.

    Args:
        img_resolution: side of the images.
        in_channels: of the images.
        out_channels: of the output.
        label_dim: classes; 0 for none.
        augment_dim: width of the augmentation labels of its training; sampling ignores their weights.
        model_channels: width of the first level.
        channel_mult: width of each level, in ``model_channels``.
        channel_mult_emb: width of the embedding, in ``model_channels``.
        num_blocks: residual blocks a level.
        attn_resolutions: resolutions with self-attention.
        embedding_type: ``positional`` (DDPM++) or ``fourier`` (NCSN++).
        channel_mult_noise: width of the noise level's embedding, in ``model_channels``.
        encoder_type: how the image enters lower levels: ``standard`` (not at all), ``skip`` or ``residual`` (NCSN++).
        decoder_type: ``standard``, or ``skip``: every level adds to the output.
        resample_filter: taps: (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.

    References:
        Song et al., arXiv 2011.13456, appendix H; Karras et al., arXiv 2206.00364, Table 7.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        noise, wide = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise: nn.Module = FourierEmbedding(noise)
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise, endpoint=True, sine_first=True)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, wide)
        self.map_layer1 = nn.Linear(wide, wide)
        plan = _Plan.of(img_resolution, model_channels, channel_mult, num_blocks, attn_resolutions, wide)
        plan = replace(plan, heads=1, each=False, options={**_SONG, "taps": resample_filter})
        inputs = _image_inputs(plan, in_channels, encoder_type, resample_filter)
        enc = _encoder(plan, in_channels, model_channels, inputs)
        outputs = _image_outputs(plan, out_channels, decoder_type, resample_filter)
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(_decoder(plan, _widths(enc), outputs))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return ``(B, out_channels, H, W)`` for images, noise levels ``(B,)`` and one-hot labels ``(B, L)``."""
        h = self.map_noise(c_noise)
        if self.map_label is not None and labels is not None:
            h = h + self.map_label(labels * math.sqrt(self.map_label.in_features))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(h))))
        return self._decode(self._encode(x, embedding), embedding)

    def _encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the output of every layer of the encoder; lower levels mix the image in."""
        image, maps = x, list[Tensor]()
        for name, layer in self.enc.items():
            role = name.partition("_")[2]
            if role == "aux_down":
                image = layer(image)
            elif role == "aux_skip":
                x = maps[-1] = x + layer(image)
            elif role == "aux_residual":
                x = maps[-1] = image = (x + layer(image)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                maps.append(x)
        return maps

    def _decode(self, maps: list[Tensor], embedding: Tensor) -> Tensor:
        """Return the output of the last level, or the sum over all levels."""
        x, output, normed = maps[-1], None, None
        for name, layer in self.dec.items():
            role = name.partition("_")[2]
            if role == "aux_up":
                output = layer(output)
            elif role == "aux_norm":
                normed = F.silu(layer(x))
            elif role == "aux_conv":
                part = layer(normed)
                output = part if output is None else output + part
            else:
                x = _joined(layer, x, maps, embedding)
        return cast("Tensor", output)


class DhariwalUNet(nn.Module):
    """ADM as EDM builds it; dropout, which acts in training alone, is left out.

    Args:
        img_resolution: side of the images.
        in_channels: of the images.
        out_channels: of the output.
        label_dim: classes; 0 for none.
        augment_dim: as in :class:`SongUNet`.
        model_channels: width in which the levels are counted.
        channel_mult: width of each level.
        channel_mult_emb: width of the embedding, in ``model_channels``.
        num_blocks: residual blocks a level.
        attn_resolutions: resolutions with self-attention, 64 channels a head.

    References:
        Dhariwal and Nichol, arXiv 2105.05233, section 3; Karras et al., arXiv 2206.00364, Table 7.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ) -> None:
        super().__init__()
        wide = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, wide)
        self.map_layer1 = nn.Linear(wide, wide)
        self.map_label = nn.Linear(label_dim, wide, bias=False) if label_dim else None
        plan = _Plan.of(img_resolution, model_channels, channel_mult, num_blocks, attn_resolutions, wide)
        width = plan.widths[0]
        enc = _encoder(plan, in_channels, width)
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(_decoder(plan, _widths(enc)))
        self.out_norm = group_norm(width, 1e-5)
        self.out_conv = Convolution(width, out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return ``(B, out_channels, H, W)`` for images, noise levels ``(B,)`` and one-hot labels ``(B, L)``."""
        h = self.map_layer1(F.silu(self.map_layer0(self.map_noise(c_noise))))
        if self.map_label is not None and labels is not None:
            h = h + self.map_label(labels)
        embedding, maps = F.silu(h), []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            maps.append(x)
        for layer in self.dec.values():
            x = _joined(layer, x, maps, embedding)
        output: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return output


def _encoder(
    plan: _Plan, image: int, width: int, inputs: Mapping[int, Mapping[str, nn.Module]] | None = None
) -> dict[str, nn.Module]:
    """Return the layers of the encoder by name, from the highest resolution down."""
    layers: dict[str, nn.Module] = {}
    for level, side in enumerate(plan.sides):
        if level == 0:
            layers[f"{side}x{side}_conv"] = Convolution(image, width, 3)
        else:
            layers[f"{side}x{side}_down"] = plan.block(width, width, down=True)
            layers |= (inputs or {}).get(level, {})
        for index in range(plan.blocks):
            layers[f"{side}x{side}_block{index}"] = plan.block(
                width, plan.widths[level], attend=plan.attended[level]
            )
            width = plan.widths[level]
    return layers


def _decoder(
    plan: _Plan, skips: list[int], outputs: Mapping[int, Mapping[str, nn.Module]] | None = None
) -> dict[str, nn.Module]:
    """Return the layers of the decoder by name, from the lowest resolution up."""
    layers: dict[str, nn.Module] = {}
    width, lowest = skips[-1], len(plan.sides) - 1
    for level, side in reversed(list(enumerate(plan.sides))):
        if level == lowest:
            layers[f"{side}x{side}_in0"] = plan.block(width, width, attend=True)
            layers[f"{side}x{side}_in1"] = plan.block(width, width)
        else:
            layers[f"{side}x{side}_up"] = plan.block(width, width, up=True)
        for index in range(plan.blocks + 1):
            attend = plan.attended[level] and (plan.each or index == plan.blocks)
            layers[f"{side}x{side}_block{index}"] = plan.block(
                width + skips.pop(), plan.widths[level], attend=attend
            )
            width = plan.widths[level]
        layers |= (outputs or {}).get(level, {})
    return layers


def _image_inputs(
    plan: _Plan, image: int, kind: str, taps: Sequence[float]
) -> dict[int, dict[str, nn.Module]]:
    """Return the layers by which the image enters each lower level, by name."""
    layers: dict[int, dict[str, nn.Module]] = {}
    for level, side in list(enumerate(plan.sides))[1:]:
        name, width = f"{side}x{side}_aux", plan.widths[level - 1]
        if kind == "skip":
            down = Convolution(image, image, 0, down=True, taps=taps)
            layers[level] = {f"{name}_down": down, f"{name}_skip": Convolution(image, width, 1)}
        elif kind == "residual":
            down = Convolution(image, width, 3, down=True, taps=taps, fused=True)
            layers[level], image = {f"{name}_residual": down}, width
    return layers


def _image_outputs(
    plan: _Plan, image: int, kind: str, taps: Sequence[float]
) -> dict[int, dict[str, nn.Module]]:
    """Return the layers by which each level, or the first alone, adds to the output, by name."""
    layers: dict[int, dict[str, nn.Module]] = {}
    for level, side in enumerate(plan.sides):
        name, width = f"{side}x{side}_aux", plan.widths[level]
        layers[level] = {}
        if kind == "skip" and level < len(plan.sides) - 1:
            layers[level][f"{name}_up"] = Convolution(image, image, 0, up=True, taps=taps)
        if kind == "skip" or level == 0:
            layers[level][f"{name}_norm"] = group_norm(width, 1e-6)
            layers[level][f"{name}_conv"] = Convolution(width, image, 3)
    return layers


def _widths(enc: dict[str, nn.Module]) -> list[int]:
    """Return the channels of every map that the encoder hands to the decoder."""
    layers = [layer for name, layer in enc.items() if "_aux_" not in name]
    return [layer.out_channels for layer in layers if isinstance(layer, (Block, Convolution))]


def _joined(layer: nn.Module, x: Tensor, maps: list[Tensor], embedding: Tensor) -> Tensor:
    """Apply a decoder's block, to the newest unused map of the encoder too if the block is wide enough."""
    if x.shape[1] != layer.in_channels:
        x = torch.cat([x, maps.pop()], dim=1)
    output: Tensor = layer(x, embedding)
    return output
