"""The Generalized Solver: theoretical coefficients, learned corrections, learned times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gas import grids
from gas.arguments import MAX_SEED, integer, of_type
from gas.classical.dpmpp import difference_basis, dpmpp
from gas.classical.rows import Grid
from gas.errors import UserError
from gas.learned.times import (
    Numbers,
    TimedSolver,
    logits_of_times,
    set_parameters,
    shifted_times,
    unfold_shifts,
)
from gas.schedule import Schedule
from gas.table import Row, Table, require_plain

# Signs of corrections to the base's weights of (m0), (m0, E0) and (m0, D1, D2), as in the published update.
_SIGNS = {1: (-1.0,), 2: (-1.0, -1.0), 3: (-1.0, 1.0, -1.0)}


class GeneralizedSolver(TimedSolver):
    """GS: a lazy table. ``forward()`` returns it, differentiable in four groups of parameters.

    ``x_{n+1} = sum_j (a_{j,n} + a^_{j,n}) x_j + sum_j (c_{j,n} + c^_{j,n}) m_j``, where ``a, c`` are the
    coefficients of DPM-Solver++(3M) on the learned times and ``m_j`` is the data prediction at
    ``t_j + xi_j``. All corrections and shifts start at zero: a new solver is ``dpmpp(order=3)`` on the
    time-uniform grid, exactly.

    Args:
        schedule: the forward process.
        nfe: network evaluations N, at least 1.
        t_end: time that sampling ends at, in [0, 1).
        order: how many past states and predictions a step may use; ``None`` means all.
        theory: ``False`` freezes the base at its values on the first grid, so that coefficients no longer
            follow the times (the paper's ablation); corrections then act on the predictions directly.

    Attributes:
        theta: ``(N - 1,)`` logits of the times, from data to noise.
        xi: ``(N,)`` shifts of the times given to the network.
        states: ``(K, N)``; entry ``(i, n)`` corrects the weight of ``x_{n-i}`` in step n.
        outputs: ``(K, N)``; entry ``(i, n)`` corrects step n's weight of derivative estimate i (the base's
            m0, E0 or D1, D2) and, beyond the base's order, of prediction ``m_{n-i}``.
        t: the N + 1 nominal times, from 1 to ``t_end``.

    References:
        arXiv 2510.17699, equations 13, 14 and 20.

    >>> import gas
    >>> solver = gas.GeneralizedSolver(gas.VPLinear(), nfe=4, t_end=1e-3)
    >>> [round(t, 2) for t in solver.t.tolist()], solver().nfe
    ([1.0, 0.75, 0.5, 0.25, 0.0], 4)
    """

    base_states: Tensor
    base_outputs: Tensor

    def __init__(
        self, schedule: Schedule, nfe: int, t_end: float, *, order: int | None = None, theory: bool = True
    ) -> None:
        t = grids.time_uniform(schedule, nfe, t_end)
        super().__init__(schedule, t, nfe, t_end)
        order = nfe if order is None else order
        integer("order (past states and predictions a step may use)", order, 1, MAX_SEED)
        of_type("theory", theory, bool, "True or False")
        self.order, self.theory = min(order, nfe), theory
        base = dpmpp(schedule, t, order=min(3, self.order))
        self.register_buffer("base_states", base.states)
        self.register_buffer("base_outputs", base.outputs)
        self.states = nn.Parameter(torch.zeros(self.order, nfe, dtype=torch.float64))
        self.outputs = nn.Parameter(torch.zeros(self.order, nfe, dtype=torch.float64))

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
    ) -> GeneralizedSolver:
        """Build the solver of an official checkpoint's numbers (names as there).

        Args:
            schedule: the forward process.
            t_end: time that sampling ends at.
            mu_logit: N - 1 time logits, from data to noise.
            t_couple: N time shifts.
            a_diff: K lists of N; ``a_diff[i][n]`` corrects the state i steps back from ``x_n``.
            c_diff: K lists of N; likewise for derivative estimates and older predictions.
        """
        nfe, order = len(t_couple), len(a_diff)
        solver = cls(schedule, nfe, t_end, order=order)
        values = {"theta": mu_logit, "xi": t_couple, "states": a_diff, "outputs": c_diff}
        set_parameters(solver, values, f"a solver with NFE {nfe} and order {order}")
        return solver

    @classmethod
    def from_table(
        cls, schedule: Schedule, table: Table, t_end: float, *, t: Numbers | None = None, theory: bool = True
    ) -> GeneralizedSolver:
        """Build the solver that starts exactly at a given table: same times, same coefficients.

        Corrections reach every entry, so any table will do whose times are not too close together to be learned from.
        Shifts make up for differences to ``t``, the N + 1 nominal times: by default the table's own where these fall
        strictly from 1, else (Heun's repeat) the time-uniform ones.
        """
        require_plain(table, "GeneralizedSolver")
        solver = cls(schedule, table.nfe, t_end, theory=theory)
        table = table.detach()
        if t is None:
            t = torch.cat([table.times, torch.tensor([t_end], dtype=torch.float64)])
            if float(t[0]) != 1.0 or bool((t.diff() >= 0).any()):
                t = grids.time_uniform(schedule, table.nfe, t_end)
        t = grids.as_grid(t)
        if len(t) != table.nfe + 1:
            raise UserError(f"t must be {table.nfe + 1} times for a table of NFE {table.nfe}, got {len(t)}")
        with torch.no_grad():
            solver.theta.copy_(logits_of_times(t))
            solver.xi.copy_(table.times - solver.t[:-1])
            if not theory:
                base = dpmpp(schedule, solver.t, order=3)
                solver.base_states.copy_(base.states)
                solver.base_outputs.copy_(base.outputs)
            solver._correct_towards(table)
        return solver

    def _row(self, grid: Grid, n: int) -> Row:
        reach = min(n + 1, self.order)
        states = {n - i: self.states[i, n] for i in range(reach)}
        if not self.theory:
            outputs = {n - i: self.base_outputs[n, n - i] + self.outputs[i, n] for i in range(reach)}
            return {j: self.base_states[n, j] + a for j, a in states.items()}, outputs
        states[n] = states[n] + grid.sigma[n + 1] / grid.sigma[n]
        weights, basis = difference_basis(grid, n, grid.usable(n, min(3, self.order)))
        k = len(weights)
        corrected = (weights + torch.tensor(_SIGNS[k], dtype=torch.float64) * self.outputs[:k, n]) @ basis
        outputs = {n - i: corrected[i] if i < k else self.outputs[i, n] for i in range(reach)}
        return states, outputs

    @torch.no_grad()
    def _correct_towards(self, table: Table) -> None:
        """Set the corrections for which :meth:`forward` gives this table, on the current times."""
        grid = Grid.of(self.schedule, self.t)
        tau = shifted_times(self.schedule, self.t, self.xi)
        states, outputs = unfold_shifts(self.schedule, self.t[:-1], tau, table)
        for n in range(self.nfe):
            index = torch.arange(n, -1, -1)
            self.states[: n + 1, n] = states[n, index]
            self.outputs[: n + 1, n] = outputs[n, index]
            if not self.theory:
                self.states[: n + 1, n] -= self.base_states[n, index]
                self.outputs[: n + 1, n] -= self.base_outputs[n, index]
                continue
            self.states[0, n] -= grid.sigma[n + 1] / grid.sigma[n]
            weights, basis = difference_basis(grid, n, grid.usable(n, min(3, self.order)))
            k = len(weights)
            wanted = torch.linalg.solve(basis.T, self.outputs[:k, n].clone())
            self.outputs[:k, n] = torch.tensor(_SIGNS[k], dtype=torch.float64) * (wanted - weights)
