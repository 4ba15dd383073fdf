"""Weights of a published network, as tensors by name; nothing in the file is executed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["read_state"]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a file of ``torch.save``, tensors alone.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged, or holds anything but tensors by name, such as a TorchScript program.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers' own errors have no common class
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of weights alone, or is damaged: {line}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}, not tensors by name")
    return state
