"""TF32: CUDA's products of float32 with factors of 10 bits in place of 23, on or off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["truncate", "truncated", "untruncated"]


@contextlib.contextmanager
def untruncated() -> Iterator[None]:
    """Let CUDA compute float32 products in float32 within; what was set before holds again afterwards.

    A difference of two answers a thousandth apart is lost in TF32.
    """
    switches, name, _, off = _switches()
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, off)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch, name, value)


def truncate(products: bool) -> None:
    """Set whether CUDA truncates factors of float32 products to TF32, which keeps 10 bits of 23, in this process.

    By itself torch does so in convolutions and not in matrix products.
    """
    switches, name, on, off = _switches()
    for switch in switches:
        setattr(switch, name, on if products else off)


def truncated() -> tuple[Any, ...]:
    """Return what is set for convolutions and for matrix products: what a recording is of."""
    switches, name, _, _ = _switches()
    return tuple(getattr(switch, name) for switch in switches)


def _switches() -> tuple[list[Any], str, Any, Any]:
    """Torch's switches of convolutions and matrix products, what they are called, and their values on and off.

    Torch has two sets of names. The old ones keep both readable, so that exporting and compiling, which read the old,
    go on working; they cannot be used any more once someone has set the new ones.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        _ = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:  # the new ones say what the old ones cannot
        return [cudnn.conv, matmul], "fp32_precision", "tf32", "ieee"
    return [cudnn, matmul], "allow_tf32", True, False
