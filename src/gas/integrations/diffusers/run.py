"""One run of a plan: what a pipeline's network predicts becomes the clean sample, and a row of the table runs."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.integrations.diffusers.plan import Plan
from gas.integrations.diffusers.process import Process, clean
from gas.stepper import Stepper

__all__ = ["Run"]


class Run:
    """Runs a plan from its first row on.

    A learned table weighs every past state; folded, with no state but the first, it costs half. That is the same solver
    only while each state comes back as it was handed out, so at the first that does not (inpainting changes them) the
    rows go on as they are written.

    Args:
        plan: the table.
        process: what the pipeline's network predicts.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        p, q = process.conversion(plan.t)
        self._weights = iter(list(zip(p.tolist(), q.tolist(), strict=True)))
        self._table = plan.table
        self._folded = bool(plan.table.states.tril(-1).any())
        self._stepper = Stepper(plan.table, fold=None if self._folded else False)
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._handed_out: Tensor | None = None

    def step(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the estimate of the clean sample, in the dtype of ``y``.

        Args:
            output: the network's answer, of the shape of ``y``.
            y: the state it was asked at.
        """
        p, q = next(self._weights)
        wide = y.dtype if y.dtype.itemsize > 2 else torch.float32
        d = clean(output.to(wide), y, p, q)
        if self._folded:
            if self._handed_out is not None and y is not self._handed_out:
                self._unfold()
            self._seen.append((y, d))
        self._handed_out = self._stepper.step(y, d)
        return self._handed_out, d.to(y.dtype)

    def _unfold(self) -> None:
        """Go on with the table as it is written, from the states that the pipeline really had."""
        self._stepper, self._folded = Stepper(self._table, fold=False), False
        for y, d in self._seen:
            self._stepper.step(y, d)
        self._seen.clear()
