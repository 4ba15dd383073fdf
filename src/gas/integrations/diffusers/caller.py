"""The pipeline call around a scheduler: arguments of the user that pipelines do not pass on.

A scheduler sees neither the guidance scale of a call nor whether ``sigmas`` come from the user or are the pipeline's
defaults. Both are read from the frames of the call. Frames are only read, and outside of a pipeline's call the
functions say that nothing is known.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

# A pipeline calls its scheduler directly; only torch's decorators and our own methods lie between.
_MAX_FRAMES = 16


def times_were_passed() -> bool:
    """Return whether the user passed ``sigmas`` or ``timesteps`` to the running pipeline, or no pipeline runs.

    Every pipeline's call is decorated with ``torch.no_grad()``, whose frame holds the user's arguments: the call's own
    variables may have been replaced by defaults before it calls its scheduler.
    """
    for frame in _frames("decorate_context"):
        call: Any = frame.f_locals.get("func")
        args = frame.f_locals.get("args", ())
        if getattr(call, "__name__", "") == "__call__" and args and hasattr(args[0], "components"):
            arguments = inspect.signature(call).bind_partial(*args, **frame.f_locals["kwargs"]).arguments
            passed = {**arguments, **arguments.get("kwargs", {})}  # a modular pipeline takes only **kwargs
            return any(
                name.endswith(("sigmas", "timesteps")) and hasattr(value, "__len__")
                for name, value in passed.items()
            )
    return True


def guidance_of_call(scheduler: Any) -> float | None:
    """Return the effective guidance scale of the running pipeline's call, 1 when it does not guide, else ``None``.

    A quarter of the pipelines keep the scale nowhere but in the variables of their call. They are read only in the
    frame of an object whose ``scheduler`` is this one. When a pipeline extrapolates from a negative prompt by
    ``true_cfg_scale`` (Flux, Qwen), that scale counts.
    """
    for frame in _frames("__call__", _MAX_FRAMES):
        pipe = frame.f_locals.get("self")
        if getattr(pipe, "__dict__", {}).get("scheduler") is scheduler:
            return _effective_scale(pipe, frame.f_locals)
    return None


def _frames(function: str, limit: int | None = None) -> Iterator[FrameType]:
    """The frames of functions of this name, innermost first, among the innermost ``limit`` frames."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and limit != 0:
        if frame.f_code.co_name == function:
            yield frame
        frame, limit = frame.f_back, None if limit is None else limit - 1


def _effective_scale(pipe: Any, variables: Mapping[str, Any]) -> float | None:
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
        return float(scale)  # an input of the network, every value of which has an effect
    return 1.0 if False in embedded or scale <= 1 else float(scale)
