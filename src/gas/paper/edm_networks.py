"""Layers of EDM's networks, in evaluation, under the published names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.arguments import choice
from gas.errors import UserError

_HEAD_CHANNELS = 64  # channels of an attention head where the number of heads is not given


class Convolution(nn.Module):
    """Convolution of odd kernel with an optional change of resolution by 2 through a low-pass filter.

    Upsampling spreads every pixel by ``4 f``, downsampling averages neighbors by ``f`` and keeps every other one;
    ``f`` is the outer product of the normalized ``taps`` with themselves. The filter acts before the weights, or as one
    padded operation after them (``fused``, downsampling only: the residual encoder of NCSN++). Kernel 0 resamples and
    nothing else. Karras et al., arXiv 2206.00364, appendix F.1; filters of Zhang, arXiv 1904.11486.
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
        self.up, self.down, self.fused = up, down, fused
        self.margin = (len(taps) - 1) // 2  # pixels that the filter needs beyond each edge
        self.weight = self.bias = None
        if kernel:
            bound = 1 / math.sqrt(inputs * kernel * kernel)
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(outputs))
        if up or down:
            line = torch.as_tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(line, line)[None, None] / line.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.weight is not None and self.bias is not None:
            x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + self.margin)
            return self._low_pass(x, padding=0) + self.bias[:, None, None]
        if self.up:
            spread = (4 * self.resample_filter).expand(x.shape[1], -1, -1, -1)
            x = F.conv_transpose2d(x, spread, stride=2, padding=self.margin, groups=x.shape[1])
        if self.down:
            x = self._low_pass(x, padding=self.margin)
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def _low_pass(self, x: Tensor, padding: int) -> Tensor:
        filters = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, filters, stride=2, padding=padding, groups=x.shape[1])


class PositionalEmbedding(nn.Module):
    """``(cos(f_i c), sin(f_i c))`` ``(B, channels)`` of ``(B,)``, frequencies falling geometrically from 1 to 1/10000.

    DDPM++ reaches 1/10000 exactly (``endpoint``) and has the sines first; ADM stops one step before.
    """

    def __init__(self, channels: int, *, endpoint: bool = False, sine_first: bool = False) -> None:
        super().__init__()
        self.waves, self.endpoint, self.sine_first = channels // 2, endpoint, sine_first

    def forward(self, c: Tensor) -> Tensor:
        steps = torch.arange(self.waves, device=c.device, dtype=c.dtype) / (self.waves - int(self.endpoint))
        angles = torch.outer(c, (1 / 10000) ** steps)
        waves = [angles.sin(), angles.cos()] if self.sine_first else [angles.cos(), angles.sin()]
        return torch.cat(waves, dim=1)


class FourierEmbedding(nn.Module):
    """``(sin(2 pi f_i c), cos(2 pi f_i c))`` with random frequencies, part of the weights (arXiv 2006.10739)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, c: Tensor) -> Tensor:
        angles = torch.outer(c, 2 * math.pi * self.freqs.to(c.dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a group normalization of at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Map ``(B, 3 C, H, W)``, queries, keys and values interleaved within each head, to ``(B, C, H, W)``."""
    batch, channels, height, width = qkv.shape
    split = qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)
    q, k, v = (part.transpose(2, 3) for part in split.unbind(3))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(2, 3).reshape(batch, channels // 3, height, width)


class Block(nn.Module):
    """Residual block of both architectures: (norm, SiLU, 3 x 3) twice around the embedding, then attention.

    Args:
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
        self.in_channels, self.scale_and_shift, self.gain = inputs, scale_and_shift, gain
        self.norm0 = _norm(inputs, eps)
        self.conv0 = Convolution(inputs, outputs, 3, up=up, down=down, taps=taps)
        self.affine = nn.Linear(embedding, outputs * (2 if scale_and_shift else 1))
        self.norm1 = _norm(outputs, eps)
        self.conv1 = Convolution(outputs, outputs, 3)
        self.skip: Convolution | None = None
        if inputs != outputs or up or down:
            side = 1 if project or inputs != outputs else 0
            self.skip = Convolution(inputs, outputs, side, up=up, down=down, taps=taps)
        self.heads = outputs // _HEAD_CHANNELS if heads < 0 else heads
        if self.heads:
            self.norm2 = _norm(outputs, eps)
            self.qkv = Convolution(outputs, 3 * outputs, 1)
            self.proj = Convolution(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(embedding)[:, :, None, None]
        if self.scale_and_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + condition)
        h = self.conv1(F.silu(h))
        h = (h + (x if self.skip is None else self.skip(x))) * self.gain
        if not self.heads:
            return h
        mixed: Tensor = self.proj(attention(self.qkv(self.norm2(h)), self.heads))
        return (h + mixed) * self.gain


class _UNet(nn.Module):
    """The layers of encoder and decoder of both architectures, by their published names.

    Sizes are those of the published constructors, in whose training alone dropout and augmentation act.
    """

    def lay_out(
        self,
        block: Callable[..., Block],
        in_channels: int,
        first: int | None,
        side: int,
        widths: Sequence[int],
        attended: Sequence[int],
        *,
        blocks: int,
        heads: int,
        every: bool = True,
        residual: Sequence[float] | None = None,
    ) -> None:
        """Set ``enc`` and ``dec``.

        Args:
            block: makes a block of its channels and options.
            first: channels of the first convolution; by default of the first level.
            side: of the images; every level halves it.
            widths: channels of each level.
            attended: sides with self-attention, of ``heads`` as in :class:`Block`.
            every: whether all blocks of an attended level of the decoder have attention, or the last alone.
            residual: taps of the filter by which the image enters each lower level, if it does.
        """
        if not widths:
            raise UserError("channel_mult must name at least one level, got none")
        sides, first = [side >> level for level in range(len(widths))], first or widths[0]
        enc: dict[str, nn.Module] = {f"{sides[0]}x{sides[0]}_conv": Convolution(in_channels, first, 3)}
        dec: dict[str, nn.Module] = {}
        width, image, skips = first, in_channels, [first]
        for level, (side, to) in enumerate(zip(sides, widths, strict=True)):
            if level:
                enc[f"{side}x{side}_down"] = block(width, width, down=True)
                skips.append(width)
            if level and residual is not None:
                name = f"{side}x{side}_aux_residual"
                enc[name] = Convolution(image, width, 3, down=True, taps=residual, fused=True)
                image = width
            for index in range(blocks):
                enc[f"{side}x{side}_block{index}"] = block(width, to, heads=heads * (side in attended))
                width = to
                skips.append(width)
        for side, to in reversed(list(zip(sides, widths, strict=True))):
            if side == sides[-1]:
                dec[f"{side}x{side}_in0"] = block(width, width, heads=heads)
                dec[f"{side}x{side}_in1"] = block(width, width)
            else:
                dec[f"{side}x{side}_up"] = block(width, width, up=True)
            for index in range(blocks + 1):
                attends = side in attended and (every or index == blocks)
                dec[f"{side}x{side}_block{index}"] = block(width + skips.pop(), to, heads=heads * attends)
                width = to
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)

    def maps(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the last map of the decoder."""
        image, maps = x, list[Tensor]()
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = maps[-1] = image = (x + layer(image)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                maps.append(x)
        for layer in self.dec.values():
            if isinstance(layer, Block):
                # A block that is wider than the map takes the newest unused map of the encoder too.
                x = x if x.shape[1] == layer.in_channels else torch.cat([x, maps.pop()], dim=1)
                x = layer(x, embedding)
        return x


class SongUNet(_UNet):
    """DDPM++ and NCSN++ (``embedding_type="fourier"``) as EDM builds them.

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
        encoder_type: Literal["standard", "residual"] = "standard",
        decoder_type: Literal["standard"] = "standard",
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
        choice("encoder_type", encoder_type, ("standard", "residual"))
        choice("decoder_type", decoder_type, ("standard",))
        self.lay_out(
            partial(
                Block,
                embedding=wide,
                taps=resample_filter,
                scale_and_shift=False,
                project=True,
                eps=1e-6,
                gain=math.sqrt(0.5),
            ),
            in_channels,
            model_channels,
            img_resolution,
            [model_channels * factor for factor in channel_mult],
            attn_resolutions,
            blocks=num_blocks,
            heads=1,
            every=False,
            residual=resample_filter if encoder_type == "residual" else None,
        )
        self.last, width = f"{img_resolution}x{img_resolution}_aux", model_channels * channel_mult[0]
        self.dec[f"{self.last}_norm"] = _norm(width, 1e-6)
        self.dec[f"{self.last}_conv"] = Convolution(width, out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return ``(B, out_channels, H, W)`` for images, noise levels ``(B,)`` and one-hot labels ``(B, L)``."""
        h = self.map_noise(c_noise)
        if self.map_label is not None and labels is not None:
            h = h + self.map_label(labels * math.sqrt(self.map_label.in_features))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(h))))
        normed = self.dec[f"{self.last}_norm"](self.maps(x, embedding))
        output: Tensor = self.dec[f"{self.last}_conv"](F.silu(normed))
        return output


class DhariwalUNet(_UNet):
    """ADM as EDM builds it, with 64 channels a head of attention.

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
        self.lay_out(
            partial(Block, embedding=wide),
            in_channels,
            None,
            img_resolution,
            [model_channels * factor for factor in channel_mult],
            attn_resolutions,
            blocks=num_blocks,
            heads=-1,
        )
        self.out_norm = _norm(model_channels * channel_mult[0], 1e-5)
        self.out_conv = Convolution(model_channels * channel_mult[0], out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        h = self.map_layer1(F.silu(self.map_layer0(self.map_noise(c_noise))))
        if self.map_label is not None and labels is not None:
            h = h + self.map_label(labels)
        output: Tensor = self.out_conv(F.silu(self.out_norm(self.maps(x, F.silu(h)))))
        return output
