"""Stand-ins for the importable names in a published file: data in place of code, or a refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from gas.display import brief
from gas.errors import UserError
from gas.io import MAX_DIMENSIONS, check_empty_shape, is_integer_list, open_regular


@dataclass(eq=False, repr=False)
class Persistent:
    """An object of a published file as data, without its code: class, arguments of its constructor, ``__dict__``.

    The class name has its module where the file gives it.
    """

    class_name: str
    init_args: tuple[Any, ...] = ()
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class FileTensor:
    """A large tensor that stays in its file, read by rows; its first number is at byte ``start``."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Read rows ``[a:b]`` into memory."""
        first, stop, _ = rows.indices(len(self))
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with open_regular(self.path) as file:
            file.seek(self.start + first * row)
            data = bytearray(file.read((stop - first) * row))
        if len(data) < (stop - first) * row:
            raise UserError(f"{self.path} is cut short: it ends within a tensor; download it again")
        return flat_tensor(data, self.dtype).reshape(stop - first, *self.shape[1:])


def flat_tensor(data: bytes | bytearray, dtype: torch.dtype) -> Tensor:
    """Return the numbers in some bytes, which torch does not take when there are none."""
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=dtype)


class Refused(ValueError):
    """A request of a file that is denied; the text becomes part of the caller's message."""


@dataclass(frozen=True, eq=False)
class Allowed:
    """Stand-in for an importable name, the only object that a file can call; ``make`` is code of this library."""

    name: str
    make: Callable[..., Any]


# Classes of these modules become Persistent objects; the modules are never imported.
MODULES = re.compile(r"(torch\.nn\.modules|BaselineGAN|R3GAN|training)(\.[A-Za-z_]\w*)+")


# Dtypes of storages by their class names in the module torch.
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}

# The function by which plain pickles hold storages; the reader takes its bytes.
LOAD = "torch.storage._load_from_bytes"


def _uncalled(*_: Any) -> NoReturn:
    """A class of PyTorch Lightning, which older checkpoints use as a key; a call is refused."""
    raise Refused("a call of a class of PyTorch Lightning")


def check_key(key: Any) -> None:
    """Refuse keys that take long to hash: tuples in tuples, doubled at every level, and long numbers."""
    for part in key if isinstance(key, tuple) and len(key) <= MAX_DIMENSIONS else (key,):
        number = isinstance(part, int) and abs(part) < 1 << 60  # above, numbers of one hash are easily found
        if not number and not isinstance(part, (str, bytes, float, Allowed, torch.dtype, type(None))):
            raise Refused(f"a key that is a {type(part).__name__}")


def _object(meta: dict[str, Any]) -> Persistent:
    """Object of ``torch_utils.persistence``; its entry ``module_src``, source text, is ignored."""
    state = meta["state"]
    if not isinstance(state, dict) or not isinstance(meta["class_name"], str):
        raise Refused("a persistent object without class_name and state")
    return Persistent(meta["class_name"], state.get("_init_args", ()), state.get("_init_kwargs", {}), state)


def _tensor(flat: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor | FileTensor:
    """View of a storage; unlike ``set_``, ``as_strided`` never grows a storage that is too short."""
    if not isinstance(flat, (Tensor, FileTensor)) or not is_integer_list((offset,), 1):
        raise Refused("a tensor of no storage")
    sizes_are_valid = all(is_integer_list(part, MAX_DIMENSIONS) for part in (size, stride))
    if not sizes_are_valid or len(size) != len(stride):
        raise Refused(f"a tensor of size {brief(size)} and strides {brief(stride)}")
    if math.prod(size) > len(flat):
        raise Refused(f"a tensor of size {brief(size)} in a storage of {len(flat):,} numbers")
    check_empty_shape(size)
    if isinstance(flat, FileTensor):
        contiguous = all(step == math.prod(size[i + 1 :]) for i, step in enumerate(stride))
        if size and contiguous and offset + math.prod(size) <= len(flat):
            return FileTensor(flat.path, flat.start + offset * flat.dtype.itemsize, tuple(size), flat.dtype)
        flat = flat[:]
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _device(*args: Any) -> torch.device:
    if not all(isinstance(part, (str, int)) for part in args):
        raise Refused("a device of something else than its name")
    return torch.device(*args)


def _list(items: Any = ()) -> list[Any]:
    """List of a container's items; of a tensor's numbers each would be an object."""
    if not isinstance(items, (list, tuple, set, dict)):
        raise Refused(f"the items of a {type(items).__name__}")
    return list(items.items() if isinstance(items, dict) else items)


def _set(keys: Any = ()) -> set[Any]:
    keys = _list(keys)
    for key in keys:
        check_key(key)
    return set(keys)


def _dict(pairs: Any = (), **_: Any) -> dict[Any, Any]:
    pairs = _list(pairs)
    for key, _value in pairs:
        check_key(key)
    return dict(pairs)


def _defaultdict(factory: Any = None, *args: Any) -> dict[Any, Any]:
    if factory is not None and not isinstance(factory, Allowed):
        raise Refused(f"a defaultdict that makes a {type(factory).__name__}")
    return _dict(*args)


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Bytes in the encoding of protocols 0 to 2."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"the encoding {brief(encoding)}")
    return text.encode("latin1")


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    if not (isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)):
        raise Refused(f"the numpy type {brief(code)} (only numbers are read)")
    return np.dtype(code, align=False, copy=True)  # a copy can take a state


def _array(*_: Any) -> np.ndarray:
    return np.empty(0, "b")  # its state follows


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def is_plain_state(target: Any, state: Any) -> bool:
    """Whether a state of numpy is data: a dtype's byte order alone, or an array's raw bytes of numbers."""
    if isinstance(target, np.dtype):  # no fields, no subarray, no metadata
        return state[1] in ("<", ">", "|", "=") and state[2:] == (None, None, None, -1, -1, 0)
    if type(target) is not np.ndarray or not isinstance(state[4], bytes) or state[2].hasobject:
        return False  # arrays of objects hold a list
    shape, size = state[1], len(state[4])
    if not is_integer_list(shape, MAX_DIMENSIONS) or math.prod(shape) * state[2].itemsize != size:
        raise Refused(f"a numpy array of shape {brief(shape)} in {size:,} bytes")
    check_empty_shape(shape)
    return True


# Every importable name that a file may call, with what is called in its place.
_MAKERS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _object,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda items: tuple(_list(items)),
    "torch.device": _device,
    LOAD: _uncalled,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _defaultdict,
    "dnnlib.EasyDict": _dict,
    "dnnlib.util.EasyDict": _dict,
    "_codecs.encode": _bytes,
    "builtins.bytes": _bytes,
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.set": _set,
    "numpy.ndarray": _array,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": _uncalled,
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping": _uncalled,
}
_DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]

NAMES: dict[str, Any] = {name: Allowed(name, make) for name, make in _MAKERS.items()}
NAMES |= {f"torch.{name}": getattr(torch, name) for name in _DTYPES}
