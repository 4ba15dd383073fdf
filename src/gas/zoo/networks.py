"""The zoo's networks of images: an EDM denoiser, and the classifier in whose features distances are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Residual block: (norm, SiLU, 3x3) twice, modulated by the noise-and-class embedding between."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm0 = nn.GroupNorm(_groups(inputs), inputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.norm1 = nn.GroupNorm(_groups(outputs), outputs)
        self.conv1 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(torch.addcmul(shift, self.norm1(h), scale + 1)))
        skip: Tensor = self.skip(x)
        return torch.add(skip, h)


class _Attention(nn.Module):
    """Single-head self-attention over the positions of a feature map, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return torch.add(x, self.out(h))


class EDMUNet(nn.Module):
    """Denoiser ``D(x; sigma, label) = c_skip x + c_out F(c_in x; c_noise, label)``.

    The stem moves ``patch x patch`` squares of pixels into channels (space to depth), so every layer works on a map
    ``patch^2`` times smaller; the head moves them back. Self-attention sits at the lowest resolution. Class ``classes``
    (one past the last) means *no class* and is trained by label dropout, for classifier-free guidance.

    Args:
        channels: image channels.
        width: feature channels at the highest resolution.
        multipliers: feature channels of each resolution, in units of ``width``; each resolution halves the last.
        blocks: residual blocks a resolution.
        patch: side of the space-to-depth squares.
        sigma_data: standard deviation of the data, in the units of ``x``.
        max_frequency: highest angular frequency of the noise embedding, in ``log(sigma) / 4``.

    References:
        Karras et al., arXiv 2206.00364, Table 1 and appendix B.6.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        patch: int = 1,
        classes: int = 10,
        sigma_data: float = 0.5,
        max_frequency: float = 1000.0,
    ) -> None:
        super().__init__()
        self.classes, self.patch, self.sigma_data = classes, patch, sigma_data
        embedding = 4 * width
        # Geometric from 1; of numbers, since exp on the meta device imports the compiler too (see weights_file.build).
        frequencies = torch.linspace(0.0, math.log(max_frequency), width // 2, device="cpu").exp()
        self.register_buffer("frequencies", torch.tensor(frequencies.tolist()), persistent=False)
        self.label = nn.Embedding(classes + 1, embedding)
        self.noise = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        pixels = channels * patch * patch
        self.stem = nn.Conv2d(pixels, width, 3, padding=1)

        widths = [width * multiplier for multiplier in multipliers]
        features, skips = width, [width]
        self.down = nn.ModuleList()
        for level, to in enumerate(widths):
            if level:
                skips.append(features)  # the skip connection of the halving
            self.down.append(_stage([features] + [to] * (blocks - 1), to, embedding))
            features = to
            skips += [to] * blocks
        middle = [_Block(features, features, embedding), _Attention(features)]
        self.middle = nn.ModuleList([*middle, _Block(features, features, embedding)])
        self.up = nn.ModuleList()
        for to in reversed(widths):
            joined = [features, *[to] * blocks]
            self.up.append(_stage([inputs + skips.pop() for inputs in joined], to, embedding))
            features = to
        self.norm = nn.GroupNorm(_groups(features), features)
        self.head = _zeroed(nn.Conv2d(features, pixels, 3, padding=1))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Denoise images ``x_0 + sigma eps`` ``(B, C, H, W)`` at levels ``(B,)`` for labels ``(B,)``, 0 to classes."""
        c, s = self.sigma_data, sigma.to(x.dtype)[:, None, None, None]
        total = (s * s + c * c).sqrt()
        raw = self._network(x / total, sigma.to(x.dtype).log() / 4, label)
        return x * (c * c / (s * s + c * c)) + raw * (s * c / total)

    def noise_embedding(self, noise: Tensor) -> Tensor:
        """Embed noise levels ``log(sigma) / 4``, ``(B,)`` -> ``(B, embedding)``."""
        angles = noise[:, None] * self.frequencies
        embedding: Tensor = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedding

    def _network(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        e = F.silu(self.noise_embedding(noise) + self.label(label))
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for level, stage in enumerate(cast("Iterable[nn.ModuleList]", self.down)):
            if level:
                h = F.avg_pool2d(h, 2)
                skips.append(h)
            for block in stage:
                h = block(h, e)
                skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, e)), e)
        for level, stage in enumerate(cast("Iterable[nn.ModuleList]", self.up)):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            for block in stage:
                h = block(torch.cat([h, skips.pop()], dim=1), e)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.patch)


class Classifier(nn.Module):
    """Four 3x3 convolutions and two linear layers: images of side ``size``, a multiple of 4, to ``classes`` logits.

    Images of side ``pool * size`` are averaged over squares of ``pool`` pixels first.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int = 1,
        width: int = 32,
        features: int = 64,
        classes: int = 10,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.conv0 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.embed = nn.Linear(2 * width * (size // 4) ** 2, features)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` in [-1, 1] to feature vectors ``(B, features)``."""
        x = F.avg_pool2d(x, self.pool) if self.pool > 1 else x
        h = F.relu(self.conv1(F.relu(self.conv0(x))))
        h = F.max_pool2d(h, 2)
        h = F.relu(self.conv3(F.relu(self.conv2(h))))
        h = F.max_pool2d(h, 2)
        return F.relu(self.embed(self.dropout(h.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.features(x))
        return logits


def _stage(inputs: Sequence[int], outputs: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList([_Block(channels, outputs, embedding) for channels in inputs])


def _groups(channels: int) -> int:
    return max(1, channels // 16)


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """Start a residual branch at zero, so that every block begins as the identity."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
