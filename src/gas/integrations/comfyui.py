"""A ComfyUI node that emits a solver's SAMPLER and its SIGMAS together.

Put a file with ``from gas.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS`` into ComfyUI's
``custom_nodes`` folder and connect both outputs of *GAS solver* to *SamplerCustom*.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from gas.integrations.k_diffusion import sample_gas, sigmas_of
from gas.solver_file import load

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "GASSolver"]


class GASSolver:
    """Loads a solver file as a sampler with its own levels."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "load"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        return {
            "required": {
                "solver_file": ("STRING", {"default": "solver.json"}),
                "steps": ("INT", {"default": 4, "min": 1, "max": 100}),
            },
            # A socket without a number of its own: a file of one scale needs none.
            "optional": {"guidance": ("FLOAT", {"forceInput": True})},
        }

    def load(self, solver_file: str, steps: int, guidance: float | None = None) -> tuple[Any, Tensor]:
        """Return SAMPLER and SIGMAS of the table of this many steps, of a range at the guidance scale (``cfg``)."""
        try:
            from comfy.samplers import KSAMPLER  # type: ignore[import-not-found]
        except Exception as error:
            raise ImportError("this node runs inside ComfyUI, which brings comfy.samplers") from error
        artefact = load(solver_file)
        sampler = KSAMPLER(partial(sample_gas, solver=artefact, guidance=guidance))
        return sampler, sigmas_of(artefact, steps, guidance=guidance)


NODE_CLASS_MAPPINGS = {"GASSolver": GASSolver}
NODE_DISPLAY_NAME_MAPPINGS = {"GASSolver": "GAS solver"}
