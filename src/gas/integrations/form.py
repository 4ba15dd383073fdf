"""The same solver on states that other programs scale otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.table import Table

__all__ = ["rescaled", "sigma_form"]


def rescaled(table: Table, scales: Tensor) -> Table:
    """Return the table for states ``y_n = scales[n] x_n``: ``states[n, j]`` becomes ``s_{n+1} states[n, j] / s_j``.

    Args:
        table: N rows.
        scales: ``(N + 1,)``, positive; the last is 1 where the sample itself is not to be scaled.
    """
    before, after = scales[:-1], scales[1:, None]
    return Table(table.times, after * table.states / before, after * table.outputs)


def sigma_form(table: Table, alpha: Tensor) -> Table:
    """Return the table for ``y_n = x_n / alpha_n = x_0 + (sigma_n / alpha_n) eps``, but the last state as it is.

    Args:
        table: N rows.
        alpha: ``(N,)``, the signal at ``table.times``.
    """
    return rescaled(table, torch.cat([1 / alpha, torch.ones(1, dtype=torch.float64)]))
