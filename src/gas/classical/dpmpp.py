"""DDIM and DPM-Solver++ multistep, as published and with a corrected third order."""

from __future__ import annotations

import torch
from torch import Tensor

from gas.arguments import integer
from gas.classical.rows import Grid, Times
from gas.schedule import Schedule
from gas.table import Row, Table


def ddim(schedule: Schedule, t: Times) -> Table:
    """DDIM, the exponential Euler step: ``x' = (sigma'/sigma) x - alpha' expm1(-h) d_n``.

    References:
        Song et al., arXiv 2010.02502, equation 12 (eta = 0); Lu et al., arXiv 2211.01095, section 4.1.
    """
    return dpmpp(schedule, t, order=1)


def dpmpp(schedule: Schedule, t: Times, order: int = 3) -> Table:
    """DPM-Solver++ multistep of order 1, 2 or 3, as published, without lower order at the end.

    The published third-order update uses a divided difference where it means a second derivative (half
    its value), so it converges at order 2; :func:`dpmpp_corrected` has the missing factor.

    References:
        Lu et al., arXiv 2211.01095, algorithm 2 and appendix; the third order as in the authors' code.
    """
    return _dpmpp(schedule, t, order, second_derivative=1.0)


def dpmpp_corrected(schedule: Schedule, t: Times, order: int = 3) -> Table:
    """:func:`dpmpp` with the second derivative as twice the divided difference: true third order."""
    return _dpmpp(schedule, t, order, second_derivative=2.0)


def _dpmpp(schedule: Schedule, t: Times, order: int, second_derivative: float) -> Table:
    integer("dpmpp order", order, 1, 3)
    grid = Grid.of(schedule, t)
    rows: list[Row] = []
    for n in range(grid.steps):
        weights, basis = difference_basis(grid, n, grid.usable(n, order))
        if len(weights) == 3:
            weights = torch.stack([weights[0], weights[1], second_derivative * weights[2]])
        outputs = {n - i: weight for i, weight in enumerate(weights @ basis)}
        rows.append(({n: grid.sigma[n + 1] / grid.sigma[n]}, outputs))
    return Table.from_rows(grid.t[:-1], rows)


def difference_basis(grid: Grid, n: int, order: int) -> tuple[Tensor, Tensor]:
    """Return DPM-Solver++'s weights ``(k,)`` and derivative estimates ``(k, k)`` of step n, k = ``order``.

    ``x' = (sigma'/sigma) x + weights @ basis @ (m_0, .., m_{k-1})``, newest prediction first, where with
    ``p1 = expm1(-h)``, ``p2 = p1/h + 1``, ``p3 = p2/h - 1/2`` and ``q_i = h / (lam_{n-i} - lam_{n-i-1})``
    (the published ``1/r_i``)::

        E0 = q_0 (m_0 - m_1)      D1 = E0 + q_1/(q_0 + q_1) (E0 - E1)
        E1 = q_1 (m_1 - m_2)      D2 =  q_0 q_1/(q_0 + q_1) (E0 - E1)
        k = 1: -alpha' p1 m_0     k = 2: also -alpha' p1/2 E0     k = 3: also alpha' p2 D1 - alpha' p3 D2
    """
    lam, alpha = grid.lam, grid.alpha[n + 1]
    h = lam[n + 1] - lam[n]
    p1 = torch.expm1(-h)
    newest = torch.eye(1, order, dtype=torch.float64)[0]
    if order == 1:
        return (-alpha * p1)[None], newest[None]
    q0 = h / (lam[n] - lam[n - 1])
    if order == 2:
        basis = torch.stack([newest, torch.stack([q0, -q0])])
        return torch.stack([-alpha * p1, -alpha * p1 / 2]), basis
    q1 = h / (lam[n - 1] - lam[n - 2])
    p2 = p1 / h + 1
    zero = torch.zeros_like(q0)
    e0, e1 = torch.stack([q0, -q0, zero]), torch.stack([zero, q1, -q1])
    d1 = e0 + q1 / (q0 + q1) * (e0 - e1)
    d2 = q0 * q1 / (q0 + q1) * (e0 - e1)
    basis = torch.stack([newest, d1, d2])
    return torch.stack([-alpha * p1, alpha * p2, -alpha * (p2 / h - 0.5)]), basis
