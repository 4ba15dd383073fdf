"""Submodules as attributes that load when first used, so that every dotted path works after ``import gas``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

__all__ = ["submodules_of"]


def submodules_of(package: str) -> Callable[[str], ModuleType]:
    """Return a module ``__getattr__`` (PEP 562) that imports the public submodules of a package on first use.

    Args:
        package: its dotted name, ``__name__`` in the package's ``__init__``.
    """

    def load(name: str) -> ModuleType:
        path = f"{package}.{name}"
        # Names with an underscore are probed by import machinery and doctest; none of them is a public module.
        if name.startswith("_") or importlib.util.find_spec(path) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(path)

    return load
