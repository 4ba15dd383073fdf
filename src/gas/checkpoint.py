"""Checkpoints of trainings: plain data and tensors in a file of ``torch.save``, behind its SHA-256."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gas.display import error_text
from gas.errors import UserError
from gas.io import open_regular, warn_no_checksum, write_bytes
from gas.unpickle.loading import read_open

# The first line of a file, completed by the SHA-256 of everything after it.
_HEAD = b"gas-solver checkpoint sha256:"
_MAX_BYTES = 4 << 30  # the largest published discriminator with its optimizer has 1.3 GB


def write_checkpoint(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint of tensors, numbers, strings and plain containers, atomically."""
    buffer = io.BytesIO()  # torch.save to a path would report a full disk as a RuntimeError
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    return write_bytes(path, _HEAD + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`write_checkpoint`; nothing in the file is executed.

    Refuses a file that is damaged or holds anything but plain data, and warns of one without checksum.
    """
    try:
        with open_regular(path, _MAX_BYTES) as file:
            head = file.read(len(_HEAD) + 65)
            start = len(head) if head.startswith(_HEAD) else 0
            if not start:
                warn_no_checksum(f"checkpoint {path}")
            elif head[len(_HEAD) : -1] != hashlib.file_digest(file, "sha256").hexdigest().encode():  # type: ignore[arg-type]
                raise UserError("its checksum does not match")
            state = read_open(file, start)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise UserError(
            f"checkpoint {path} cannot be read ({error_text(error)}); delete it to start afresh"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of named values")
    return state
