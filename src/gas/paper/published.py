"""Published networks by their file, whichever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gas.models.custom import OwnModel

__all__ = ["open_model"]


def open_model(path: str | Path, *, t_end: float = 1e-3, device: str | torch.device = "cpu") -> OwnModel:
    """Load a published network by its file, whichever kind it is: EDM's or latent diffusion.

    Args:
        path: ``.pkl``, ``.ckpt``, or safetensors as ``gas convert`` writes it.
        t_end: time that sampling ends at.
        device: where to sample.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, unsafe or of another kind.
    """
    from gas.paper import edm, ldm

    if Path(path).suffix == ".ckpt" or ldm.is_converted(path):
        return ldm.load(path, t_end=t_end, device=device)
    return edm.load(path, t_end=t_end, device=device)
