"""LD3: learned times, theoretical coefficients of a classical solver."""

from __future__ import annotations

import torch

from gas.classical.registry import SOLVERS, Classical
from gas.learned.times import TimedSolver
from gas.schedule import Schedule
from gas.table import Table


class LD3(TimedSolver):
    """A lazy table that is a classical solver on learned times: coefficients follow the times and nothing else.

    ``forward()`` is ``base(schedule, t)`` with the network evaluated at ``t_n + xi_n``; times and shifts are
    those of :class:`gas.GeneralizedSolver`. A new solver is the base on its grid, exactly.

    Args:
        schedule, nfe, t_end: as for :class:`gas.GeneralizedSolver`.
        base: a key of :data:`gas.classical.SOLVERS`; Heun's has one nominal time for two evaluations.
        grid: where the times start, as :class:`gas.Classical` takes it.

    References:
        Tong et al., arXiv 2405.15506.

    >>> import gas
    >>> gas.LD3(gas.VPLinear(), nfe=4, t_end=1e-3, base="ipndm-2", grid="log_snr")().nfe
    4
    """

    def __init__(
        self,
        schedule: Schedule,
        nfe: int,
        t_end: float,
        *,
        base: str = "dpmpp-3m",
        grid: str = "time_uniform",
    ) -> None:
        start = Classical(base, grid, nfe, t_end)
        start.table(schedule)  # refuses an NFE that the base does not have on this schedule
        super().__init__(schedule, start.times(schedule), nfe, t_end)
        self.base = base

    def forward(self) -> Table:
        """Return the table of the current parameters."""
        t, nominal = self.t, self.nominal()
        return self._shifted(torch.cat([nominal.times, t[-1:]]), nominal)

    def nominal(self) -> Table:
        """Return the base's table, in shifted data predictions m."""
        return SOLVERS[self.base](self.schedule, self.t)
