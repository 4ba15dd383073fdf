"""Weights of published networks, as tensors by name; nothing in a file is executed."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from gas.display import error_text
from gas.errors import UserError
from gas.io import read_safetensors
from gas.unpickle.loading import read_pickle

__all__ = ["read_state"]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a file of ``torch.save``, tensors alone.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is damaged, or holds anything but tensors by name, such as a TorchScript program.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        state = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a file of weights alone, or is damaged: {error_text(error)}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds a {type(state).__name__}, not tensors by name")
    return state
