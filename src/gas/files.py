"""Files that are whole or absent: write beside, flush to disk, rename; checksums on read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gas.io import one_line, open_regular, warn_unsealed

__all__ = ["in_order", "load_state", "save_state", "sha256", "write_bytes", "write_text", "write_with"]

# What a checkpoint begins with, before the SHA-256 of the file of torch.save that follows on the next line.
_STATE = b"gas-solver checkpoint sha256:"
_STATE_BYTES = 4 << 30  # of the largest published discriminator with its optimizer: 1.3 GB


def write_with(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then fsync it and rename it over ``path``.

    A reader therefore sees the old file, or none, or the whole new one; a full disk or a killed
    process leaves at most a ``.tmp`` file behind.

    Raises:
        OSError: when the folder cannot be written or the disk is full; ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):  # a full disk names no file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    _sync_folder(path.parent)
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` so that it is whole or absent."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    return write_with(path, write)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 ``text`` to ``path`` so that it is whole or absent."""
    return write_bytes(path, text.encode())


def in_order(data: bytes) -> bytes:
    """Return a safetensors file's bytes with its metadata in the order of their names.

    The library writes several in an order that chance decides, so that the same content would be different bytes.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def save_state(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint of tensors, numbers, strings and plain containers."""
    buffer = io.BytesIO()  # written by ourselves: torch reports a full disk as a RuntimeError
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    return write_bytes(path, _STATE + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_state`; nothing in the file is executed.

    Warns:
        UserWarning: when the file has no checksum.

    Raises:
        ValueError: when the file is damaged or holds anything but plain data.
    """
    from gas.official.unpickle import read_open  # which reads by what is below this module

    try:
        with open_regular(path, _STATE_BYTES) as file:
            head = file.read(len(_STATE) + 65)
            start = len(head) if head.startswith(_STATE) else 0
            if not start:
                warn_unsealed(f"checkpoint {path}")
            elif head[len(_STATE) : -1] != _digest(file).encode():
                raise ValueError("its checksum is of other content")
            state = read_open(file, start)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise ValueError(
            f"checkpoint {path} cannot be read ({one_line(error)}); delete it to start afresh"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of named values")
    return state


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    """The process's file creation mask; mkstemp ignores it and makes private files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the platform can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
