"""Latent diffusion as its authors lay it out, on a plain dict of weights that is filled as it is asked for.

Written for the tests from the architecture's description and its published names; the library runs the same weights
through diffusers' modules, under diffusers' names.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class State(dict[str, Tensor]):
    """A state dict that draws a weight when a layer first needs it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, mean: float = 0.0) -> Tensor:
        if name not in self:
            fan = math.prod(shape[1:]) if len(shape) > 1 else 25
            self[name] = mean + torch.randn(shape, generator=self.generator, dtype=torch.float64) / math.sqrt(
                fan
            )
        return self[name]

    def conv(
        self, name: str, x: Tensor, width: int, kernel: int = 3, stride: int = 1, padding: int = -1
    ) -> Tensor:
        weight = self.draw(f"{name}.weight", width, x.shape[1], kernel, kernel)
        bias = self.draw(f"{name}.bias", width)
        return F.conv2d(x, weight, bias, stride, kernel // 2 if padding < 0 else padding)

    def linear(self, name: str, x: Tensor, width: int, bias: bool = True) -> Tensor:
        weight = self.draw(f"{name}.weight", width, x.shape[-1])
        return F.linear(x, weight, self.draw(f"{name}.bias", width) if bias else None)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = (
            self.draw(f"{name}.weight", x.shape[1], mean=1.0),
            self.draw(f"{name}.bias", x.shape[1]),
        )
        return F.group_norm(x, 32, weight, bias, eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (
            self.draw(f"{name}.weight", x.shape[-1], mean=1.0),
            self.draw(f"{name}.bias", x.shape[-1]),
        )
        return F.layer_norm(x, x.shape[-1:], weight, bias)


# ---------------------------------------------------------------- the U-Net


def unet(
    s: State, x: Tensor, steps: Tensor, context: Tensor | None, *, base: int, factors: list[int]
) -> Tensor:
    """One residual block a level, attention at all levels but the first; transformers where there is a context."""
    p = "model.diffusion_model"
    frequencies = torch.exp(-math.log(10000) * torch.arange(base // 2, dtype=torch.float64) / (base // 2))
    angles = steps[:, None] * frequencies
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = s.linear(f"{p}.time_embed.2", F.silu(s.linear(f"{p}.time_embed.0", emb, 4 * base)), 4 * base)
    x = s.conv(f"{p}.input_blocks.0.0", x, base)
    maps, number = [x], 1
    for level, factor in enumerate(factors):
        x = _res(s, f"{p}.input_blocks.{number}.0", x, emb, base * factor)
        x = _attend(s, f"{p}.input_blocks.{number}.1", x, context) if level else x
        maps.append(x)
        if level < len(factors) - 1:
            x = s.conv(f"{p}.input_blocks.{number + 1}.0.op", x, x.shape[1], stride=2)
            maps.append(x)
        number += 2
    width = x.shape[1]
    x = _res(s, f"{p}.middle_block.0", x, emb, width)
    x = _res(s, f"{p}.middle_block.2", _attend(s, f"{p}.middle_block.1", x, context), emb, width)
    number = 0
    for level, factor in reversed(list(enumerate(factors))):
        for index in range(2):
            block = f"{p}.output_blocks.{number}"
            x = _res(s, f"{block}.0", torch.cat([x, maps.pop()], dim=1), emb, base * factor)
            x = _attend(s, f"{block}.1", x, context) if level else x
            if level and index == 1:
                up = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = s.conv(f"{block}.2.conv", up, x.shape[1])
            number += 1
    return s.conv(f"{p}.out.2", F.silu(s.norm(f"{p}.out.0", x, 1e-5)), 3)


def _res(s: State, p: str, x: Tensor, emb: Tensor, width: int) -> Tensor:
    h = s.conv(f"{p}.in_layers.2", F.silu(s.norm(f"{p}.in_layers.0", x, 1e-5)), width)
    h = h + s.linear(f"{p}.emb_layers.1", F.silu(emb), width)[:, :, None, None]
    h = s.conv(f"{p}.out_layers.3", F.silu(s.norm(f"{p}.out_layers.0", h, 1e-5)), width)
    return h + (x if x.shape[1] == width else s.conv(f"{p}.skip_connection", x, width, 1))


def _attend(s: State, p: str, x: Tensor, context: Tensor | None) -> Tensor:
    return _plain(s, p, x) if context is None else _transformer(s, p, x, context)


def _plain(s: State, p: str, x: Tensor, head: int = 32) -> Tensor:
    """Heads one after another, each with its queries, keys and values."""
    width, flat = x.shape[1], s.norm(f"{p}.norm", x, 1e-5).flatten(2)
    weight = s.draw(f"{p}.qkv.weight", 3 * width, width, 1)
    qkv = F.conv1d(flat, weight, s.draw(f"{p}.qkv.bias", 3 * width))
    mixed = []
    for part in qkv.split(3 * head, dim=1):
        q, k, v = part.split(head, dim=1)
        weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(head), dim=2)
        mixed.append(torch.einsum("bnm,bcm->bcn", weights, v))
    out = s.draw(f"{p}.proj_out.weight", width, width, 1)
    h = F.conv1d(torch.cat(mixed, dim=1), out, s.draw(f"{p}.proj_out.bias", width))
    return x + h.reshape(x.shape)


def _transformer(s: State, p: str, x: Tensor, context: Tensor) -> Tensor:
    width, block = x.shape[1], f"{p}.transformer_blocks.0"
    h = s.conv(f"{p}.proj_in", s.norm(f"{p}.norm", x, 1e-6), width, 1).flatten(2).transpose(1, 2)
    for number in (1, 2):
        n = s.layer_norm(f"{block}.norm{number}", h)
        condition = n if number == 1 else context
        q = s.linear(f"{block}.attn{number}.to_q", n, width, bias=False)
        k = s.linear(f"{block}.attn{number}.to_k", condition, width, bias=False)
        v = s.linear(f"{block}.attn{number}.to_v", condition, width, bias=False)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(width), dim=2)
        h = h + s.linear(f"{block}.attn{number}.to_out.0", weights @ v, width)
    value, gate = s.linear(f"{block}.ff.net.0.proj", s.layer_norm(f"{block}.norm3", h), 8 * width).chunk(
        2, dim=2
    )
    h = h + s.linear(f"{block}.ff.net.2", value * F.gelu(gate), width)
    return x + s.conv(f"{p}.proj_out", h.transpose(1, 2).reshape(x.shape), width, 1)


# ---------------------------------------------------------------- the first stage


def decode(s: State, z: Tensor, p: str, *, base: int, factors: list[int], codes: int) -> Tensor:
    """Snap every latent to its nearest code, then decode."""
    table = s.draw(f"{p}quantize.embedding.weight", codes, z.shape[1])
    flat = z.movedim(1, -1)
    nearest = torch.cdist(flat.reshape(-1, z.shape[1]), table).argmin(dim=1)
    z = table[nearest].reshape(flat.shape).movedim(-1, 1)
    x = s.conv(f"{p}decoder.conv_in", s.conv(f"{p}post_quant_conv", z, z.shape[1], 1), base * factors[-1])
    x = _middle(s, f"{p}decoder.mid", x)
    for level, factor in reversed(list(enumerate(factors))):
        for index in range(2):
            x = _plain_res(s, f"{p}decoder.up.{level}.block.{index}", x, base * factor)
        if level:
            up = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = s.conv(f"{p}decoder.up.{level}.upsample.conv", up, x.shape[1])
    return s.conv(f"{p}decoder.conv_out", F.silu(s.norm(f"{p}decoder.norm_out", x, 1e-6)), 3)


def encode(s: State, x: Tensor, p: str, *, base: int, factors: list[int], width: int) -> Tensor:
    """Encode images to latents, before they are snapped."""
    x = s.conv(f"{p}encoder.conv_in", x, base)
    for level, factor in enumerate(factors):
        x = _plain_res(s, f"{p}encoder.down.{level}.block.0", x, base * factor)
        if level < len(factors) - 1:
            padded = F.pad(x, (0, 1, 0, 1))
            x = s.conv(f"{p}encoder.down.{level}.downsample.conv", padded, x.shape[1], stride=2, padding=0)
    x = F.silu(s.norm(f"{p}encoder.norm_out", _middle(s, f"{p}encoder.mid", x), 1e-6))
    return s.conv(f"{p}quant_conv", s.conv(f"{p}encoder.conv_out", x, width), width, 1)


def _middle(s: State, p: str, x: Tensor) -> Tensor:
    x, width = _plain_res(s, f"{p}.block_1", x, x.shape[1]), x.shape[1]
    n = s.norm(f"{p}.attn_1.norm", x, 1e-6)
    q, k, v = (s.conv(f"{p}.attn_1.{letter}", n, width, 1).flatten(2) for letter in "qkv")
    weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(width), dim=2)
    mixed = torch.einsum("bnm,bcm->bcn", weights, v).reshape(x.shape)
    return _plain_res(s, f"{p}.block_2", x + s.conv(f"{p}.attn_1.proj_out", mixed, width, 1), width)


def _plain_res(s: State, p: str, x: Tensor, width: int) -> Tensor:
    h = s.conv(f"{p}.conv1", F.silu(s.norm(f"{p}.norm1", x, 1e-6)), width)
    h = s.conv(f"{p}.conv2", F.silu(s.norm(f"{p}.norm2", h, 1e-6)), width)
    return h + (x if x.shape[1] == width else s.conv(f"{p}.nin_shortcut", x, width, 1))
