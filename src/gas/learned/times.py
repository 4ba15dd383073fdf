"""Learnable times: stick breaking, and shifts between nominal times and those given to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gas.errors import UserError
from gas.schedule import Schedule, earliest_time
from gas.table import Table

__all__ = [
    "Numbers",
    "fold_shifts",
    "logits_of_times",
    "set_parameters",
    "shifted_table",
    "shifted_times",
    "times_of_logits",
    "unfold_shifts",
]

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
    """Return the logits that :func:`times_of_logits` maps to ``t`` (N + 1 times from 1 to t_end).

    Raises:
        UserError: when a time is closer to its neighbor than the squeeze allows.
    """
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


def shifted_table(schedule: Schedule, t: Tensor, xi: Tensor, nominal: Table) -> Table:
    """Return the table at the shifted times, from one in shifted data predictions at the nominal times.

    Args:
        schedule: the forward process.
        t: the N + 1 nominal times.
        xi: the N shifts.
        nominal: weights of states and of shifted data predictions.
    """
    tau = shifted_times(schedule, t, xi)
    return Table(tau, *fold_shifts(schedule, t[:-1], tau, nominal.states, nominal.outputs))


def fold_shifts(
    schedule: Schedule, t: Tensor, tau: Tensor, states: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn weights of shifted data predictions into weights of plain data predictions.

    GS evaluates the network at ``tau``, reads a noise prediction there, and turns it into a data prediction with the
    nominal ``t``: ``m = p x + q D(x, tau)``, ``p = (1 - sigma_t/sigma_tau)/alpha_t``,
    ``q = sigma_t alpha_tau / (sigma_tau alpha_t)``.

    Args:
        schedule: the forward process.
        t: nominal times ``(N,)``.
        tau: shifted times ``(N,)``.
        states: weights of states ``(N, N)``.
        outputs: weights of shifted data predictions m ``(N, N)``.

    Returns:
        Weights of states and of data predictions, each ``(N, N)``.
    """
    p, q = _shift(schedule, t, tau)
    return states + outputs * p, outputs * q


def _shift(schedule: Schedule, t: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule(t)
    alpha_tau, sigma_tau = schedule(tau)
    plain = alpha == 0
    safe = torch.where(plain, torch.ones_like(alpha), alpha)
    p = torch.where(plain, torch.zeros_like(alpha), (1 - sigma / sigma_tau) / safe)
    q = torch.where(plain, torch.ones_like(alpha), sigma * alpha_tau / (sigma_tau * safe))
    return p, q


def unfold_shifts(
    schedule: Schedule, t: Tensor, tau: Tensor, states: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Undo :func:`fold_shifts`."""
    p, q = _shift(schedule, t, tau)
    # Where q = 0 (pure noise of a flow) m does not depend on the prediction: any weight will do.
    shifted = torch.where(q == 0, torch.zeros_like(outputs), outputs / q)
    return states - shifted * p, shifted


Numbers = Sequence[float] | Tensor


@torch.no_grad()
def set_parameters(solver: nn.Module, values: Mapping[str, Numbers | Sequence[Numbers]], label: str) -> None:
    """Copy numbers into a solver's parameters by name.

    Args:
        solver: the module, changed in place.
        values: by parameter name, numbers of that parameter's shape.
        label: of the solver, for messages.

    Raises:
        UserError: when the numbers of a parameter have another shape.
    """
    for name, value in values.items():
        parameter = solver.get_parameter(name)
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{name} of {label} has shape {tuple(parameter.shape)}, got {tuple(tensor.shape)}"
            )
        parameter.copy_(tensor)
