"""The zoo's files: tensors in safetensors, with a card of plain JSON that says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gas.files import write_bytes

__all__ = ["damaged", "part", "read_card", "read_weights", "write_weights"]


def read_card(path: str | Path) -> dict[str, Any]:
    """Return what a zoo file says of itself; its tensors are not read.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated, damaged or says nothing.
    """
    _check(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            return {**card, "name": str(card["name"])}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a zoo file's tensors, as float32, and its card.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated or damaged, or a number is not finite.
    """
    card = read_card(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(path, error) from error
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise damaged(path, ValueError(f"{bad[0]} is not finite"))
    return tensors, card


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write tensors and card, whole or not at all."""
    plain = {name: value.contiguous() for name, value in tensors.items()}
    return write_bytes(path, save(plain, metadata={"card": json.dumps(card)}))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def damaged(path: str | Path, error: BaseException) -> ValueError:
    """Return the error of a file that is no zoo model, in one line."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return ValueError(f"model weights {path} are damaged or not a zoo model: {line}")


def _check(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"model weights {path} are missing; make them with 'gas zoo train'")
