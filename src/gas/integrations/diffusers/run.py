"""One run of a plan, a row at a time: weights as plain numbers, and the history that later rows use."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.integrations.diffusers.plan import Plan
from gas.integrations.diffusers.process import Process

__all__ = ["Run"]


class Run:
    """Runs a plan from its first row on.

    Args:
        plan: the table.
        process: what the pipeline's network predicts.
        first: the pipeline's index of the plan's first row.
    """

    def __init__(self, plan: Plan, process: Process, first: int = 0) -> None:
        self.first = first
        p, q = process.conversion(plan.t)
        self._p, self._q = p.tolist(), q.tolist()
        self._rows = [
            [[(j, w) for j, w in enumerate(row[: n + 1]) if w] for n, row in enumerate(matrix.tolist())]
            for matrix in (plan.table.states, plan.table.outputs)
        ]
        self._last_use = [[_last_use(rows, j) for j in range(len(rows))] for rows in self._rows]
        self._history: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})

    def step(self, index: int, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state, in the dtype of ``y``, and the estimate of the clean sample.

        Args:
            index: the pipeline's index of the row.
            output: the network's answer, of the shape of ``y``.
            y: the state it was asked at.
        """
        n = index - self.first
        dtype = y.dtype
        if dtype.itemsize < 4:
            y = y.float()
        output = output.to(y.dtype)
        d = (output * self._q[n]).add_(y, alpha=self._p[n]) if self._p[n] else output * self._q[n]
        following: Tensor | None = None
        for history, rows, last_use, now in zip(
            self._history, self._rows, self._last_use, (y, d), strict=True
        ):
            history[n] = now
            for j, weight in rows[n]:
                following = (
                    history[j] * weight if following is None else following.add_(history[j], alpha=weight)
                )
            for j in [j for j in history if last_use[j] <= n]:
                del history[j]
        following = torch.zeros_like(y) if following is None else following
        return following.to(dtype), d.to(dtype)


def _last_use(rows: list[list[tuple[int, float]]], j: int) -> int:
    """The last row that weighs entry j, or -1."""
    return max((n for n, row in enumerate(rows) if any(k == j for k, _ in row)), default=-1)
