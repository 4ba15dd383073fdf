"""Files: atomic writes, checksums, bounded reads of JSON and safetensors."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import reprlib
import stat
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gas.errors import UserError

__all__ = [
    "CHANGED",
    "CHECKSUM",
    "DIMENSIONS",
    "brief",
    "check_sides",
    "in_order",
    "load_state",
    "one_line",
    "open_regular",
    "open_tensors",
    "parse_json",
    "parts_checksum",
    "read_bytes",
    "read_json",
    "read_tensors",
    "read_text",
    "save_state",
    "sealed",
    "sealed_metadata",
    "sha256",
    "unsealed",
    "warn_unsealed",
    "whole_numbers",
    "write_bytes",
    "write_text",
    "write_with",
]

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
    from gas.unpickle.loading import read_open  # which reads by what is below this module

    try:
        with open_regular(path, _STATE_BYTES) as file:
            head = file.read(len(_STATE) + 65)
            start = len(head) if head.startswith(_STATE) else 0
            if not start:
                warn_unsealed(f"checkpoint {path}")
            elif head[len(_STATE) : -1] != _digest(file).encode():
                raise UserError("its checksum is of other content")
            state = read_open(file, start)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise UserError(
            f"checkpoint {path} cannot be read ({one_line(error)}); delete it to start afresh"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of named values")
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


# A table of NFE 1000, the most that a solver file may hold, is a million numbers in 20 MB.
JSON_BYTES, JSON_VALUES = 24 << 20, 2_000_000
JSON_DEPTH = 32  # our own files have 6 levels
_NUMBER = 1000  # characters: a double has at most 767 significant digits

CHECKSUM = "checksum"


# --- files ----------------------------------------------------------------------------------------------


def open_regular(path: str | Path, most: int | None = None) -> BinaryIO:
    """Open a regular file for reading, never waiting: a pipe, socket, device or folder in its place is refused.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no regular file, or larger.
    """
    _require_regular(path, os.stat(path).st_mode)
    # Whoever swaps the file for a pipe in between does not make us wait either.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        _require_regular(path, found.st_mode)
        if most is not None and found.st_size > most:
            raise UserError(
                f"it has {found.st_size:,} bytes, more than the {most:,} that such a file may have"
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes.

    Raises:
        OSError, ValueError: as :func:`open_regular`.
    """
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:  # it grew, or its system says no size
        raise UserError(f"it has more than the {most:,} bytes that such a file may have")
    return data


def read_text(path: str | Path, most: int = JSON_BYTES) -> str:
    """Return the UTF-8 text of a regular file, without the mark that some editors put before it.

    Raises:
        OSError, ValueError: as :func:`open_regular`, and for other bytes than UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def _require_regular(path: str | Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    kind = next((name for name, test in kinds.items() if test(mode)), "a device")
    raise UserError(f"{path} is {kind}, not a file")


# --- what a message may show of a file ------------------------------------------------------------------


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxarray = 4
        self.maxdict = 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print the longest integers, and takes its time with long ones.
        return repr(x) if abs(x) < 1 << 64 else f"<a whole number of {x.bit_length()} bits>"

    repr_bool = repr_int


_BRIEF = _Brief()


def brief(value: Any, most: int = 80) -> str:
    """Return what a message shows of a value from a file: its beginning, in bounded time however it is nested."""
    text = _BRIEF.repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


# --- JSON -----------------------------------------------------------------------------------------------


def read_json(path: str | Path, most: int = JSON_BYTES, *, finite: bool = True) -> Any:
    """Read a JSON file of bounded size, number of values and depth.

    Args:
        path: the file.
        most: bytes that it may have.
        finite: refuse NaN and Infinity, which are no JSON; diffusers writes them into configs.

    Raises:
        OSError: when it cannot be read.
        ValueError: why it is refused: damaged, too large, too deep, a name that occurs twice in one object, a number
            that is not finite. The caller says which file.
    """
    return parse_json(read_bytes(path, most), finite=finite)


def parse_json(data: bytes | str, *, finite: bool = True) -> Any:
    """Parse JSON as :func:`read_json` does; whole numbers of more than 20 digits become floats.

    Raises:
        ValueError: why it is refused.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > JSON_BYTES:
        raise UserError(f"it has {len(raw):,} bytes, more than {JSON_BYTES:,}")
    _bound(raw)
    try:
        return json.loads(
            raw.decode("utf-8-sig"),  # some editors put a mark before the text
            parse_constant=_refuse_constant if finite else float,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None


# A string, or what a damaged file begins as one; consumed at once, so that the scan is linear whatever comes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},:"))


def _bound(data: bytes) -> None:
    """Refuse too many values and too many levels before they are built."""
    marks = np.frombuffer(_STRING.sub(b"", data).translate(None, _NOT_STRUCTURE), np.uint8)
    if len(marks) > JSON_VALUES:
        raise UserError(f"it has more than {JSON_VALUES:,} values")
    opened, closed = (np.isin(marks, np.frombuffer(part, np.uint8)) for part in (b"[{", b"]}"))
    depth = np.cumsum(opened.astype(np.int32) - closed).max(initial=0)
    if depth > JSON_DEPTH:
        raise UserError(f"it is nested {depth:,} levels deep, more than {JSON_DEPTH}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise UserError(f"the name {brief(twice)} occurs twice in one object")
    return content


def _int(text: str) -> int | float:
    return int(text) if len(text) <= 20 else _float(text)


def _float(text: str) -> float:
    if len(text) > _NUMBER or not math.isfinite(value := float(text)):
        raise UserError(f"{text[:24]}{'...' * (len(text) > 24)} is not a finite number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise UserError(f"{name} is not a number")


# --- checksums ------------------------------------------------------------------------------------------


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file with its checksum as the last entry.

    The checksum is over what the file says, not how it is written: names in order, no spaces, whole numbers without a
    decimal point. So it outlives a formatter, also one that writes ``1.0`` as ``1``.

    Raises:
        TypeError, ValueError: for content that is not plain JSON, or that :func:`read_json` would refuse.
    """
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    # Of the values that a reader gets: long whole numbers are floats there.
    return {**rest, CHECKSUM: _checksum(parse_json(json.dumps(rest, allow_nan=False)))}


def unsealed(content: Any, name: str) -> dict[str, Any]:
    """Return the content of a JSON file without its checksum, once that holds; warn where there is none.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ValueError: when the file is no object, or was changed since it was written.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{name} holds a {type(content).__name__}, not an object of named values")
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUM not in content:
        warn_unsealed(name)
    elif content[CHECKSUM] != _checksum(rest):
        raise UserError(f"{name} {CHANGED}")
    return rest


CHANGED = (
    "is damaged or was edited: its checksum is of other content; make it again, or take the checksum out if the "
    "change is meant"
)


def warn_unsealed(name: str) -> None:
    """Say that damage in a file would not be noticed."""
    warnings.warn(f"{name} has no checksum, so damage in it can go unnoticed: write it again", stacklevel=4)


def _checksum(content: Any) -> str:
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _canonical(value: Any) -> Any:
    """The same value however its numbers are written: ``1.0`` and ``-0.0`` as ``1`` and ``0``."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: _canonical(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_canonical(part) for part in value]
    return value


# --- safetensors ----------------------------------------------------------------------------------------

# Stable Diffusion XL's U-Net has 1,680 tensors and a header of 240 kB.
_HEADER_BYTES, _TENSORS = 2 << 20, 10_000
# An empty tensor costs a file nothing, whatever its other sides are; loops over them cost time.
_SIDE_OF_EMPTY = 1 << 16
DIMENSIONS = 16
_WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@contextmanager
def open_tensors(path: str | Path, most: int | None = None) -> Iterator[Any]:
    """Open a safetensors file whose header holds: ``metadata()``, ``keys()``, ``get_tensor()`` and ``get_slice()``.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: when it cannot be read.
        ValueError: why it is refused: damaged, cut short, shapes that are not those of its bytes. The caller says
            which file.
    """
    with open_regular(path, most) as file:
        _check_header(file, os.fstat(file.fileno()).st_size)
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UserError(one_line(error)) from error


def read_tensors(
    path: str | Path, most: int | None = None, *, ours: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, whose checksum holds if it has one.

    Args:
        path: the file.
        most: bytes that it may have.
        ours: it was written by this library, so warn where it has no checksum.

    Raises:
        OSError, ValueError: as :func:`open_tensors`, and when the file was changed since it was written.
    """
    with open_tensors(path, most) as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    known = metadata.pop(CHECKSUM, None)
    if known is None and any(_misspelled(name, text) for name, text in metadata.items()):
        raise UserError(f"it {CHANGED}")
    if known is None and ours:
        warn_unsealed(str(path))
    if known is not None and known != _tensors_checksum(tensors, metadata):
        raise UserError(f"it {CHANGED}")
    return tensors, metadata


def _misspelled(name: str, text: str) -> bool:
    """Whether an entry is a checksum whose very name was damaged; foreign files have others of their own."""
    differing = sum(a != b for a, b in zip(name, CHECKSUM, strict=False))
    return text.startswith("sha256:") and len(name) == len(CHECKSUM) and differing <= 2


def sealed_metadata(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a safetensors file with the checksum of both, names in order."""
    rest = {name: text for name, text in sorted(metadata.items()) if name != CHECKSUM}
    return {**rest, CHECKSUM: _tensors_checksum(tensors, rest)}


def _tensors_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    parts = {name: (str(x.dtype), list(x.shape), _bytes_of(x)) for name, x in tensors.items()}
    return parts_checksum(parts, metadata)


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def parts_checksum(parts: Mapping[str, tuple[str, list[int], Any]], metadata: Mapping[str, str]) -> str:
    """Return the checksum of arrays, each by its type, shape and bytes, and of texts."""
    digest = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for name, (kind, shape, data) in sorted(parts.items()):
        digest.update(json.dumps([name, kind, shape]).encode())
        digest.update(data)
    return f"sha256:{digest.hexdigest()}"


def _check_header(file: BinaryIO, size: int) -> None:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise UserError("it is cut short, or no safetensors file")
    if length > _HEADER_BYTES:
        raise UserError(f"its header has {length:,} bytes, more than {_HEADER_BYTES:,}")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise UserError("its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError("its metadata is not text by name")
    if len(header) > _TENSORS:
        raise UserError(f"it has {len(header):,} tensors, more than {_TENSORS:,}")
    for name, entry in header.items():
        _check_entry(name, entry, size - 8 - length)


def _check_entry(name: str, entry: Any, size: int) -> None:
    """Refuse a tensor whose shape is not that of its bytes."""
    width = _WIDTHS.get(str(entry.get("dtype"))[:16]) if isinstance(entry, dict) else None
    if width is None:
        raise UserError(f"tensor {brief(name)} is {brief(entry)}, which is no tensor of a known type")
    shape, ends = entry.get("shape"), entry.get("data_offsets")
    if not whole_numbers(shape, DIMENSIONS) or not whole_numbers(ends, 2) or len(ends) != 2:
        raise UserError(f"tensor {brief(name)} has no plain shape and place: {brief(shape)} at {brief(ends)}")
    if not ends[0] <= ends[1] <= size or math.prod(shape) * width != ends[1] - ends[0]:
        raise UserError(
            f"tensor {brief(name)} of shape {brief(shape)} is not in the file: it is cut short or damaged"
        )
    check_sides(shape)


def whole_numbers(value: Any, most: int) -> TypeGuard[Sequence[int]]:
    """Whether a value from a file is a list of at most ``most`` whole numbers from 0 up."""
    plain = isinstance(value, (list, tuple)) and len(value) <= most
    return plain and all(type(x) is int and x >= 0 for x in value)


def check_sides(shape: Sequence[int]) -> None:
    """Refuse an empty tensor of very many rows: nothing in the file bounds them.

    Raises:
        ValueError: names the shape.
    """
    if 0 in shape and max(shape) > _SIDE_OF_EMPTY:
        raise UserError(
            f"a tensor of shape {brief(list(shape))} is empty and has more than {_SIDE_OF_EMPTY:,} rows"
        )


def one_line(error: BaseException, most: int = 160) -> str:
    """Return the text of an error in one line of at most ``most`` characters."""
    return " ".join(str(error)[: 4 * most].split())[:most] or type(error).__name__
