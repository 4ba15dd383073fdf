"""Learned times, the base of solvers: stick breaking, and shifts of the times given to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gas.classical.rows import Grid
from gas.errors import UserError
from gas.schedule import Schedule, earliest_time
from gas.table import Row, Table

Numbers = Sequence[float] | Tensor

# Of the authors' code: keeps every time a share of 1e-5 away from its neighbors.
_SQUEEZE = 1e-5


def times_of_logits(logits: Tensor, t_end: float) -> Tensor:
    """Return the N + 1 times of N - 1 logits, strictly decreasing from 1 to ``t_end``.

    With ``m_j = sigmoid(logits_j)`` squeezed into ``[1e-5, 1 - 1e-5]``, the interior times from data to
    noise are ``1 - (1 - t_end) prod_{i<=j} m_i``: each breaks off a share of the rest up to 1.

    References:
        arXiv 2510.17699, equation 14; order and squeeze as in the authors' code.
    """
    m = torch.sigmoid(logits) * (1 - 2 * _SQUEEZE) + _SQUEEZE
    interior = (1 - torch.cumprod(m, dim=0)) * (1 - t_end) + t_end
    ends = torch.tensor([1.0, t_end], dtype=torch.float64)
    return torch.cat([ends[:1], interior.flip(0), ends[1:]])


def logits_of_times(t: Tensor) -> Tensor:
    """Return the logits that :func:`times_of_logits` maps to ``t`` (N + 1 times from 1 to t_end)."""
    left = torch.cat([torch.ones(1, dtype=torch.float64), (1 - t[1:-1].flip(0)) / (1 - t[-1])])
    share = (left[1:] / left[:-1] - _SQUEEZE) / (1 - 2 * _SQUEEZE)
    if not bool(((share > 0) & (share < 1)).all()):
        raise UserError(f"times are too close together to be learned from: {t.tolist()}")
    return torch.logit(share)


def shifted_times(schedule: Schedule, t: Tensor, xi: Tensor) -> Tensor:
    """Return ``tau = t + xi``, the times given to the network, clamped to the schedule's range.

    Where ``alpha_t = 0`` (rectified flow at t = 1) a shift has no finite meaning and is ignored.
    """
    alpha, _ = schedule(t.detach())
    floor = earliest_time(schedule, float(t[-1].detach()))
    moved = (t[:-1] + xi).clamp(min=floor, max=schedule.t_max)
    return torch.where(alpha[:-1] > 0, moved, t[:-1])


def _shift(schedule: Schedule, t: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and q of the shifted data prediction ``m = p x + q D(x, tau)``, each ``(N,)``.

    GS evaluates the network at ``tau``, reads a noise prediction there, and turns it into a data prediction with the
    nominal ``t``: ``p = (1 - sigma_t/sigma_tau)/alpha_t``, ``q = sigma_t alpha_tau / (sigma_tau alpha_t)``.
    """
    alpha, sigma = schedule(t)
    alpha_tau, sigma_tau = schedule(tau)
    plain = alpha == 0
    safe = torch.where(plain, torch.ones_like(alpha), alpha)
    p = torch.where(plain, torch.zeros_like(alpha), (1 - sigma / sigma_tau) / safe)
    q = torch.where(plain, torch.ones_like(alpha), sigma * alpha_tau / (sigma_tau * safe))
    return p, q


def unfold_shifts(schedule: Schedule, t: Tensor, tau: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return weights of states and of shifted data predictions, each ``(N, N)``, for which a solver has this table."""
    p, q = _shift(schedule, t, tau)
    # Where q = 0 (pure noise of a flow) m does not depend on the prediction: any weight will do.
    shifted = torch.where(q == 0, torch.zeros_like(table.outputs), table.outputs / q)
    return table.states - shifted * p, shifted


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
        return self._shifted(self.t, self.nominal())

    def _shifted(self, t: Tensor, nominal: Table) -> Table:
        """Return the table at the shifted times, from the one at the N nominal times and the end."""
        tau = shifted_times(self.schedule, t, self.xi)
        p, q = _shift(self.schedule, t[:-1], tau)
        return Table(tau, nominal.states + nominal.outputs * p, nominal.outputs * q)

    def nominal(self) -> Table:
        """Return the table in shifted data predictions m, before the shifts are folded into its weights."""
        grid = Grid.of(self.schedule, self.t)
        return Table.from_rows(grid.t[:-1], [self._row(grid, n) for n in range(self.nfe)])

    def _row(self, grid: Grid, n: int) -> Row:
        """Return step n in states and shifted data predictions."""
        raise NotImplementedError


@torch.no_grad()
def set_parameters(solver: nn.Module, values: Mapping[str, Numbers | Sequence[Numbers]], label: str) -> None:
    """Copy numbers into a solver's parameters by name; ``label`` is that of the solver, for messages."""
    for name, value in values.items():
        parameter = solver.get_parameter(name)
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{name} of {label} has shape {tuple(parameter.shape)}, got {tuple(tensor.shape)}"
            )
        parameter.copy_(tensor)
