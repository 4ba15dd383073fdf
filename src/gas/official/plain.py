"""What the names in a published file become: data in place of code, or a refusal."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["MODULES", "NAMES", "TORCH_MAGIC", "Allowed", "Persistent", "Refused", "is_plain_array_state"]
__all__ += ["is_plain_dtype_state", "torch_load"]


@dataclass(eq=False, repr=False)
class Persistent:
    """An object of a published file, taken apart: what it was called and what it held, without its code.

    Args:
        class_name: name of the class, with its module where the file says so.
        init_args: positional arguments it was built with, where the file says so.
        init_kwargs: keyword arguments it was built with, where the file says so.
        state: its ``__dict__``.
    """

    class_name: str
    init_args: tuple[Any, ...] = ()
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


class Refused(Exception):
    """What a file asked for and does not get; the text goes into the caller's message."""


@dataclass(frozen=True, eq=False)
class Allowed:
    """Stand-in for an importable name: the only thing of a file that can be called, with our code behind it."""

    name: str
    make: Callable[..., Any]


# The long that opens every file of the older torch.save, as LONG1 of ten bytes and STOP.
TORCH_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")

# Modules that become inert: their names are kept, they are never imported.
MODULES = re.compile(r"(torch\.nn\.modules|BaselineGAN|R3GAN|training)(\.[A-Za-z_]\w*)+")


def torch_load(file: BinaryIO | str, *, mmap: bool = False) -> Any:
    """torch's own restricted reader, with PyTorch Lightning's record keeping inert; refusals in one line.

    Args:
        file: an open file, or with ``mmap`` its path: tensors then stay on disk until they are used.

    Raises:
        Refused: when the file asks for anything but data.
    """
    try:
        with torch.serialization.safe_globals(_LIGHTNING):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise Refused(f"the name {found[1]!r}") from None
        raise Refused(
            f"it ({str(error).split('WeightsUnpickler error: ')[-1].splitlines()[0]:.200})"
        ) from None


class _Inert:
    """Stands in for a class of PyTorch Lightning, which older checkpoints use as a key; it cannot be called."""

    def __new__(cls, *_: Any) -> NoReturn:
        raise Refused("a call of a class of PyTorch Lightning")


class _Dtype:
    """A numpy type in a file of ``torch.save``: its code, and no state but a byte order."""

    def __init__(self, code: str, *rest: Any) -> None:
        self.dtype = _dtype(code, *rest)

    def __setstate__(self, state: Any) -> None:
        if not is_plain_dtype_state(self.dtype, state):
            raise Refused("a state for a numpy type")
        self.dtype.__setstate__(state)  # type: ignore[attr-defined]


def _torch_scalar(dtype: Any, data: Any) -> Any:
    """A number of numpy in a file of ``torch.save``: best losses and the like."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise Refused("a numpy scalar of something else")
    return _scalar(dtype.dtype, data).item()


def _object(meta: dict[str, Any]) -> Persistent:
    """Object of ``torch_utils.persistence``: the entry ``module_src`` is source text, which nobody looks at."""
    state = meta["state"]
    if not isinstance(state, dict) or not isinstance(meta["class_name"], str):
        raise Refused("a persistent object without class_name and state")
    return Persistent(meta["class_name"], state.get("_init_args", ()), state.get("_init_kwargs", {}), state)


def _storage(data: bytes) -> Tensor:
    """Flat tensor of a torch storage, which plain pickles hold as bytes of the older ``torch.save``."""
    storage = torch_load(io.BytesIO(data))
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused(f"a torch storage that is a {type(storage).__name__}")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)


def _tensor(flat: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """View of a storage; unlike ``set_``, ``as_strided`` never grows a storage that is too short."""
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _defaultdict(factory: Any = None, *args: Any) -> dict[Any, Any]:
    if factory is not None and not isinstance(factory, Allowed):
        raise Refused(f"a defaultdict that makes a {type(factory).__name__}")
    return dict(*args)


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Bytes as protocols 0 to 2 spell them."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"the encoding {encoding!r:.40}")
    return text.encode("latin1")


def _bytearray(data: Any = b"", *rest: Any) -> bytearray:
    # An integer would ask for that much memory.
    return bytearray(data if isinstance(data, bytes) else _bytes(data, *rest))


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    if not (isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)):
        raise Refused(f"the numpy type {code!r:.40} (only numbers are read)")
    return np.dtype(code, align=False, copy=True)  # a copy can take a state


def _array(buffer: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray[Any, Any]:
    """Array of protocol 5, copied: the file's bytes may be read-only."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=cast("Any", order)).copy()


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def is_plain_dtype_state(target: Any, state: Any) -> bool:
    """Byte order and nothing else: no fields, no subarray, no metadata."""
    plain = (None, None, None, -1, -1, 0)
    return isinstance(target, np.dtype) and state[1] in ("<", ">", "|", "=") and state[2:] == plain


def is_plain_array_state(target: Any, state: Any) -> bool:
    """Raw bytes of numbers; arrays of objects hold a list instead."""
    return type(target) is np.ndarray and isinstance(state[4], bytes) and not state[2].hasobject


def _table() -> dict[str, Any]:
    """Every importable name a file may use, with what it gets instead."""
    makers: dict[str, Callable[..., Any]] = {
        "torch_utils.persistence._reconstruct_persistent_obj": _object,
        "torch.storage._load_from_bytes": _storage,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": tuple,
        "torch.device": torch.device,
        "collections.OrderedDict": dict,
        "collections.defaultdict": _defaultdict,
        "dnnlib.EasyDict": dict,
        "dnnlib.util.EasyDict": dict,
        "_codecs.encode": _bytes,
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytearray,
        "numpy.ndarray": lambda *_: np.empty(0, "b"),
        "numpy.dtype": _dtype,
    }
    plain = (set, frozenset, list, dict, tuple, int, float, bool, complex, slice, str)
    makers |= {f"builtins.{kind.__name__}": kind for kind in plain}
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray._reconstruct"] = lambda *_: np.empty(0, "b")
        makers[f"{core}.multiarray.scalar"] = _scalar
        makers[f"{core}.numeric._frombuffer"] = _array
    names: dict[str, Any] = {name: Allowed(name, make) for name, make in makers.items()}
    dtypes = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool"
    return names | {f"torch.{name}": getattr(torch, name) for name in dtypes.split()}


NAMES = _table()

_LIGHTNING: list[Any] = [
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "pytorch_lightning.callbacks.early_stopping.EarlyStopping"),
    (_Dtype, "numpy.dtype"),
    (_torch_scalar, "numpy.core.multiarray.scalar"),
    (_torch_scalar, "numpy._core.multiarray.scalar"),
    (_bytes, "_codecs.encode"),
]
