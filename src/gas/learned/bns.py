"""BNS: every number of a folded table learned, without assumptions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gas import grids
from gas.classical.dpmpp import dpmpp
from gas.schedule import Schedule, earliest_time
from gas.table import Table, refuse_residuals


class BNS(nn.Module):
    """A lazy table whose parameters are the table: ``x_{n+1} = alpha_n x_T + sum_{j<=n} beta_{n,j} d_j``.

    Past states are themselves combinations of ``x_T`` and predictions, so that no solver has more than these
    N (N + 5) / 2 numbers. A new solver is ``dpmpp(order=3)`` on the time-uniform grid, folded. One that starts at a
    table with branches (:meth:`gas.Table.guided`) evaluates the same branches.

    Arguments as for :class:`gas.GeneralizedSolver`; the schedule only bounds the times.

    Attributes:
        times: ``(N,)`` given to the network, clamped to half of ``t_end`` and the schedule's latest.
        alpha: ``(N,)`` weights of ``x_T``.
        beta: ``(N, N)``; entry ``(n, j)`` is step n's weight of ``d_j``, of no effect above the diagonal.

    References:
        Shaul et al., arXiv 2403.01329, section 3 (the form), in data predictions in place of velocities:
        these are combinations of ``x_t`` and ``d``, so that the solvers are the same.
    """

    def __init__(self, schedule: Schedule, nfe: int, t_end: float) -> None:
        super().__init__()
        start = dpmpp(schedule, grids.time_uniform(schedule, nfe, t_end), order=3).folded()
        self.schedule, self.t_end = schedule, float(t_end)
        self.times = nn.Parameter(start.times)
        self.alpha = nn.Parameter(start.states[:, 0].clone())
        self.beta = nn.Parameter(start.outputs.contiguous())
        self.branches: tuple[str, ...] | None = None

    @classmethod
    def from_table(cls, schedule: Schedule, table: Table, t_end: float) -> BNS:
        """Build the solver that starts exactly at a given table: any will do."""
        refuse_residuals(table, "BNS")
        solver, folded = cls(schedule, table.nfe, t_end), table.detach().folded()
        with torch.no_grad():
            solver.times.copy_(folded.times)
            solver.alpha.copy_(folded.states[:, 0])
            solver.beta.copy_(folded.outputs)
        solver.branches = folded.branches
        return solver

    @property
    def nfe(self) -> int:
        """Network evaluations N."""
        return len(self.times)

    @property
    def t(self) -> Tensor:
        """The N times and the end, ``t_end``."""
        return torch.cat([self._clamped(), self.times.new_tensor([self.t_end])])

    def forward(self) -> Table:
        """Return the table of the current parameters."""
        states = torch.nn.functional.pad(self.alpha[:, None], (0, self.nfe - 1))
        return Table(self._clamped(), states, self.beta.tril(), self.branches)

    def _clamped(self) -> Tensor:
        return self.times.clamp(min=earliest_time(self.schedule, self.t_end), max=self.schedule.t_max)
