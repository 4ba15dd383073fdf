"""Published pickles as data: tensors, numbers and containers; nothing in a file is ever executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from gas.display import error_text
from gas.errors import UserError, is_of_machine
from gas.io import open_regular, read_safetensors
from gas.unpickle.allowed import Persistent, Refused
from gas.unpickle.restricted import TORCH_MAGIC, Budget, Reader, bounded, read_torch

_ADVICE = (
    "only tensors, numbers and plain containers are read; have its owner save the weights as safetensors"
)


def read_pickle(path: str | Path, *, lazy: bool = False) -> Any:
    """Read a pickle (protocols 2 to 5), or a file of ``torch.save``, without executing anything in it.

    Networks come back as :class:`Persistent`: those written by EDM's and StyleGAN's ``torch_utils.persistence``,
    whose source text is ignored, and plain modules of torch and of R3GAN. ``EasyDict``, ``OrderedDict`` and
    ``defaultdict`` come back as ``dict``, parameters as tensors, all tensors on the CPU; with ``lazy`` large contiguous
    ones stay on disk, as :class:`gas.unpickle.FileTensor`.

    References:
        Layouts: Karras et al., arXiv 2206.00364; Huang et al., arXiv 2501.05441 (their published weights).
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            return read_open(file, path=path if lazy else None)
    except Refused as error:
        raise UserError(f"{path}: refused {error}; {_ADVICE}") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        if isinstance(error, FileNotFoundError) or is_of_machine(error):
            raise
        reason = f"{type(error).__name__}: {error_text(error)}" if str(error) else type(error).__name__
        raise UserError(f"{path} is cut short, damaged or no pickle ({reason}); download it again") from error


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a file of ``torch.save``, tensors alone."""
    path = Path(path)
    try:
        state = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    except ValueError as error:
        raise UserError(
            f"{path} is not a file of weights alone, or is damaged: {error_text(error)}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds a {type(state).__name__}, not tensors by name")
    return state


def read_open(file: BinaryIO, start: int = 0, path: Path | None = None) -> Any:
    """Read an open file as :func:`read_pickle` does, from byte ``start`` on; lazily with its ``path``."""
    budget = Budget(file.seek(0, os.SEEK_END))
    file.seek(start)
    head = file.read(16)
    file.seek(start)
    if head.startswith(b"PK\x03\x04") or head[2:14] == TORCH_MAGIC:
        return bounded(read_torch(file, budget, path))
    return bounded(Reader(file, budget, path=path).load())


def state_dict_of(persistent: Persistent) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a module read by :func:`read_pickle`, by dotted name."""
    tensors: dict[str, Tensor] = {}
    stack: list[tuple[str, Any]] = [("", persistent)]
    visited: set[int] = set()  # a file can nest a module in itself, or double it at every level
    while stack:
        prefix, module = stack.pop()
        where = f"submodule {prefix[:-1]!r}" if prefix else "the object"
        if not _is_module(module):
            kind = module.class_name if isinstance(module, Persistent) else type(module).__name__
            raise UserError(f"{where} is a {kind!r}, not a torch module")
        if id(module) in visited:
            raise UserError(f"{where} ({module.class_name!r}) occurs twice; shared modules are not read")
        visited.add(id(module))
        hidden = module.state.get("_non_persistent_buffers_set", set())
        values = module.state["_parameters"] | module.state["_buffers"]
        tensors |= {f"{prefix}{n}": v for n, v in values.items() if isinstance(v, Tensor) and n not in hidden}
        children = [(f"{prefix}{name}.", child) for name, child in module.state["_modules"].items()]
        stack += [entry for entry in reversed(children) if entry[1] is not None]
    return tensors


def _is_module(thing: Any) -> bool:
    if not isinstance(thing, Persistent):
        return False
    parts = [thing.state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    hidden = thing.state.get("_non_persistent_buffers_set", set())
    return all(isinstance(part, dict) for part in parts) and isinstance(hidden, set)
