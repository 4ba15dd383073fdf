"""Files: atomic writes, checksums, bounded readers of JSON and safetensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import signal
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gas.display import brief, error_text
from gas.errors import UserError

# A table of NFE 1000, the largest that a solver file may hold, is a million numbers in 20 MB.
JSON_BYTES, JSON_VALUES = 24 << 20, 2_000_000
JSON_DEPTH = 32  # files of this library have 6 levels
_NUMBER_LENGTH = 1000  # characters: a double has at most 767 significant digits

CHECKSUM = "checksum"
MISMATCH = (
    "is damaged or was edited: its checksum does not match; create it again, or remove the checksum if the edit is "
    "intended"
)

# Real numbers: no network or statistics of ours are complex, which float arithmetic would silently cut.
_DTYPES = {"BOOL", "F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"}
_DTYPES |= {f"{kind}{bits}" for kind in "UI" for bits in (8, 16, 32, 64)}

# Stable Diffusion XL's U-Net has 1,680 tensors and a header of 240 kB.
_HEADER_BYTES, _TENSORS = 2 << 20, 10_000
MAX_DIMENSIONS = 16
# An empty tensor takes no bytes of a file, so nothing else bounds its other sides, over which callers loop.
_SIDE_OF_EMPTY = 1 << 16
# Far above every published network's sizes, layers, levels and settings.
_SIDE, _LAYERS, _LEVELS, _SETTINGS = 4096, 32, 8, 32


def write_atomically(path: str | Path, write: Callable[[Path], object], *, new: bool = False) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then fsync it and rename it over ``path``.

    A reader sees the old file, or none, or the whole new one; a killed process leaves at most a ``.tmp`` file behind.
    With ``new``, no file is replaced, and one of several processes succeeds; the others get FileExistsError.
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
        mask = os.umask(0)  # mkstemp ignores the umask and makes private files
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        _rename_new(temporary, path) if new else temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):  # a full disk names no file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    # The rename survives a power cut, where the platform can open a folder.
    with contextlib.suppress(OSError):
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return path


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file to a name that no file has, and let one of several processes succeed."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, where two processes at the same moment both succeed
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)
    else:
        temporary.unlink()


def write_bytes(path: str | Path, data: bytes, *, new: bool = False) -> Path:
    """Write ``data`` to ``path`` as :func:`write_atomically` does."""
    return write_atomically(path, lambda temporary: temporary.write_bytes(data), new=new)


def write_text(path: str | Path, text: str, *, new: bool = False) -> Path:
    """Write UTF-8 ``text`` to ``path`` as :func:`write_atomically` does."""
    return write_bytes(path, text.encode(), new=new)


def open_regular(path: str | Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file of at most ``max_bytes``, never blocking; a pipe, socket, device or folder is refused."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"no such file: {path}")
    _require_regular(path, os.stat(path).st_mode)
    # Non-blocking, in case the file is replaced by a pipe in between.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        _require_regular(path, status.st_mode)
        size = status.st_size
        if max_bytes is not None and size > max_bytes:
            raise UserError(f"it has {size:,} bytes, more than the {max_bytes:,} that such a file may have")
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _require_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
        kind = next((name for name, test in kinds.items() if test(mode)), "a device")
        raise UserError(f"{path} is {kind}, not a file")


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Read a regular file of at most ``max_bytes``."""
    with open_regular(path, max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it grew, or its file system reports no size
        raise UserError(f"it has more than the {max_bytes:,} bytes that such a file may have")
    return data


def read_text(path: str | Path, max_bytes: int = JSON_BYTES) -> str:
    """Read UTF-8 text, without a byte order mark."""
    return _decode(read_bytes(path, max_bytes))


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_json(path: str | Path, max_bytes: int = JSON_BYTES, *, finite: bool = True) -> Any:
    """Read a JSON file of bounded size, number of values and depth, in which no name occurs twice in one object.

    With ``finite``, refuse NaN and Infinity, which JSON does not have; diffusers writes them into configs. A message
    names the problem; the caller adds the file.
    """
    return parse_json(read_bytes(path, max_bytes), finite=finite)


def parse_json(data: bytes | str, *, finite: bool = True) -> Any:
    """Parse JSON as :func:`read_json` does; integers of more than 20 digits become floats."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > JSON_BYTES:
        raise UserError(f"it has {len(raw):,} bytes, more than {JSON_BYTES:,}")
    _check_json_bounds(raw)
    try:
        return json.loads(
            _decode(raw),
            parse_constant=_refuse_constant if finite else float,
            parse_float=_parse_float,
            parse_int=lambda text: int(text) if len(text) <= 20 else _parse_float(text),
            object_pairs_hook=_parse_object,
        )
    except json.JSONDecodeError as error:
        raise UserError(str(error)) from None


# A string, or an unterminated one; possessive, so that the scan is linear on any input.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},:"))


def _check_json_bounds(data: bytes) -> None:
    """Refuse too many values or levels before any is built."""
    marks = np.frombuffer(_STRING.sub(b"", data).translate(None, _NOT_STRUCTURE), np.uint8)
    if len(marks) > JSON_VALUES:
        raise UserError(f"it has more than {JSON_VALUES:,} values")
    opening, closing = (np.isin(marks, np.frombuffer(part, np.uint8)) for part in (b"[{", b"]}"))
    depth = np.cumsum(opening.astype(np.int32) - closing).max(initial=0)
    if depth > JSON_DEPTH:
        raise UserError(f"it is nested {depth:,} levels deep, more than {JSON_DEPTH}")


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise UserError(f"the name {brief(name)} occurs twice in one object")
        content[name] = value
    return content


def _parse_float(text: str) -> float:
    if len(text) > _NUMBER_LENGTH or not math.isfinite(value := float(text)):
        raise UserError(f"{text[:24]}{'...' * (len(text) > 24)} is not a finite number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise UserError(f"{name} is not a number")


def plain_json(value: Any, *, finite: bool = True) -> Any:
    """Return a value as a JSON file gives it back: tuples as lists, numbers that are keys as text.

    Raises:
        TypeError: for what JSON does not hold.
        ValueError: for infinity and NaN, if ``finite``.
    """
    return json.loads(json.dumps(value, allow_nan=not finite))


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file with its checksum as the last entry.

    The checksum covers the values, not their spelling: names in order, no spaces, whole numbers without a decimal
    point. It survives a formatter, also one that writes ``1.0`` as ``1``. What :func:`read_json` refuses is refused.
    """
    values = {name: value for name, value in content.items() if name != CHECKSUM}
    # Of the values that a reader gets: long integers are floats there.
    return {**values, CHECKSUM: _json_checksum(parse_json(json.dumps(values, allow_nan=False)))}


def verify_checksum(content: Any, name: str) -> dict[str, Any]:
    """Return the content of a JSON file without its checksum, after verifying it; warn when it has none.

    Messages have the ``name`` of the file.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{name} holds a {type(content).__name__}, not an object of named values")
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUM not in content:
        warn_no_checksum(name)
    elif content[CHECKSUM] != _json_checksum(values):
        raise UserError(f"{name} {MISMATCH}")
    return values


def warn_no_checksum(name: str) -> None:
    """Warn that damage in a file would go unnoticed."""
    warnings.warn(f"{name} has no checksum, so damage in it can go unnoticed: write it again", stacklevel=4)


def _json_checksum(content: Any) -> str:
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _canonical(value: Any) -> Any:
    """Return the same value for every spelling of a number: ``1.0`` and ``-0.0`` as ``1`` and ``0``."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: _canonical(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_canonical(part) for part in value]
    return value


def array_checksum(arrays: Mapping[str, tuple[str, list[int], Any]], metadata: Mapping[str, str]) -> str:
    """Return the checksum of arrays, each given as ``(dtype, shape, bytes)``, and of text metadata."""
    hashed = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for name, (kind, shape, data) in sorted(arrays.items()):
        hashed.update(json.dumps([name, kind, shape]).encode())
        hashed.update(data)
    return f"sha256:{hashed.hexdigest()}"


# What ends a command: Ctrl-C, a scheduler's stop, a time limit. Windows has no alarm.
_INTERRUPTS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)
)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let interrupts of the main thread wait until the end: within its reader, torch makes one an error of the file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    # Handlers that Python did not install are None, and cannot be put back.
    before = {number: handler for number in _INTERRUPTS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: received.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


@contextmanager
def open_safetensors(path: str | Path, max_bytes: int | None = None) -> Iterator[Any]:
    """Open a safetensors file after checking its header: ``metadata()``, ``keys()``, ``get_tensor()``, ``get_slice()``.

    A message names the problem; the caller adds the file.
    """
    with open_regular(path, max_bytes) as file:
        header, _ = read_header(file)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError("its metadata is not text by name")
    for name, entry in header.items():
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise UserError(f"tensor {brief(name)} is {brief(entry)}, not a tensor of a known type")
        if not is_integer_list(shape, MAX_DIMENSIONS):
            raise UserError(f"tensor {brief(name)} has no valid shape: {brief(shape)}")
        check_empty_shape(shape)
    try:
        with deferred_interrupts(), safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UserError(error_text(error)) from error


def read_safetensors(
    path: str | Path, max_bytes: int | None = None, *, warn: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file, and verify its checksum if it has one.

    With ``warn``, for files that only this library writes, warn when it has none.
    """
    with open_safetensors(path, max_bytes) as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    expected = metadata.pop(CHECKSUM, None)
    if expected is None:
        damaged = any(_is_damaged_checksum(name, text) for name, text in metadata.items())
    else:
        damaged = expected != _tensor_checksum(tensors, metadata)
    if damaged:
        raise UserError(f"it {MISMATCH}")
    if expected is None and warn:
        warn_no_checksum(str(path))
    return tensors, metadata


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _is_damaged_checksum(name: str, text: str) -> bool:
    """Whether an entry is a checksum whose very name was damaged; foreign files have others under names of theirs."""
    differing = sum(a != b for a, b in zip(name, CHECKSUM, strict=False))
    return text.startswith("sha256:") and len(name) == len(CHECKSUM) and differing <= 2


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors and text metadata with the checksum of both, atomically; equal content gives equal bytes."""
    return write_bytes(path, safetensors_bytes(tensors, metadata))


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the file that :func:`write_safetensors` writes."""
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    values = {name: text for name, text in sorted(metadata.items()) if name != CHECKSUM}
    values[CHECKSUM] = _tensor_checksum(tensors, values)
    data = save(tensors, values)
    # The library writes metadata in random order.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": values}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _tensor_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    arrays = {
        name: (str(x.dtype), list(x.shape), x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        for name, x in tensors.items()
    }
    return array_checksum(arrays, metadata)


def read_header(
    file: BinaryIO, max_bytes: int = _HEADER_BYTES, max_tensors: int = _TENSORS
) -> tuple[dict[str, Any], int]:
    """Read the header of an open safetensors file; return it with its length in bytes."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise UserError("it is cut short, or no safetensors file")
    if length > max_bytes:
        raise UserError(f"its header has {length:,} bytes, more than {max_bytes:,}")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise UserError("its header is no object")
    if (count := len(header.keys() - {"__metadata__"})) > max_tensors:
        raise UserError(f"it has {count:,} tensors, more than {max_tensors:,}")
    return header, length


def check_sizes(config: Any) -> None:
    """Refuse sizes that no network has, before one is laid out by the config of a file."""
    pending = [("network", config)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict) and len(value) <= _SETTINGS:
            pending += value.items()
        elif isinstance(value, (list, tuple)) and len(value) <= _LEVELS:
            pending += [(name, item) for item in value]
        elif not isinstance(value, (str, type(None))):
            limit = _LAYERS if name.endswith(("layers", "blocks", "per_block")) else _SIDE
            if not isinstance(value, (int, float)) or not abs(value) <= limit:
                raise UserError(f"{name[:40]} = {brief(value)} is not a size of a network")


def is_integer_list(value: Any, max_length: int) -> TypeGuard[Sequence[int]]:
    """Whether a value from a file is a list of at most ``max_length`` non-negative integers."""
    bounded = isinstance(value, (list, tuple)) and len(value) <= max_length
    return bounded and all(type(x) is int and x >= 0 for x in value)


def check_empty_shape(shape: Sequence[int]) -> None:
    """Refuse an empty tensor with a very long side: nothing in the file bounds it."""
    if 0 in shape and max(shape) > _SIDE_OF_EMPTY:
        raise UserError(
            f"a tensor of shape {brief(list(shape))} is empty and has more than {_SIDE_OF_EMPTY:,} rows"
        )
