"""A schedule on a grid of times, and the rows that several classical solvers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.grids.analytic import as_grid
from gas.schedule import Schedule
from gas.table import Row, Table

Times = Tensor | Sequence[float]


@dataclass(frozen=True, eq=False)
class Grid:
    """A schedule evaluated on a grid: ``t, alpha, sigma, lam``, each ``(N + 1,)``."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    @classmethod
    def of(cls, schedule: Schedule, t: Times) -> Grid:
        """Check the times and evaluate the schedule on them."""
        t = as_grid(t)
        alpha, sigma = schedule(t)
        return cls(t, alpha, sigma, schedule.half_log_snr(t))

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    def usable(self, n: int, order: int, *, final: bool = False) -> int:
        """Return the highest order of step n up to ``order``: limited by its finite history, and by its end."""
        if bool(torch.isinf(self.lam[n + 1])):
            return 1
        finite = n + 1 - int(torch.isinf(self.lam[: n + 1]).sum())
        remaining = self.steps - n if final else order
        return max(1, min(order, finite, remaining))


def ddim_row(grid: Grid, n: int) -> Row:
    """The first-order row ``x' = (sigma'/sigma) x - alpha' expm1(-h) d_n``."""
    step = -grid.alpha[n + 1] * torch.expm1(grid.lam[n] - grid.lam[n + 1])
    return {n: grid.sigma[n + 1] / grid.sigma[n]}, {n: step}


def noise_table(grid: Grid, weights: Callable[[int], dict[int, Tensor]]) -> Table:
    """Return the table whose step n has these weights of noise predictions; steps from pure noise are DDIM's."""
    pure = (grid.alpha[:-1].detach() == 0).tolist()
    rows = [ddim_row(grid, n) if pure[n] else noise_row(grid, n, weights(n)) for n in range(grid.steps)]
    return Table.from_rows(grid.t[:-1], rows)


def noise_row(grid: Grid, n: int, weights: dict[int, Tensor]) -> Row:
    """The row ``x' = (alpha'/alpha) x + sum_j w_j eps_j`` in states and data predictions."""
    states = {j: w / grid.sigma[j] for j, w in weights.items()}
    outputs = {j: -w * grid.alpha[j] / grid.sigma[j] for j, w in weights.items()}
    return added(states, {n: grid.alpha[n + 1] / grid.alpha[n]}), outputs


def added(first: dict[int, Tensor], second: dict[int, Tensor]) -> dict[int, Tensor]:
    """Sum of two sparse rows."""
    return first | {j: first[j] + weight if j in first else weight for j, weight in second.items()}
