"""Preprocessing of images for feature networks: three channels, bytes and resizing."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.errors import UserError


def rgb(x: Tensor) -> Tensor:
    """Return images ``(B, 1 or 3, H, W)`` with three channels; gray is repeated."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"a published feature network takes images (B, 1 or 3, H, W), got shape {tuple(x.shape)}: decode latents, "
            "or leave --features out"
        )
    return x.expand(-1, 3, -1, -1)


def as_bytes(x: Tensor) -> Tensor:
    """Return ``clip(127.5 x + 128)`` of images in [-1, 1], integers 0 to 255 as floats, as EDM's ``generate.py``."""
    return (x.float() * 127.5 + 128).clamp(0, 255).floor()


def resize_as_tensorflow(x: Tensor, size: int) -> Tensor:
    """Resize ``(B, C, H, W)`` to a square as TensorFlow 1 did: bilinear, pixel k read at ``k H / size``, no antialias.

    Published Frechet distances and reference statistics were made with this; a centered resize moves them.
    """
    rows, columns = (_weights(length, size).to(x) for length in x.shape[2:])
    return rows @ x @ columns.T


def _weights(length: int, size: int) -> Tensor:
    """The matrix ``(size, length)`` of a one-dimensional resize."""
    places = torch.arange(size, dtype=torch.float32) * (length / size)
    below = places.floor().long().clamp(max=length - 1)
    above, share = (below + 1).clamp(max=length - 1), places - below
    weights = torch.zeros(size, length)
    index = torch.arange(size)
    weights.index_put_((index, below), 1 - share, accumulate=True)
    return weights.index_put_((index, above), share, accumulate=True)
