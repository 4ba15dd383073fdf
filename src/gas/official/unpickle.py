"""Published pickles read as data: tensors, numbers and containers; nothing in a file is ever executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from gas.official.plain import (
    MODULES,
    NAMES,
    TORCH_MAGIC,
    Allowed,
    Persistent,
    Refused,
    is_plain_array_state,
    is_plain_dtype_state,
    torch_load,
)

__all__ = ["Persistent", "Reader", "explained", "is_torch_file", "read_pickle", "state_dict_of"]

_ADVICE = (
    "only tensors, numbers and plain containers are read; have its owner save the weights as safetensors"
)


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
    with open(path, "rb") as file, explained(path):
        return torch_load(file) if is_torch_file(file) else Reader(file).load()


def is_torch_file(file: BufferedReader) -> bool:
    """Whether a file at its beginning was written by ``torch.save``, in either of its forms."""
    head = file.peek(16)
    return head.startswith(b"PK\x03\x04") or head[2:14] == TORCH_MAGIC


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever happens while a file is read into one line that names it.

    Raises:
        ValueError: what was refused, or that the file is damaged.
    """
    try:
        yield
    except Refused as error:
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


class Reader(pickle._Unpickler):
    """Unpickler that resolves names in a fixed table and calls nothing else.

    The pure Python class, because the C one cannot be told what BUILD may touch: there it sets any attribute
    of anything, also of functions and classes.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # as protocols 0 to 2 spell it
        full = f"{module}.{name}"
        if full in NAMES:
            return NAMES[full]
        if MODULES.fullmatch(full):
            return Allowed(full, lambda *args: Persistent(full, init_args=args))
        raise Refused(f"the name {full[:120]!r}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("a persistent id (a reference to something outside the file)")

    def load_call(self) -> None:
        """REDUCE and NEWOBJ: call a name of the table with the arguments on the stack."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Allowed) or not isinstance(args, tuple):
            raise Refused(f"a call of a {type(function).__name__}")
        self.stack.append(function.make(*args))

    def load_build(self) -> None:
        """BUILD: hand a state to an object that may have one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Persistent) and isinstance(state, dict) and not target.state:
            target.state = state
        elif is_plain_dtype_state(target, state) or is_plain_array_state(target, state):
            target.__setstate__(state)
        elif type(target) is not dict:  # attributes of dict subclasses (state_dict's _metadata) are dropped
            kind = target.name if isinstance(target, Allowed) else type(target).__name__
            raise Refused(f"a state for a {kind}")

    def load_refused(self) -> NoReturn:
        raise Refused("a pickle instruction that published weights do not need (INST, OBJ, EXT, buffers)")

    # Keyed by opcode; the base class looks a handler up here.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        # INST, OBJ, EXT1, EXT2, EXT4, NEWOBJ_EX, NEXT_BUFFER, READONLY_BUFFER
        **dict.fromkeys(b"io\x82\x83\x84\x92\x97\x98", load_refused),
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
    }


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
