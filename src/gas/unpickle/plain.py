"""Stand-ins for the importable names in a published file: data in place of code, or a refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from gas.display import brief
from gas.io import MAX_DIMENSIONS, check_empty_shape, is_integer_list

__all__ = [
    "MODULES",
    "NAMES",
    "STORAGES",
    "Allowed",
    "Persistent",
    "Refused",
    "check_key",
    "is_plain_array_state",
    "is_plain_dtype_state",
]


@dataclass(eq=False, repr=False)
class Persistent:
    """An object of a published file as data: its class name and its state, without its code.

    Args:
        class_name: name of the class, with its module where the file gives it.
        init_args: positional arguments of its constructor, where the file gives them.
        init_kwargs: keyword arguments of its constructor, where the file gives them.
        state: its ``__dict__``.
    """

    class_name: str
    init_args: tuple[Any, ...] = ()
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


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
    f"{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Byte": torch.uint8,
        "Char": torch.int8,
        "Short": torch.int16,
        "Int": torch.int32,
        "Long": torch.int64,
        "Bool": torch.bool,
        "Untyped": torch.uint8,
    }.items()
}


def _lightning(*_: Any) -> NoReturn:
    """A class of PyTorch Lightning, which older checkpoints use as a key; a call is refused."""
    raise Refused("a call of a class of PyTorch Lightning")


def check_key(key: Any) -> None:
    """Refuse keys that take long to hash: tuples in tuples, which a file can double at every level, and long numbers.

    Raises:
        Refused: for anything but text, numbers, names and flat tuples of them.
    """
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


def _tensor(flat: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """View of a storage; unlike ``set_``, ``as_strided`` never grows a storage that is too short."""
    if not isinstance(flat, Tensor) or not is_integer_list((offset,), 1):
        raise Refused("a tensor of no storage")
    if (
        not is_integer_list(size, MAX_DIMENSIONS)
        or not is_integer_list(stride, MAX_DIMENSIONS)
        or len(size) != len(stride)
    ):
        raise Refused(f"a tensor of size {brief(size)} and strides {brief(stride)}")
    if math.prod(size) > flat.numel():
        raise Refused(f"a tensor of size {brief(size)} in a storage of {flat.numel():,} numbers")
    check_empty_shape(size)
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _typed_tensor(flat: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """View of a storage of bytes; the third of ``rest`` is the dtype."""
    if not isinstance(flat, Tensor) or len(rest) < 3 or not isinstance(rest[2], torch.dtype):
        raise Refused("a tensor of no storage")
    return _tensor(flat.view(rest[2]), offset, size, stride)


def _device(*args: Any) -> torch.device:
    if not all(isinstance(part, (str, int)) for part in args):
        raise Refused("a device of something else than its name")
    return torch.device(*args)


def _text(text: Any = "", *rest: Any) -> str:
    # The text of a container could be of any length: a list that shares parts doubles it at every level.
    if not isinstance(text, (str, bytes)) or rest:
        raise Refused(f"text of a {type(text).__name__}")
    return text if isinstance(text, str) else text.decode("latin1")


def _number(kind: type) -> Callable[..., Any]:
    def make(value: Any = 0, *rest: Any) -> Any:
        if (
            not isinstance(value, (bool, int, float, str))
            or (isinstance(value, str) and len(value) > 400)
            or rest
        ):
            raise Refused(f"a number of a {type(value).__name__}")
        return kind(value)

    return make


def _keyed(kind: type) -> Callable[..., Any]:
    """Return a maker of sets whose keys are checked."""

    def make(keys: Iterable[Any] = ()) -> Any:
        keys = list(keys)
        for key in keys:
            check_key(key)
        return kind(keys)

    return make


def _dict(pairs: Any = (), **_: Any) -> dict[Any, Any]:
    pairs = list(pairs.items() if isinstance(pairs, dict) else pairs)
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


def _bytearray(data: Any = b"", *rest: Any) -> bytearray:
    # An integer would ask for that much memory.
    return bytearray(data if isinstance(data, bytes) else _bytes(data, *rest))


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    if not (isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)):
        raise Refused(f"the numpy type {brief(code)} (only numbers are read)")
    return np.dtype(code, align=False, copy=True)  # a copy can take a state


def _array(buffer: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray[Any, Any]:
    """Array of protocol 5, copied: the file's bytes may be read-only."""
    if not is_integer_list(shape, MAX_DIMENSIONS):
        raise Refused(f"a numpy array of shape {brief(shape)}")
    check_empty_shape(shape)
    return np.frombuffer(buffer, dtype).reshape(shape, order=cast("Any", order)).copy()


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def is_plain_dtype_state(target: Any, state: Any) -> bool:
    """Whether a dtype's state is its byte order alone: no fields, no subarray, no metadata."""
    plain = (None, None, None, -1, -1, 0)
    return isinstance(target, np.dtype) and state[1] in ("<", ">", "|", "=") and state[2:] == plain


def is_plain_array_state(target: Any, state: Any) -> bool:
    """Whether an array's state is raw bytes of numbers; arrays of objects hold a list instead."""
    if type(target) is not np.ndarray or not isinstance(state[4], bytes) or state[2].hasobject:
        return False
    if not is_integer_list(state[1], MAX_DIMENSIONS) or math.prod(state[1]) * state[2].itemsize != len(
        state[4]
    ):
        raise Refused(f"a numpy array of shape {brief(state[1])} in {len(state[4]):,} bytes")
    check_empty_shape(state[1])
    return True


def _names() -> dict[str, Any]:
    """Return every importable name that a file may use, with its stand-in."""
    makers: dict[str, Callable[..., Any]] = {
        "torch_utils.persistence._reconstruct_persistent_obj": _object,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": tuple,
        "torch.device": _device,
        "collections.OrderedDict": _dict,
        "collections.defaultdict": _defaultdict,
        "dnnlib.EasyDict": _dict,
        "dnnlib.util.EasyDict": _dict,
        "_codecs.encode": _bytes,
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytearray,
        "numpy.ndarray": lambda *_: np.empty(0, "b"),
        "numpy.dtype": _dtype,
    }
    makers |= {f"builtins.{kind.__name__}": kind for kind in (list, tuple, slice)}
    makers |= {f"builtins.{kind.__name__}": _number(kind) for kind in (int, float, bool)}
    makers |= {"builtins.set": _keyed(set), "builtins.frozenset": _keyed(frozenset), "builtins.dict": _dict}
    makers |= {"builtins.str": _text, "builtins.complex": complex}
    lightning = "pytorch_lightning.callbacks."
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping"):
        makers[lightning + name] = _lightning
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray._reconstruct"] = lambda *_: np.empty(0, "b")
        makers[f"{core}.multiarray.scalar"] = _scalar
        makers[f"{core}.numeric._frombuffer"] = _array
    names: dict[str, Any] = {name: Allowed(name, make) for name, make in makers.items()}
    dtypes = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool"
    return names | {f"torch.{name}": getattr(torch, name) for name in dtypes.split()}


NAMES = _names()
