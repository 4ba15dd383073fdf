"""The guidance scale of the pipeline call that a scheduler is at work in."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

__all__ = ["guidance_of_call"]

# A pipeline calls its scheduler directly; torch's decorators and our own methods lie between.
_FRAMES = 16


def guidance_of_call(scheduler: Any) -> float | None:
    """Return the guidance scale that the pipeline of this scheduler was called with; 1 where it then guides nothing.

    Pipelines tell their scheduler nothing of it, and half of them keep it nowhere but in their call's variables. So it
    is read there, and only from the ``__call__`` of an object whose ``scheduler`` is this one.

    Returns:
        ``None`` outside of a pipeline's call, and of a pipeline that takes no ``guidance_scale``.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame is None:
            return None
        if frame.f_code.co_name == "__call__":
            pipe = frame.f_locals.get("self")
            if getattr(pipe, "__dict__", {}).get("scheduler") is scheduler:
                return _effective(pipe, frame.f_locals.get("guidance_scale"))
        frame = frame.f_back
    return None


def _effective(pipe: Any, scale: Any) -> float | None:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        return None
    networks = [getattr(pipe, name, None) for name in ("transformer", "unet")]
    configs = [getattr(network, "config", None) for network in networks if network is not None]
    embedded = [getattr(config, "guidance_embeds", None) for config in configs]
    if any(embedded) or any(getattr(config, "time_cond_proj_dim", None) for config in configs):
        return float(scale)  # an input of the network, of which every value counts
    return 1.0 if False in embedded or scale <= 1 else float(scale)
