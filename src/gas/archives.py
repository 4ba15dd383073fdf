"""Bounded readers of zip archives and numpy's ``.npz``, which can unpack to far more than their own size."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gas.display import brief, error_text
from gas.errors import UserError
from gas.io import (
    CHECKSUM,
    MAX_DIMENSIONS,
    MISMATCH,
    array_checksum,
    check_empty_shape,
    is_integer_list,
    write_bytes,
)

_DIRECTORY_BYTES = 4 << 20  # of the central directory: 40,000 tensors of torch.save
# A member may unpack to 100 times its bytes (deflate reaches 1,000 on zeros), or to 32 MiB in any case.
_RATIO, _ALWAYS_ALLOWED = 100, 32 << 20
# What zipfile raises for a damaged archive, encrypted or unusually packed members among them (the last two).
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError)


class _Capped:
    """A file for :mod:`zipfile` that refuses to read a huge directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.max_bytes = file, _DIRECTORY_BYTES
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(self.max_bytes + 1 if count < 0 else min(count, self.max_bytes + 1))
        if len(data) > self.max_bytes:
            raise UserError("the list of its members is too long")
        return data


@contextmanager
def open_zip(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open the zip archive in an open file; nothing is unpacked yet.

    Refuses members that occur twice or unpack to far more than their size. A message names the problem; the caller adds
    the file.
    """
    capped, size = _Capped(file), file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(capped) as archive:
            file.seek(-22 - len(archive.comment), os.SEEK_END)
            count = struct.unpack("<4H", file.read(12)[4:])[3]
            if count not in (len(archive.infolist()), 0xFFFF):  # the last stands for a longer field elsewhere
                raise UserError(f"it should have {count} members and lists {len(archive.infolist())}")
            capped.max_bytes = size
            _check_members(archive.infolist(), size)
            yield archive
    except _DAMAGE as error:
        raise UserError(error_text(error)) from error


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    if len({member.filename for member in members}) < len(members):
        raise UserError("a member occurs twice")
    if sum(member.compress_size for member in members) > size:
        raise UserError("its members overlap, or go beyond its end")
    if sum(member.file_size for member in members) > max(_ALWAYS_ALLOWED, _RATIO * size):
        raise UserError(f"its {size:,} bytes unpack to more than {_RATIO} times as many")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise UserError(f"member {brief(member.filename)} is encrypted, or packed in an unusual way")
        if member.file_size > max(_ALWAYS_ALLOWED, _RATIO * member.compress_size):
            raise UserError(
                f"member {brief(member.filename)} of {member.compress_size:,} bytes unpacks to {member.file_size:,}"
            )


def read_array(archive: zipfile.ZipFile, name: str, max_bytes: int | None = None) -> np.ndarray | None:
    """Read one array of numbers or text of an ``.npz``; ``None`` when it has no array of that name."""
    if f"{name}.npy" not in archive.namelist():
        return None
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise UserError(f"array {name!r} is of version {version} of numpy's format")
        try:
            shape, fortran, dtype = headers[version](file)
        except Exception as error:  # the tokenizer fails in many ways on text that is no literal
            raise UserError(f"array {name!r} has no readable header: {error_text(error)}") from error
        if dtype.kind not in "biufUS" or dtype.itemsize > 4096 or not is_integer_list(shape, MAX_DIMENSIONS):
            raise UserError(f"array {name!r} is no array of numbers: {brief(str(dtype))} of {brief(shape)}")
        check_empty_shape(shape)
        count = math.prod(shape) * dtype.itemsize
        if count != member.file_size - file.tell() or (max_bytes is not None and count > max_bytes):
            raise UserError(
                f"array {name!r} of shape {brief(shape)} has {member.file_size:,} bytes: damaged or too large"
            )
        data = np.empty(count, np.uint8)
        rest = memoryview(data)  # type: ignore[arg-type]
        while rest and (read := file.readinto(rest)):  # type: ignore[attr-defined]
            rest = rest[read:]
        if rest or file.read(1):  # reading to the end verifies the member's checksum
            raise UserError(f"array {name!r} is cut short")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays and their checksum to an ``.npz``, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, CHECKSUM: np.array(_checksum(arrays))})  # type: ignore[arg-type]
    return write_bytes(path, buffer.getvalue())


def verify_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Verify the checksum among the arrays of an ``.npz``."""
    if str(arrays[CHECKSUM]) != _checksum({k: array for k, array in arrays.items() if k != CHECKSUM}):
        raise UserError(f"it {MISMATCH}")


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    parts = {
        name: (x.dtype.str, list(x.shape), np.ascontiguousarray(x).tobytes()) for name, x in arrays.items()
    }
    return array_checksum(parts, {})
