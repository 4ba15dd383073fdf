"""The zoo's files: tensors in safetensors, with a card of plain JSON that says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gas.errors import UserError
from gas.io import (
    CHECKSUM,
    brief,
    in_order,
    one_line,
    open_tensors,
    parse_json,
    read_tensors,
    read_text,
    sealed_metadata,
    sha256,
    write_bytes,
)

__all__ = ["build", "check_sizes", "damaged", "part", "read_card", "read_weights", "write_weights"]

# Far above every model of the zoo, which are smaller than 10 MB; a card may not ask for a network of gigabytes.
_MOST_BYTES, _SIDE, _LISTED = 256 << 20, 4096, 32
# Checksums of files written before checksums were in them, as ``sha256sum`` lists them.
_SUMS = "SHA256SUMS"
_DEEPEST = 32  # blocks or layers of a level

_M = TypeVar("_M", bound=nn.Module)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return what a zoo file says of itself; its tensors are not read.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated, damaged or says nothing.
    """
    _check(Path(path))
    try:
        with open_tensors(path, _MOST_BYTES) as file:
            card = parse_json((file.metadata() or {})["card"])
        return {**card, "name": str(card["name"])}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a zoo file's tensors, as float32, and its card.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated or damaged, or a number is not finite.
    """
    card, listed = read_card(path), _listed(Path(path))
    try:
        if listed is not None and listed != sha256(path):
            raise UserError(f"{_SUMS} beside it has another checksum")
        stored, _ = read_tensors(path, _MOST_BYTES, ours=listed is None)
        tensors = {name: value.float() for name, value in stored.items()}
    except ValueError as error:
        raise damaged(path, error) from error
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise damaged(path, ValueError(f"{bad[0]} is not finite"))
    return tensors, card


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write tensors and card, whole or not at all."""
    plain = {name: value.contiguous() for name, value in tensors.items()}
    return write_bytes(path, in_order(save(plain, sealed_metadata(plain, {"card": json.dumps(card)}))))


def build(kind: Callable[..., _M], config: Any, state: Mapping[str, Tensor]) -> _M:
    """Build a network of the sizes that a card names and give it its weights.

    It is laid out without memory first and held against the weights, so that a card asks for no more than the file has.

    Args:
        kind: makes the network.
        config: its keyword arguments, as the card has them.
        state: its weights.

    Raises:
        TypeError, ValueError, RuntimeError: when the card has no such sizes, or the weights are others.
    """
    check_sizes(config)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in kind(**config).state_dict().items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise UserError("its weights are not those of the network that its card describes")
    network = kind(**config)
    network.load_state_dict(state)
    return network


def check_sizes(config: Any) -> None:
    """Refuse what is no size of a network, before one is laid out by it.

    Raises:
        ValueError: names it.
    """
    waiting = [("network", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict) and len(value) <= _LISTED:
            waiting += value.items()
        elif isinstance(value, (list, tuple)) and len(value) <= _LISTED:
            waiting += [(name, part) for part in value]
        else:
            most = _DEEPEST if "layers" in name or name == "blocks" else _SIDE
            if not isinstance(value, (str, type(None))) and not (
                isinstance(value, (int, float)) and abs(value) <= most
            ):
                raise UserError(f"{name[:40]} = {brief(value)} is not a size of a network")


def _listed(path: Path) -> str | None:
    """The checksum of a file that has none inside, from a list beside it."""
    sums = path.parent / _SUMS
    with open_tensors(path, _MOST_BYTES) as file:
        if CHECKSUM in (file.metadata() or {}) or not sums.is_file():
            return None
    lines = (line.split() for line in read_text(sums, 1 << 16).splitlines())
    return next((words[0] for words in lines if len(words) == 2 and words[1] == path.name), None)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def damaged(path: str | Path, error: BaseException) -> ValueError:
    """Return the error of a file that is no zoo model, in one line."""
    return ValueError(f"model weights {path} are damaged or not a zoo model: {one_line(error)}")


def _check(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"model weights {path} are missing; make them with 'gas zoo train'")
