"""Weights of a published EDM network with what its file says of it, from a pickle or from safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gas.display import brief, one_line
from gas.errors import UserError
from gas.io import metadata_with_checksum, parse_json, read_safetensors, sha256, write_atomically
from gas.unpickle.loading import read_pickle, state_dict_of
from gas.unpickle.plain import Persistent

__all__ = ["Weights", "of_pickle", "read_weights", "write_weights"]


@dataclass(frozen=True, eq=False)
class Weights:
    """A network as data.

    Args:
        kind: name of the published class.
        init: keyword arguments it was built with, plain JSON.
        tensors: by the published names.
        source: the file, for messages.
        card: where the weights came from, plain text.
    """

    kind: str
    init: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source: str
    card: Mapping[str, str]


def read_weights(path: str | Path) -> Weights:
    """Read a network from safetensors, or from a published pickle, which is not executed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, unsafe, or does not say what network it holds.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return of_pickle(path, read_pickle(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        tensors, card = read_safetensors(path)
        kind, init = card.pop("class_name", "EDMPrecond"), parse_json(card.pop("init_kwargs"), finite=False)
        if not isinstance(init, dict):
            raise UserError("init_kwargs is not an object")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no whole safetensors file of an EDM network ({one_line(error)}); "
            "make one with `gas convert edm.pkl OUT.safetensors`"
        ) from error
    own = {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
    return Weights(kind, init, own or tensors, str(path), card)


def of_pickle(path: Path, data: Any) -> Weights:
    """Take the network ``ema`` out of what :func:`gas.unpickle.read_pickle` read of a published file.

    Raises:
        ValueError: when there is none.
    """
    network = data.get("ema") if isinstance(data, Mapping) else None
    if not isinstance(network, Persistent):
        contents = brief(list(data)) if isinstance(data, Mapping) else type(data).__name__
        raise UserError(f"{path} has no network 'ema', EDM's averaged weights; it holds {contents}")
    if network.init_args:
        raise UserError(f"{path}: its network was built with positional arguments, which no known file does")
    try:
        init = json.loads(json.dumps(network.init_kwargs))
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the arguments of its network are not plain ({one_line(error)})") from error
    return Weights(network.class_name, init, state_dict_of(network), str(path), {})


def write_weights(weights: Weights, path: str | Path) -> Path:
    """Write a network to safetensors with its card in the metadata, whole or not at all.

    Raises:
        OSError: when the file cannot be written.
    """
    card = {**weights.card, "class_name": weights.kind, "init_kwargs": json.dumps(dict(weights.init))}
    if Path(weights.source).is_file() and "source_sha256" not in card:
        card |= {"source": Path(weights.source).name, "source_sha256": sha256(weights.source)}
    tensors = {name: value.contiguous() for name, value in weights.tensors.items()}
    card = metadata_with_checksum(tensors, card)
    return write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=card))
