"""Published pickles read as data: tensors, numbers and containers; nothing in a file is ever executed."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["Persistent", "read_pickle", "state_dict_of"]

_ADVICE = (
    "only tensors, numbers and plain containers are read; have its owner save the weights as safetensors"
)


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


def read_pickle(path: str | Path) -> Any:
    """Read a pickle (protocols 0 to 5), or a file of ``torch.save``, without executing anything in it.

    Networks come back as :class:`Persistent`: those written by EDM's and StyleGAN's ``torch_utils.persistence``,
    whose source text is ignored, and plain modules of torch and of R3GAN. ``EasyDict``, ``OrderedDict`` and
    ``defaultdict`` come back as ``dict``, parameters as tensors, all tensors on the CPU.

    Args:
        path: file of a source that need not be trusted.

    Returns:
        What was pickled: containers, numbers, text, tensors, numpy arrays of numbers and :class:`Persistent`.

    Raises:
        ValueError: one line that names the file and what was refused, or says that the file is damaged.
        FileNotFoundError: when there is no such file.

    References:
        Layouts: Karras et al., arXiv 2206.00364; Huang et al., arXiv 2501.05441 (their published weights).
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.peek(16)
        try:
            if head.startswith(b"PK\x03\x04") or head[2:14] == _TORCH_MAGIC:
                return _torch_load(file)
            return _Reader(file).load()
        except _Refused as error:
            raise ValueError(f"{path}: refused {error}; {_ADVICE}") from None
        except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
            what = "is cut short, damaged or no pickle"
            raise ValueError(f"{path} {what} ({_one_line(error)}); download it again") from error


def state_dict_of(persistent: Persistent) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a module read by :func:`read_pickle`.

    Args:
        persistent: a module, with its submodules in ``state``.

    Returns:
        Tensors by dotted name, as ``Module.state_dict()`` names them.

    Raises:
        ValueError: when it is no module, or a submodule occurs twice.
    """
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", persistent)]
    seen: set[int] = set()  # a file can nest a module in itself, or double it at every level
    while waiting:
        prefix, module = waiting.pop()
        where = f"submodule {prefix[:-1]!r}" if prefix else "the object"
        if not _is_module(module):
            kind = module.class_name if isinstance(module, Persistent) else type(module).__name__
            raise ValueError(f"{where} is a {kind!r}, not a torch module")
        if id(module) in seen:
            raise ValueError(f"{where} ({module.class_name!r}) occurs twice; shared modules are not read")
        seen.add(id(module))
        hidden = module.state.get("_non_persistent_buffers_set", set())
        own = module.state["_parameters"] | module.state["_buffers"]
        tensors |= {f"{prefix}{n}": v for n, v in own.items() if isinstance(v, Tensor) and n not in hidden}
        children = [(f"{prefix}{name}.", child) for name, child in module.state["_modules"].items()]
        waiting += [entry for entry in reversed(children) if entry[1] is not None]
    return tensors


def _is_module(thing: Any) -> bool:
    if not isinstance(thing, Persistent):
        return False
    parts = [thing.state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    hidden = thing.state.get("_non_persistent_buffers_set", set())
    return all(isinstance(part, dict) for part in parts) and isinstance(hidden, set)


class _Refused(Exception):
    """What a file asked for and does not get; the text goes into the caller's message."""


@dataclass(frozen=True, eq=False)
class _Allowed:
    """Stand-in for an importable name: the only thing of a file that can be called, with our code behind it."""

    name: str
    make: Callable[..., Any]


class _Reader(pickle._Unpickler):
    """Unpickler that resolves names in a fixed table and calls nothing else.

    The pure Python class, because the C one cannot be told what BUILD may touch: there it sets any attribute
    of anything, also of functions and classes.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # as protocols 0 to 2 spell it
        full = f"{module}.{name}"
        if full in _NAMES:
            return _NAMES[full]
        if _MODULES.fullmatch(full):
            return _Allowed(full, lambda *args: Persistent(full, init_args=args))
        raise _Refused(f"the name {full[:120]!r}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("a persistent id (a reference to something outside the file)")

    def load_call(self) -> None:
        """REDUCE and NEWOBJ: call a name of the table with the arguments on the stack."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Allowed) or not isinstance(args, tuple):
            raise _Refused(f"a call of a {type(function).__name__}")
        self.stack.append(function.make(*args))

    def load_build(self) -> None:
        """BUILD: hand a state to an object that may have one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Persistent) and isinstance(state, dict) and not target.state:
            target.state = state
        elif _is_plain_dtype_state(target, state) or _is_plain_array_state(target, state):
            target.__setstate__(state)
        elif type(target) is not dict:  # attributes of dict subclasses (state_dict's _metadata) are dropped
            kind = target.name if isinstance(target, _Allowed) else type(target).__name__
            raise _Refused(f"a state for a {kind}")

    def load_refused(self) -> NoReturn:
        raise _Refused("a pickle instruction that published weights do not need (INST, OBJ, EXT, buffers)")

    # Keyed by opcode; the base class looks a handler up here.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        # INST, OBJ, EXT1, EXT2, EXT4, NEWOBJ_EX, NEXT_BUFFER, READONLY_BUFFER
        **dict.fromkeys(b"io\x82\x83\x84\x92\x97\x98", load_refused),
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
    }


# The long that opens every file of the older torch.save, as LONG1 of ten bytes and STOP.
_TORCH_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")

# Modules that become inert: their names are kept, they are never imported.
_MODULES = re.compile(r"(torch\.nn\.modules|BaselineGAN|R3GAN|training)(\.[A-Za-z_]\w*)+")


def _torch_load(file: BinaryIO) -> Any:
    """torch's own restricted reader; its refusals, which fill a page, in one line."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise _Refused(f"the name {found[1]!r}") from None
        raise _Refused(
            f"it ({str(error).split('WeightsUnpickler error: ')[-1].splitlines()[0]:.200})"
        ) from None


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _object(meta: dict[str, Any]) -> Persistent:
    """Object of ``torch_utils.persistence``: the entry ``module_src`` is source text, which nobody looks at."""
    state = meta["state"]
    if not isinstance(state, dict) or not isinstance(meta["class_name"], str):
        raise _Refused("a persistent object without class_name and state")
    return Persistent(meta["class_name"], state.get("_init_args", ()), state.get("_init_kwargs", {}), state)


def _storage(data: bytes) -> Tensor:
    """Flat tensor of a torch storage, which plain pickles hold as bytes of the older ``torch.save``."""
    storage = _torch_load(io.BytesIO(data))
    if not isinstance(storage, torch.storage.TypedStorage):
        raise _Refused(f"a torch storage that is a {type(storage).__name__}")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)


def _tensor(flat: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """View of a storage; unlike ``set_``, ``as_strided`` never grows a storage that is too short."""
    return torch.as_strided(flat, tuple(size), tuple(stride), offset)


def _defaultdict(factory: Any = None, *args: Any) -> dict[Any, Any]:
    if factory is not None and not isinstance(factory, _Allowed):
        raise _Refused(f"a defaultdict that makes a {type(factory).__name__}")
    return dict(*args)


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Bytes as protocols 0 to 2 spell them."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the encoding {encoding!r:.40}")
    return text.encode("latin1")


def _bytearray(data: Any = b"", *rest: Any) -> bytearray:
    # An integer would ask for that much memory.
    return bytearray(data if isinstance(data, bytes) else _bytes(data, *rest))


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    if not (isinstance(code, str) and re.fullmatch(r"[biufc]\d{1,2}", code)):
        raise _Refused(f"the numpy type {code!r:.40} (only numbers are read)")
    return np.dtype(code, align=False, copy=True)  # a copy can take a state


def _array(buffer: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: str) -> np.ndarray[Any, Any]:
    """Array of protocol 5, copied: the file's bytes may be read-only."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=cast("Any", order)).copy()


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def _is_plain_dtype_state(target: Any, state: Any) -> bool:
    """Byte order and nothing else: no fields, no subarray, no metadata."""
    plain = (None, None, None, -1, -1, 0)
    return isinstance(target, np.dtype) and state[1] in ("<", ">", "|", "=") and state[2:] == plain


def _is_plain_array_state(target: Any, state: Any) -> bool:
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
    names: dict[str, Any] = {name: _Allowed(name, make) for name, make in makers.items()}
    dtypes = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool"
    return names | {f"torch.{name}": getattr(torch, name) for name in dtypes.split()}


_NAMES = _table()
