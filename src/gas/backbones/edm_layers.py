"""Layers of EDM's networks, in evaluation, under the published names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "Block", "Convolution", "FourierEmbedding", "PositionalEmbedding", "group_norm"]

_HEAD_CHANNELS = 64  # channels of an attention head where the number of heads is not given


class Convolution(nn.Module):
    """Convolution of odd kernel with an optional change of resolution by 2 through a low-pass filter.

    Upsampling spreads every pixel by ``4 f``, downsampling averages neighbours by ``f`` and keeps every other one,
    where ``f`` is the outer product of the normalised filter with itself. The filter acts before the weights, or, as
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
        """Pixels that the filter needs beyond each edge."""
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
    """``(sin(2 pi f_i c), cos(2 pi f_i c))`` with random frequencies that were drawn once and are part of the weights.

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
    """Return a group normalisation of at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Attention(nn.Module):
    """Self-attention over the positions of a map; holds no weights, which lie in its block.

    Args:
        heads: heads; each attends with its own share of the channels.
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
        scale_and_shift: let the embedding scale the normalised map too (ADM), not only shift it before (DDPM++).
        project: give a resampling shortcut 1 x 1 weights even where the width stays.
        eps: of the normalisations.
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
        told = self.affine(embedding)[:, :, None, None]
        if self.scale_and_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + told)
        h = self.conv1(F.silu(h))
        h = (h + (x if self.skip is None else self.skip(x))) * self.gain
        if self.attend is None:
            return h
        mixed: Tensor = self.proj(self.attend(self.qkv(self.norm2(h))))
        return (h + mixed) * self.gain
