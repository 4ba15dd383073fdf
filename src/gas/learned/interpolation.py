"""Interpolation: a solver for an NFE without training, between two trained ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gas.errors import UserError
from gas.grids.analytic import pinned
from gas.schedule import Schedule, earliest_time
from gas.table import Table, require_plain

# Where the half log-SNR is infinite (a flow's ends), it is evaluated this far inside.
_INSIDE = 1e-4


@dataclass(frozen=True)
class StepProfile:
    """A solver in numbers that do not depend on its number of steps.

    State n has the half log-SNR ``levels[n]``; the network is evaluated at ``levels[n] + offsets[n]``. A step is
    ``x_{n+1} = sigma'/sigma x_n - alpha' expm1(-h) sum_i w_{n,i} d_{n-i}``, ``sum_i w_{n,i} = 1``.
    Pure noise stays noise and pure signal stays signal whatever the numbers are.
    """

    levels: Tensor  # (N + 1,), increasing
    offsets: Tensor  # (N,), in half log-SNR
    weights: Tensor  # (N, N), entry (n, i) of the prediction i steps back


def profile_of(schedule: Schedule, table: Table, t_end: float) -> StepProfile:
    """Return the profile of a table; the levels are those of its states, from their weights of noise and signal.

    The states must go from noise to signal step by step. Two properties of a learned table are dropped: the overall
    scale of its states and the noise that its last step leaves.
    """
    require_plain(table, "interpolation")
    folded, ends = table.detach().folded(), _levels(schedule, torch.tensor([1.0, t_end], dtype=torch.float64))
    # Noise and signal (N - 1,) of the states between start and sample, for perfect predictions.
    alpha, sigma = schedule(torch.tensor(1.0, dtype=torch.float64))
    noise = folded.states[:-1, 0] * sigma
    signal = folded.states[:-1, 0] * alpha + folded.outputs[:-1].sum(1)
    if not bool(((noise > 0) & (signal > 0)).all()):
        raise UserError("a state of the solver has no noise or no signal: it cannot be interpolated")
    levels = torch.cat([ends[:1], (signal / noise).log(), ends[1:]])
    if not bool((levels.diff() > 0).all()):
        raise UserError("the solver's states do not go from noise to signal: it cannot be interpolated")
    _, sigma = schedule(_times(schedule, levels, t_end))
    scale = torch.cat([noise / sigma[1:-1], torch.ones(1, dtype=torch.float64)])
    mixed = torch.cat([torch.zeros(1, table.nfe, dtype=torch.float64), folded.outputs / scale[:, None]])
    weights = torch.zeros(table.nfe, table.nfe, dtype=torch.float64)
    for n in range(table.nfe):
        step = mixed[n + 1] - sigma[n + 1] / sigma[n] * mixed[n]
        weights[n, : n + 1] = (step / step.sum())[: n + 1].flip(0)
    offsets = _levels(schedule, folded.times) - levels[:-1]
    return StepProfile(levels=levels, offsets=offsets, weights=weights)


def table_of_profile(schedule: Schedule, profile: StepProfile, t_end: float) -> Table:
    """Return the table of a profile."""
    nfe = len(profile.offsets)
    alpha, sigma = schedule(_times(schedule, profile.levels, t_end))
    states, outputs = torch.zeros(2, nfe, nfe, dtype=torch.float64)
    for n in range(nfe):
        ratio = sigma[n + 1] / sigma[n]
        states[n, n] = ratio
        outputs[n, : n + 1] = (alpha[n + 1] - ratio * alpha[n]) * profile.weights[n, : n + 1].flip(0)
    times = schedule.inverse_half_log_snr(profile.levels[:-1] + profile.offsets)
    return Table(times.clamp(min=earliest_time(schedule, t_end), max=schedule.t_max), states, outputs)


def interpolated(schedule: Schedule, below: Table, above: Table, nfe: int, t_end: float) -> Table:
    """Return a table of an NFE between two others: their profiles (:func:`profile_of`) are resampled and mixed."""
    if not below.nfe < nfe < above.nfe:
        raise UserError(f"nfe must lie between {below.nfe} and {above.nfe}, got {nfe}")
    # Errors are powers of the step length, so mix in proportion to that, not to the NFE.
    share = (1 / below.nfe - 1 / nfe) / (1 / below.nfe - 1 / above.nfe)
    first, second = (vars(_resample(profile_of(schedule, table, t_end), nfe)) for table in (below, above))
    mixed = {name: torch.lerp(first[name], second[name], share) for name in first}
    return table_of_profile(schedule, StepProfile(**mixed), t_end)


def _resample(profile: StepProfile, nfe: int) -> StepProfile:
    """Return the same curves at another number of steps; weights of predictions before the first go to the first."""
    lags = [_resample_curve(profile.weights[:, lag], nfe) for lag in range(len(profile.offsets))]
    weights = torch.zeros(nfe, nfe, dtype=torch.float64)
    for lag, column in enumerate(lags):
        for n in range(nfe):
            weights[n, min(lag, n)] += column[n]
    return StepProfile(
        levels=_resample_curve(profile.levels, nfe + 1),
        offsets=_resample_curve(profile.offsets, nfe),
        weights=weights,
    )


def _resample_curve(curve: Tensor, count: int) -> Tensor:
    """Interpolate a curve over [0, 1] linearly at ``count`` even places."""
    place = torch.linspace(0, len(curve) - 1, count, dtype=torch.float64)
    left = place.long().clamp(max=max(len(curve) - 2, 0))
    return torch.lerp(curve[left], curve[(left + 1).clamp(max=len(curve) - 1)], place - left)


def _levels(schedule: Schedule, t: Tensor) -> Tensor:
    """Return the half log-SNR, finite at a flow's ends too."""
    level = schedule.half_log_snr(t)
    inside = t.clamp(schedule.t_min + _INSIDE, 1 - _INSIDE)
    return torch.where(level.isfinite(), level, schedule.half_log_snr(inside))


def _times(schedule: Schedule, levels: Tensor, t_end: float) -> Tensor:
    return pinned(schedule.inverse_half_log_snr(levels), t_end)
