"""One run of a plan: what a pipeline's network predicts becomes the clean sample, and a row of the table runs."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.integrations.diffusers.plan import Plan
from gas.integrations.diffusers.process import Process, clean
from gas.stepper import Stepper

__all__ = ["Run"]


class Run:
    """Runs a plan from its first row on, on the states that the pipeline really has.

    The rows run as they are written, not folded: inpainting and callbacks change states between steps, and a folded
    table would not weigh them.

    Args:
        plan: the table.
        process: what the pipeline's network predicts.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        p, q = process.conversion(plan.t)
        self._weights = iter(list(zip(p.tolist(), q.tolist(), strict=True)))
        self._stepper = Stepper(plan.table)

    def step(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the estimate of the clean sample, in the dtype of ``y``.

        Nothing is kept of what is handed in or out: see :class:`gas.Stepper`.

        Args:
            output: the network's answer, of the shape of ``y``.
            y: the state it was asked at.
        """
        self._stepper.check(y, output)
        self._stepper.add_state(y)
        p, q = next(self._weights)
        wide = y.dtype if y.dtype.itemsize > 2 else torch.float32
        d = clean(output.to(wide), y, p, q)
        return self._stepper.next_state(d), d.to(y.dtype)
