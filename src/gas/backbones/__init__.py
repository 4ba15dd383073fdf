"""Pretrained models behind the library's contract: EDM's networks, CompVis's latent diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gas.own import OwnModel

__all__ = ["open_model"]


def open_model(path: str | Path, *, t_end: float = 1e-3) -> OwnModel:
    """Load a published network by its file, whichever kind it is: EDM's or latent diffusion.

    Args:
        path: ``.pkl``, ``.ckpt``, or safetensors as ``gas convert`` writes it.
        t_end: time that sampling ends at.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, unsafe or of another kind.
    """
    from gas.backbones import edm, ldm

    if Path(path).suffix == ".ckpt" or ldm.is_converted(path):
        return ldm.load(path, t_end=t_end)
    return edm.load(path, t_end=t_end)
