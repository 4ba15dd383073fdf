"""Zip archives and numpy's ``.npz``, which may unpack to very much more than they are."""

from __future__ import annotations

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

from gas.errors import UserError
from gas.io import (
    CHANGED,
    CHECKSUM,
    DIMENSIONS,
    brief,
    check_sides,
    one_line,
    open_regular,
    parts_checksum,
    whole_numbers,
)

__all__ = ["check_arrays", "open_zip", "read_array", "sealed_arrays", "unpacked"]

_DIRECTORY_BYTES = 4 << 20  # of the list of an archive's members: 40,000 tensors of torch.save
_RATIO, _SMALL = 100, 32 << 20  # what a member may become: so many times its bytes, or so many in any case


class _Capped:
    """A file for :mod:`zipfile` that refuses to read a huge directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.most = file, _DIRECTORY_BYTES
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(self.most + 1 if count < 0 else min(count, self.most + 1))
        if len(data) > self.most:
            raise UserError("the list of its members is too long")
        return data


@contextmanager
def open_zip(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; nothing is unpacked.

    Raises:
        OSError: when it cannot be read.
        ValueError: why it is refused: damaged, members that occur twice or that unpack to very much more than they
            are. The caller says which file.
    """
    with open_regular(path) as file, unpacked(file) as archive:
        yield archive


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive in an open file, as :func:`open_zip` does.

    Raises:
        ValueError: why it is refused.
    """
    capped, size = _Capped(file), file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(capped) as archive:
            file.seek(-22 - len(archive.comment), os.SEEK_END)
            listed = struct.unpack("<4H", file.read(12)[4:])[3]
            if listed not in (len(archive.infolist()), 0xFFFF):  # the last stands for a number of more bytes
                raise UserError(f"it should have {listed} members and lists {len(archive.infolist())}")
            capped.most = size
            _check_members(archive.infolist(), size)
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        struct.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise UserError(one_line(error)) from error


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    if len({member.filename for member in members}) < len(members):
        raise UserError("a member occurs twice")
    if sum(member.compress_size for member in members) > size:
        raise UserError("its members overlap, or go beyond its end")
    if sum(member.file_size for member in members) > max(_SMALL, _RATIO * size):
        raise UserError(f"its {size:,} bytes unpack to more than {_RATIO} times as many")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise UserError(f"member {brief(member.filename)} is encrypted, or packed in an unusual way")
        if member.file_size > max(_SMALL, _RATIO * member.compress_size):
            raise UserError(
                f"member {brief(member.filename)} of {member.compress_size:,} bytes unpacks to {member.file_size:,}"
            )


def read_array(archive: zipfile.ZipFile, name: str, most: int | None = None) -> np.ndarray | None:
    """Read one array of numbers or text of an ``.npz``; ``None`` where it has none of the name.

    Args:
        archive: of :func:`open_zip`.
        name: of the array.
        most: bytes that it may have.

    Raises:
        ValueError: when it holds objects, which would have to be unpickled, or another number of bytes than its shape.
    """
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
        except Exception as error:  # whatever a tokenizer says of what is no literal
            raise UserError(f"array {name!r} has no readable header: {one_line(error)}") from error
        if dtype.kind not in "biufUS" or dtype.itemsize > 4096 or not whole_numbers(shape, DIMENSIONS):
            raise UserError(f"array {name!r} is no array of numbers: {brief(str(dtype))} of {brief(shape)}")
        check_sides(shape)
        count = math.prod(shape) * dtype.itemsize
        if count != member.file_size - file.tell() or (most is not None and count > most):
            raise UserError(
                f"array {name!r} of shape {brief(shape)} has {member.file_size:,} bytes: damaged or too large"
            )
        data = np.empty(count, np.uint8)
        place = memoryview(data)  # type: ignore[arg-type]
        while place and (read := file.readinto(place)):  # type: ignore[attr-defined]
            place = place[read:]
        if place or file.read(1):  # at the end, the checksum of the member is looked at
            raise UserError(f"array {name!r} is cut short")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def sealed_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` with their checksum as one more."""
    rest = {name: array for name, array in arrays.items() if name != CHECKSUM}
    return {**rest, CHECKSUM: np.array(_arrays_checksum(rest))}


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that are not those of their checksum.

    Raises:
        ValueError: when they were changed since they were written.
    """
    rest = {name: array for name, array in arrays.items() if name != CHECKSUM}
    if str(arrays[CHECKSUM]) != _arrays_checksum(rest):
        raise UserError(f"it {CHANGED}")


def _arrays_checksum(arrays: Mapping[str, np.ndarray]) -> str:
    parts = {
        name: (x.dtype.str, list(x.shape), np.ascontiguousarray(x).tobytes()) for name, x in arrays.items()
    }
    return parts_checksum(parts, {})
