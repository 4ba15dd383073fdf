"""One run of a plan: what a pipeline's network predicts becomes the clean sample, and a row of the table runs."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.integrations.diffusers.plan import Plan
from gas.integrations.diffusers.process import Process
from gas.stepper import Stepper

__all__ = ["Run"]


class Run:
    """Runs a plan from its first row on.

    Args:
        plan: the table.
        process: what the pipeline's network predicts.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        p, q = process.conversion(plan.t)
        self._weights = iter(list(zip(p.tolist(), q.tolist(), strict=True)))
        self._stepper = Stepper(plan.table, fold=False)  # pipelines change states between steps (inpainting)

    def step(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the estimate of the clean sample, in the dtype of ``y``.

        Args:
            output: the network's answer, of the shape of ``y``.
            y: the state it was asked at.
        """
        p, q = next(self._weights)
        wide = y.dtype if y.dtype.itemsize > 2 else torch.float32
        d = output.to(wide) * q
        if p:
            d = torch.add(d, y, alpha=p)
        return self._stepper.step(y, d), d.to(y.dtype)
