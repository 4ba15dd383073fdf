"""The base of learned solvers with nominal times and shifts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gas.classical.rows import Grid
from gas.learned.times import logits_of_times, shifted_table, times_of_logits
from gas.schedule import Schedule
from gas.table import Row, Table

__all__ = ["TimedSolver"]


class TimedSolver(nn.Module):
    """A lazy table on learned times: ``forward()`` returns it, with the network evaluated at ``t_n + xi_n``.

    Args:
        schedule: the forward process.
        t: nominal times to start from, down to ``t_end``.
        nfe: network evaluations N.
        t_end: time that sampling ends at.

    Attributes:
        theta: ``(len(t) - 2,)`` logits of the times between the ends, from data to noise.
        xi: ``(N,)`` shifts of the times given to the network.
    """

    def __init__(self, schedule: Schedule, t: Tensor, nfe: int, t_end: float) -> None:
        super().__init__()
        self.schedule, self.t_end = schedule, float(t_end)
        self.theta = nn.Parameter(logits_of_times(t))
        self.xi = nn.Parameter(torch.zeros(nfe, dtype=torch.float64))

    @property
    def nfe(self) -> int:
        """Network evaluations N."""
        return len(self.xi)

    @property
    def t(self) -> Tensor:
        """The nominal times, from 1 to ``t_end``; one more than steps."""
        return times_of_logits(self.theta, self.t_end)

    def forward(self) -> Table:
        """Return the table of the current parameters."""
        return shifted_table(self.schedule, self.t, self.xi, self.nominal())

    def nominal(self) -> Table:
        """Return the table in shifted data predictions m, before the shifts are folded into its weights."""
        grid = Grid.of(self.schedule, self.t)
        return Table.from_rows(grid.t[:-1], [self._row(grid, n) for n in range(self.nfe)])

    def _row(self, grid: Grid, n: int) -> Row:
        """Return step n in states and shifted data predictions."""
        raise NotImplementedError
