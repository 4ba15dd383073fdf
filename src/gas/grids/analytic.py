"""Time grids: the times of ``nfe`` steps, from t = 1 (noise) down to ``t_end`` (data), in [schedule.t_min, 1)."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gas.arguments import MAX_NFE, integer, number
from gas.errors import UserError
from gas.schedule import Schedule, check_t_end

# Where the half log-SNR is infinite (flow at t = 1 and t = 0), it is evaluated this far inside.
_INSIDE = 1e-3


def time_uniform(schedule: Schedule, nfe: int, t_end: float) -> Tensor:
    """Return ``nfe + 1`` times spaced evenly in t."""
    return _even_in_root(schedule, nfe, t_end, 1)


def time_quadratic(schedule: Schedule, nfe: int, t_end: float) -> Tensor:
    """Return ``nfe + 1`` times spaced evenly in the square root of t (denser near the data)."""
    return _even_in_root(schedule, nfe, t_end, 2)


def time_cubic(schedule: Schedule, nfe: int, t_end: float) -> Tensor:
    """Return ``nfe + 1`` times spaced evenly in the cube root of t (denser still near the data)."""
    return _even_in_root(schedule, nfe, t_end, 3)


def log_snr(schedule: Schedule, nfe: int, t_end: float) -> Tensor:
    """Return ``nfe + 1`` times spaced evenly in half log-SNR (arXiv 2206.00927, section 3.3)."""
    _check(schedule, nfe, t_end)
    first, last = finite_half_log_snr(schedule, t_end)
    steps = torch.linspace(0.0, 1.0, nfe + 1, dtype=torch.float64)
    return pinned(schedule.inverse_half_log_snr(torch.lerp(first, last, steps)), t_end)


def karras(schedule: Schedule, nfe: int, t_end: float, rho: float = 7.0) -> Tensor:
    """Return ``nfe + 1`` times spaced evenly in ``(sigma/alpha)^(1/rho)`` (arXiv 2206.00364, equation 5)."""
    _check(schedule, nfe, t_end)
    number("rho", rho, "(0, inf)")
    first, last = finite_half_log_snr(schedule, t_end)
    steps = torch.linspace(0.0, 1.0, nfe + 1, dtype=torch.float64)
    root = torch.lerp((-first / rho).exp(), (-last / rho).exp(), steps)
    return pinned(schedule.inverse_half_log_snr(-rho * root.log()), t_end)


def flow_shifted(schedule: Schedule, nfe: int, t_end: float, shift: float = 3.0) -> Tensor:
    """Return ``nfe + 1`` times spaced evenly before a flow's resolution shift ``t' = s t / (1 + (s - 1) t)``.

    For a flow, where t is sigma, these are the times of its networks' own samplers. A positive ``shift`` is s, 1 being
    the time-uniform grid; a dynamic shift is given by ``mu``, see :func:`shift_of_mu`.

    References:
        Esser et al., arXiv 2403.03206, equation 23.
    """
    _check(schedule, nfe, t_end)
    number("shift", shift, "(0, inf)")
    last = t_end / (shift - (shift - 1) * t_end)
    t = torch.linspace(1.0, last, nfe + 1, dtype=torch.float64)
    return pinned(shift * t / (1 + (shift - 1) * t), t_end)


def shift_of_mu(mu: float) -> float:
    """Return the shift ``s = exp(mu)`` of a pipeline's exponential dynamic shifting.

    >>> round(shift_of_mu(1.15), 3)
    3.158
    """
    return math.exp(mu)


GRIDS: dict[str, Callable[[Schedule, int, float], Tensor]] = {
    "time_uniform": time_uniform,
    "time_quadratic": time_quadratic,
    "time_cubic": time_cubic,
    "log_snr": log_snr,
    "karras": karras,
    "flow_shifted": flow_shifted,
}


def as_grid(t: Sequence[float] | Tensor) -> Tensor:
    """Return a user's times, two or more that strictly decrease within [0, 1], as float64 (with their gradient)."""
    try:
        grid = torch.as_tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"a time grid is a list of numbers, got {reprlib.repr(t)}") from None
    if grid.ndim != 1 or len(grid) < 2:
        raise UserError(f"a time grid is a list of at least two times, got shape {tuple(grid.shape)}")
    values = grid.detach()
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"a time grid must be finite, got {reprlib.repr(values.tolist())}")
    rising = (values.diff() >= 0).nonzero()
    if len(rising):
        i = int(rising[0])
        raise UserError(
            f"a time grid must decrease strictly, but time {i + 1} is {float(values[i + 1]):g} "
            f"after {float(values[i]):g}; list the times from noise (1) to data"
        )
    if values[0] > 1 or values[-1] < 0:
        raise UserError(f"a time grid lies within [0, 1], got {float(values[0]):g} .. {float(values[-1]):g}")
    return grid


def _even_in_root(schedule: Schedule, nfe: int, t_end: float, power: int) -> Tensor:
    _check(schedule, nfe, t_end)
    root = torch.linspace(1.0, t_end ** (1 / power), nfe + 1, dtype=torch.float64)
    return pinned(root**power, t_end)


def _check(schedule: Schedule, nfe: int, t_end: float) -> None:
    integer("nfe (network evaluations)", nfe, 1, MAX_NFE)
    number("t_end", t_end, "[0, 1)")
    check_t_end(schedule, t_end)


def pinned(t: Tensor, t_end: float) -> Tensor:
    """Set both ends exactly, against rounding and clipping of the spacing."""
    t[0], t[-1] = 1.0, t_end
    return t


def finite_half_log_snr(schedule: Schedule, t_end: float) -> tuple[Tensor, Tensor]:
    """Return the half log-SNR of both ends; of an infinite one, from slightly inside."""
    first, last = schedule.half_log_snr(1.0), schedule.half_log_snr(t_end)
    if torch.isinf(first):
        first = schedule.half_log_snr(1 - _INSIDE)
    if torch.isinf(last):
        last = schedule.half_log_snr(schedule.t_min + _INSIDE)
    return first, last
