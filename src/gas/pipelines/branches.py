"""The branches of a pipeline's guided prediction, each evaluated alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.denoise import Denoiser

# The label of the negative prompt, by default the empty one, and of no class.
NEGATIVE = -1


@dataclass(frozen=True)
class PipelineBranches:
    """A :class:`gas.denoise.BranchedDenoiser` of a pipeline: without guidance, of the prompts and the negative prompt.

    Args:
        guided: the prediction with the pipeline's own guidance.
        labels: of the prompts or classes, ``(B,)``.
        unguided: labels to their denoiser without guidance, :data:`NEGATIVE` that of the negative prompt.
        is_mixture: whether ``guided`` is ``u + scale (c - u)`` of the two; a pipeline that does more has no branches.
    """

    guided: Denoiser
    labels: Tensor
    unguided: Callable[[Tensor], Denoiser]
    is_mixture: Callable[[], bool]

    @property
    def branches(self) -> tuple[str, ...]:
        return ("unconditional", "conditional") if self.is_mixture() else ()

    def select(self, *names: str) -> Denoiser:
        rows = {"conditional": self.labels, "unconditional": torch.full_like(self.labels, NEGATIVE)}
        return self.unguided(torch.cat([rows[name] for name in names]))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.guided(x, t)
