"""The zoo's files: tensors in safetensors, with a card of JSON that describes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gas.errors import UserError, explained
from gas.io import (
    CHECKSUM,
    check_sizes,
    open_safetensors,
    parse_json,
    read_safetensors,
    read_text,
    sha256,
    write_safetensors,
)

WEIGHTS = Path(__file__).parent / "weights"  # the shipped files

# The zoo's models are below 12 MB.
_MAX_BYTES = 256 << 20
# Checksums of files without a checksum in their metadata, in the format of ``sha256sum``.
_SUMS = "SHA256SUMS"

_Network = TypeVar("_Network", bound=nn.Module)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a zoo file, without reading its tensors."""
    with damaged(path):
        with open_safetensors(path, _MAX_BYTES) as file:
            card = parse_json((file.metadata() or {})["card"])
        return {**card, "name": str(card["name"])}


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a zoo file, as float32, and its card.

    Raises:
        ValueError: when it is truncated or damaged, or a number is not finite.
    """
    card, checksum = read_card(path), _listed_checksum(Path(path))
    with damaged(path):
        if checksum is not None and checksum != sha256(path):
            raise UserError(f"{_SUMS} beside it has another checksum")
        stored, _ = read_safetensors(path, _MAX_BYTES, warn=checksum is None)
        tensors = {name: value.float() for name, value in stored.items()}
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{name} is not finite")
    return tensors, card


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write tensors and card atomically."""
    return write_safetensors(path, tensors, {"card": json.dumps(card)})


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are allocated: to draw them on the meta device, torch imports its compiler, a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **kwargs)


def build(network_class: Callable[..., _Network], config: Any, state: Mapping[str, Tensor]) -> _Network:
    """Build a network of the sizes in a card and load its weights.

    The network is first built on the meta device, without memory, and its shapes are compared with the weights: a card
    cannot make us allocate more than its file holds.
    """
    check_sizes(config)
    with torch.device("meta"), _Undrawn():
        shapes = {name: value.shape for name, value in network_class(**config).state_dict().items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise UserError("its weights are not those of the network that its card describes")
    network = network_class(**config)
    network.load_state_dict(state)
    return network


def damaged(path: str | Path) -> AbstractContextManager[None]:
    """Turn errors of a damaged file, or of a card that its weights do not fit, into one line."""
    return explained(f"model weights {path} are damaged or not a zoo model")


def _listed_checksum(path: Path) -> str | None:
    """Return the checksum in the list beside a file that has none in its metadata."""
    sums = path.parent / _SUMS
    with open_safetensors(path, _MAX_BYTES) as file:
        if CHECKSUM in (file.metadata() or {}) or not sums.is_file():
            return None
    entries = (line.split() for line in read_text(sums, 1 << 16).splitlines())
    return next((entry[0] for entry in entries if len(entry) == 2 and entry[1] == path.name), None)
