"""The diffusers package, or an error that says which extra to install."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["diffusers"]


def diffusers() -> Any:
    """Return the installed diffusers package.

    Raises:
        ImportError: when it is missing or broken; says what to install.
    """
    try:
        library = importlib.import_module("diffusers")
        _ = library.SchedulerMixin
    except Exception as error:  # a broken torchvision raises RuntimeError
        raise ImportError(
            f"gas.GASScheduler needs diffusers ({type(error).__name__}: {error}): "
            "pip install 'gas-solver[diffusers]'"
        ) from error
    return library
