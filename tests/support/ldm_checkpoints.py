"""Latent-diffusion checkpoints in the published layout, with small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support import compvis
from support.compvis import State

UNET: dict[str, Any] = {"base": 32, "factors": [1, 2]}
FIRST: dict[str, Any] = {"base": 32, "factors": [1, 2]}
BETAS = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
STEPS = torch.tensor([3.25, 990.5], dtype=torch.float64)


def checkpoint(classes: int) -> State:
    """A state dict in the published names, U-Net, first stage and what comes with them."""
    state, context = State(), None
    if classes:
        context = state.draw("cond_stage_model.embedding.weight", classes + 1, 20)[[0, 1]][:, None]
    compvis.unet(state, X, STEPS, context, **UNET)
    z = compvis.encode(state, X, "first_stage_model.", **FIRST, width=3)
    compvis.decode(state, z, "first_stage_model.", **FIRST, codes=16)
    state["alphas_cumprod"] = (1 - BETAS).cumprod(0).float()
    return state


def saved(state: dict[str, Tensor], path: Path, **extra: Any) -> Path:
    torch.save(
        {"epoch": 3, "global_step": 7, "state_dict": {k: v.float() for k, v in state.items()}, **extra}, path
    )
    return path
