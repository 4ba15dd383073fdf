"""Tables for other programs: rescaled states, and grids that end with a prediction of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gas.residual import Residual
from gas.schedule import Schedule
from gas.table import Table, refuse_branches


def ending_in_data(solver: Callable[[Schedule, Tensor], Table], schedule: Schedule, t: Tensor) -> Table:
    """Return a classical table that evaluates at each of N times and ends with its last prediction, at sigma 0."""
    n = len(t)
    states, outputs = torch.zeros(2, n, n, dtype=torch.float64)
    outputs[-1, -1] = 1.0
    if n > 1:
        before = solver(schedule, t)
        states[:-1, :-1], outputs[:-1, :-1] = before.states, before.outputs
    return Table(t, states, outputs)


def sigma_form(table: Table, alpha: Tensor) -> Table:
    """Return the table for states ``y_n = s_n x_n`` with ``s_n = 1 / alpha_n``, the last state as it is.

    Then ``y_n = x_0 + (sigma_n / alpha_n) eps``, and ``states[n, j]`` becomes ``s_{n+1} states[n, j] / s_j``; the
    scales of residuals change alike. ``alpha`` ``(N,)`` is the signal at ``table.times``.
    """
    refuse_branches(table, "k-diffusion")
    scales = torch.cat([1 / alpha, torch.ones(1, dtype=torch.float64)])
    before, after = scales[:-1], scales[1:, None]
    residuals = {row: _sigma_residual(row, each, scales) for row, each in (table.residuals or {}).items()}
    return Table(
        table.times, after * table.states / before, after * table.outputs, residuals=residuals or None
    )


def _sigma_residual(row: int, residual: Residual, scales: Tensor) -> Residual:
    """Return the residual that reads and corrects states ``s_n x_n``: only its own scales differ."""
    states, rest = residual.scales.double().cpu().split([residual.states, residual.outputs + 1])
    rest[-1] *= scales[row + 1]
    rescaled = residual.frozen()
    rescaled.scales = torch.cat([states * scales[: len(states)], rest])
    return rescaled
