"""Heun's method as EDM uses it: two network evaluations a step."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.classical.rows import Grid, Times, ddim_row
from gas.schedule import Schedule
from gas.table import Row, Table


def heun(schedule: Schedule, t: Times) -> Table:
    """Heun's second-order method on ``d(x/alpha) = eps d(sigma/alpha)``: two evaluations a step.

    A step that starts at ``alpha = 0`` or ends at ``sigma = 0`` is an Euler step of one evaluation, as in EDM's last
    step. The second evaluation of a step is at its end, so times repeat.

    Args:
        schedule: the forward process.
        t: K + 1 times; the table has NFE 2 K, less one for each Euler step.

    References:
        Karras et al., arXiv 2206.00364, algorithm 1.
    """
    grid = Grid.of(schedule, t)
    times: list[Tensor] = []
    rows: list[Row] = []
    for n in range(grid.steps):
        a, a_next, s, s_next = grid.alpha[n], grid.alpha[n + 1], grid.sigma[n], grid.sigma[n + 1]
        j = len(rows)
        times.append(grid.t[n])
        states, outputs = ddim_row(grid, n)
        rows.append(({j: states[n]}, {j: outputs[n]}))
        if bool(torch.isinf(grid.lam[n : n + 2]).any()):
            continue
        times.append(grid.t[n + 1])
        half = (s_next - s * a_next / a) / 2
        rows.append(
            (
                {j: a_next / a + half / s, j + 1: half / s_next},
                {j: -half * a / s, j + 1: -half * a_next / s_next},
            )
        )
    return Table.from_rows(torch.stack(times), rows)
