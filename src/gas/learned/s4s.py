"""S4S: learned times and freely learned coefficients, with its predictor-corrector form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gas import grids
from gas.classical.dpmpp import dpmpp
from gas.classical.rows import Grid, ddim_row
from gas.errors import UserError
from gas.learned.times import Numbers, TimedSolver, logits_of_times, set_parameters
from gas.schedule import Schedule
from gas.table import Row, Table, require_plain


class S4S(TimedSolver):
    """A lazy table with free weights of predictions: ``P(x) = (sigma'/sigma) x - alpha' expm1(-h) sum_j c_{j,n} m_j``.

    With ``corrector`` the step is repeated on the predicted state with a second set of weights b in
    place of c. Times, shifts and ``m_j`` are those of :class:`gas.GeneralizedSolver`, and so are the other arguments.

    Attributes:
        predictor: ``(N, N)``; entry ``(i, n)`` is step n's weight of ``m_{n-i}``; starts at DPM-Solver++(3M)'s.
        correction: ``(N, N)`` likewise, or ``None`` without corrector.

    The corrector squares ``sigma'/sigma``, so that no weights reproduce a classical solver: it starts with a classical
    solver's weights of predictions, and with less noise in its states than their times say.

    References:
        arXiv 2502.17423, equation 7 and appendix C.1.
    """

    def __init__(self, schedule: Schedule, nfe: int, t_end: float, *, corrector: bool = False) -> None:
        t = grids.time_uniform(schedule, nfe, t_end)
        super().__init__(schedule, t, nfe, t_end)
        self.predictor = nn.Parameter(torch.zeros(nfe, nfe, dtype=torch.float64))
        self.correction = nn.Parameter(torch.zeros_like(self.predictor)) if corrector else None
        self._start_at(dpmpp(schedule, t, order=3))

    @classmethod
    def from_table(cls, schedule: Schedule, table: Table, t_end: float, *, corrector: bool = False) -> S4S:
        """Build the solver that starts at a given classical table: exactly so without corrector.

        Every classical solver scales the noise of ``x_T`` by ``sigma_n / sigma_T``, and is therefore of this form
        once its past states are substituted. Repeated times (Heun's) and another scale of the noise are refused.
        """
        require_plain(table, "S4S")
        solver, table = cls(schedule, table.nfe, t_end, corrector=corrector), table.detach()
        t = torch.cat([table.times, table.times.new_tensor([t_end])])
        if float(t[0]) != 1.0 or bool((t.diff() >= 0).any()):
            raise UserError(
                f"the table has times {[round(x, 4) for x in table.times.tolist()]}, but S4S takes one step for each, "
                f"from 1 down to {t_end:g}: start from a solver with one evaluation a step"
            )
        _, sigma = schedule(t)
        if not torch.allclose(table.unrolled()[:, 0], sigma / sigma[0], rtol=1e-6, atol=1e-9):
            raise UserError("the table's weights of x_T are not sigma_n / sigma_T, which S4S cannot change")
        with torch.no_grad():
            solver.theta.copy_(logits_of_times(t))
        solver._start_at(table)
        return solver

    @classmethod
    def from_official(
        cls,
        schedule: Schedule,
        *,
        t_end: float,
        mu_logit: Numbers,
        t_couple: Numbers,
        a_diff: Sequence[Numbers],
        c_diff: Sequence[Numbers],
    ) -> S4S:
        """Build the solver of an official checkpoint without theory: ``c_diff`` predicts, ``a_diff`` corrects."""
        solver = cls(schedule, len(t_couple), t_end, corrector=True)
        values = {"theta": mu_logit, "xi": t_couple, "predictor": c_diff, "correction": a_diff}
        set_parameters(solver, values, f"an S4S solver with NFE {solver.nfe}")
        return solver

    @torch.no_grad()
    def _start_at(self, table: Table) -> None:
        """Set the weights for which every state has this table's weights of predictions."""
        grid, outputs = Grid.of(self.schedule, self.t), table.unrolled()[:, 1:]
        for n in range(self.nfe):
            states, weights = ddim_row(grid, n)
            ratio, step, index = states[n], weights[n], torch.arange(n, -1, -1)
            self.predictor[: n + 1, n] = ((outputs[n + 1] - ratio * outputs[n]) / step)[index]
            if self.correction is not None:
                self.correction[: n + 1, n] = ((1 - ratio) * outputs[n + 1] / step)[index]

    def _row(self, grid: Grid, n: int) -> Row:
        states, outputs = ddim_row(grid, n)
        ratio, step = states[n], outputs[n]
        predicted = {n - i: step * self.predictor[i, n] for i in range(n + 1)}
        if self.correction is None:
            return {n: ratio}, predicted
        corrected = {n - i: ratio * predicted[n - i] + step * self.correction[i, n] for i in range(n + 1)}
        return {n: ratio * ratio}, corrected
