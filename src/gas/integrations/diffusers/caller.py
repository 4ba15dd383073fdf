"""The pipeline call that a scheduler is at work in: what its user passed, which the pipeline does not hand on."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["guidance_of_call", "times_were_passed"]

# A pipeline calls its scheduler directly; torch's decorators and our own methods lie between.
_FRAMES = 16


def times_were_passed() -> bool:
    """Return whether the user of the pipeline at work passed ``sigmas`` or ``timesteps``, or no pipeline is at work.

    Every pipeline runs under ``torch.no_grad()`` as a decorator, whose frame holds the arguments as they were passed:
    the pipeline's own have become its defaults by the time that it asks its scheduler.
    """
    for frame in _callers("decorate_context"):
        call, args = frame.f_locals.get("func"), frame.f_locals.get("args", ())
        if getattr(call, "__name__", "") == "__call__" and args and hasattr(args[0], "components"):
            return any(map(_of_times, _arguments(call, args, frame.f_locals["kwargs"]).items()))
    return True


def guidance_of_call(scheduler: Any) -> float | None:
    """Return the guidance scale that the pipeline of this scheduler was called with; 1 where it then guides nothing.

    Pipelines do not hand it to their scheduler, and a quarter of them keep it nowhere but in their call's variables. So
    it is read in that frame, and only of an object whose ``scheduler`` is this one.

    Where a pipeline extrapolates from a negative prompt by ``true_cfg_scale`` (Flux, Qwen), that scale counts.

    Returns:
        ``None`` outside of a pipeline's call, and of a pipeline that takes neither scale.
    """
    for frame in _callers("__call__", _FRAMES):
        pipe = frame.f_locals.get("self")
        if getattr(pipe, "__dict__", {}).get("scheduler") is scheduler:
            return _effective(pipe, frame.f_locals)
    return None


def _callers(name: str, most: int | None = None) -> Iterator[FrameType]:
    """The frames of functions of this name, from the innermost of so many on."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and most != 0:
        if frame.f_code.co_name == name:
            yield frame
        frame, most = frame.f_back, None if most is None else most - 1


def _arguments(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    passed = dict(inspect.signature(call).bind_partial(*args, **kwargs).arguments)
    return {**passed, **passed.pop("kwargs", {})}  # a modular pipeline's


def _of_times(argument: tuple[str, Any]) -> bool:
    name, value = argument
    return name.endswith(("sigmas", "timesteps")) and hasattr(value, "__len__")


def _effective(pipe: Any, variables: Mapping[str, Any]) -> float | None:
    scale, is_extrapolated = variables.get("guidance_scale"), variables.get("do_true_cfg")
    if is_extrapolated:
        scale = variables.get("true_cfg_scale")
        return float(scale) if isinstance(scale, (int, float)) else None
    networks = [getattr(pipe, name, None) for name in ("transformer", "unet")]
    configs = [getattr(network, "config", None) for network in networks if network is not None]
    embedded = [getattr(config, "guidance_embeds", None) for config in configs]
    if is_extrapolated is False and not any(embedded):
        return 1.0
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        return None
    if any(embedded) or any(getattr(config, "time_cond_proj_dim", None) for config in configs):
        return float(scale)  # an input of the network, of which every value counts
    return 1.0 if False in embedded or scale <= 1 else float(scale)
