"""The pipeline call that a scheduler is at work in: what its user passed, which the pipeline does not hand on."""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

__all__ = ["times_were_passed"]


def times_were_passed() -> bool:
    """Return whether the user of the pipeline at work passed ``sigmas`` or ``timesteps``, or no pipeline is at work.

    Every pipeline runs under ``torch.no_grad()`` as a decorator, whose frame holds the arguments as they were passed:
    the pipeline's own have become its defaults by the time that it asks its scheduler.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "decorate_context":
            call, args = frame.f_locals.get("func"), frame.f_locals.get("args", ())
            if getattr(call, "__name__", "") == "__call__" and args and hasattr(args[0], "components"):
                return any(map(_of_times, _arguments(call, args, frame.f_locals["kwargs"]).items()))
        frame = frame.f_back
    return True


def _arguments(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    passed = dict(inspect.signature(call).bind_partial(*args, **kwargs).arguments)
    return {**passed, **passed.pop("kwargs", {})}  # a modular pipeline's


def _of_times(argument: tuple[str, Any]) -> bool:
    name, value = argument
    return name.endswith(("sigmas", "timesteps")) and hasattr(value, "__len__")
