"""Kinds of published files, and their weights as safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.display import contents
from gas.errors import UserError
from gas.io import sha256, write_safetensors
from gas.paper.student import is_student
from gas.paper.teacher_set import is_teacher_set
from gas.schedule import EDMasVP, Schedule, VPDiscrete, VPLinear
from gas.unpickle.allowed import Persistent
from gas.unpickle.loading import read_pickle

# The contents of each kind of file, and the suffix of its conversion.
KINDS = {
    "edm": ("an EDM network", ".safetensors"),
    "r3gan": ("an R3GAN discriminator", ".safetensors"),
    "ldm": ("a latent diffusion model of CompVis, or a first stage", ".safetensors"),
    "student": ("a GAS student", ".json"),
    "teachers": ("a GAS teacher set", ""),
}


def _scaled_linear(first: float, last: float) -> VPDiscrete:
    betas = torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64) ** 2
    return VPDiscrete((1 - betas).cumprod(0))


# Schedules of the published models, by the name of their family: a student's file does not say which it is for.
SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "edm": lambda t_end: EDMasVP(t_end, 0.002, 80.0),
    "ldm": lambda _: _scaled_linear(0.0015, 0.0195),
    "sd": lambda _: _scaled_linear(0.00085, 0.012),
    "vp": lambda _: VPLinear(0.1, 20.0),
}


def recognize(path: str | Path) -> tuple[str, Any]:
    """Return the kind of a published file, which need not be trusted; nothing in it is executed.

    Returns:
        A key of :data:`KINDS`, and the file's content with its large tensors still on disk.

    Raises:
        UserError: when the file is damaged, unsafe, or of no known kind: names its contents.
    """
    path = Path(path)
    if path.suffix in (".safetensors", ".json", ".npz"):
        raise UserError(f"{path} is {path.suffix[1:]} already, which needs no converting")
    from gas.paper.ldm import is_checkpoint

    data = read_pickle(path, lazy=True)
    entries = data if isinstance(data, Mapping) else {}
    kinds = {
        "student": is_student(data),
        "teachers": is_teacher_set(data),
        "edm": isinstance(entries.get("ema"), Persistent),
        "r3gan": isinstance(entries.get("D"), Persistent),
        "ldm": is_checkpoint(data),
    }
    if any(kinds.values()):
        return max(kinds, key=lambda kind: kinds[kind]), data
    known = "; ".join(description for description, _ in KINDS.values())
    raise UserError(f"{path} holds {contents(data)}: no file that is known ({known})")


def weights_to_safetensors(kind: str, path: str | Path, out: str | Path) -> int:
    """Convert weights of a recognized kind, building the network once; return the count of numbers written.

    Raises:
        UserError: when the weights are not those of the network that the file describes.
    """
    from gas.paper import edm, ldm
    from gas.training.adversarial.r3gan import load_discriminator

    path = Path(path)
    tensors: Mapping[str, Tensor]
    if kind == "edm":
        weights = edm.read_weights(path)
        edm.build(weights)
        edm.write_weights(weights, out)
        tensors = weights.tensors
    elif kind == "ldm":
        model = ldm.read(path)
        ldm.write(model, out, path)
        tensors = model.tensors
    else:
        tensors = load_discriminator(path).state_dict()
        card = {"kind": "R3GAN discriminator", "source": path.name, "source_sha256": sha256(path)}
        write_safetensors(out, tensors, card)
    return sum(value.numel() for value in tensors.values())
