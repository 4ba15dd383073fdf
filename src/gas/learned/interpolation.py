"""A solver for an NFE that was not trained, between two that were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gas.errors import UserError
from gas.schedule import Schedule, earliest_asked
from gas.table import Table

__all__ = ["Form", "form_of", "interpolated", "table_of_form"]

# Infinite ends of the half log-SNR (a flow's) are drawn from this far inside.
_INSIDE = 1e-4


@dataclass(frozen=True)
class Form:
    """A solver in numbers that do not depend on how many steps it takes.

    Its state n has the half log-SNR ``levels[n]`` and is asked about at ``levels[n] + told[n]``; a step is that of a
    data prediction: ``x_{n+1} = sigma'/sigma x_n - alpha' expm1(-h) sum_i w_{n,i} d_{n-i}``, ``sum_i w_{n,i} = 1``.
    Pure noise stays noise and pure signal stays signal whatever the numbers are.

    Attributes:
        levels: ``(N + 1,)``, increasing.
        told: ``(N,)``, in half log-SNR.
        weights: ``(N, N)``, entry ``(n, i)`` of the answer i steps back.
    """

    levels: Tensor
    told: Tensor
    weights: Tensor


def form_of(schedule: Schedule, table: Table, t_end: float) -> Form:
    """Return the form of a table: the levels are those of its own states, as its folded weights mix noise and signal.

    What a learned table does beside the form, the overall scale of its states and what its last step
    leaves of the noise, is dropped.

    Args:
        schedule: the forward process.
        table: the solver.
        t_end: time that sampling ends at.

    Raises:
        ValueError: when its states do not go from noise to signal step by step.
    """
    folded, ends = table.detach().folded(), _levels(schedule, torch.tensor([1.0, t_end], dtype=torch.float64))
    noise, signal = _mixture(schedule, folded)
    if not bool(((noise > 0) & (signal > 0)).all()):
        raise UserError("a state of the solver has no noise or no signal: there is no form to interpolate")
    levels = torch.cat([ends[:1], (signal / noise).log(), ends[1:]])
    if not bool((levels.diff() > 0).all()):
        raise UserError("the solver's states do not go from noise to signal: there is no form to interpolate")
    _, sigma = schedule(_times(schedule, levels, t_end))
    scale = torch.cat([noise / sigma[1:-1], torch.ones(1, dtype=torch.float64)])
    mixed = torch.cat([torch.zeros(1, table.nfe, dtype=torch.float64), folded.outputs / scale[:, None]])
    weights = torch.zeros(table.nfe, table.nfe, dtype=torch.float64)
    for n in range(table.nfe):
        step = mixed[n + 1] - sigma[n + 1] / sigma[n] * mixed[n]
        weights[n, : n + 1] = (step / step.sum())[: n + 1].flip(0)
    return Form(levels, _levels(schedule, folded.times) - levels[:-1], weights)


def table_of_form(schedule: Schedule, form: Form, t_end: float) -> Table:
    """Return the table of a form."""
    nfe = len(form.told)
    alpha, sigma = schedule(_times(schedule, form.levels, t_end))
    states, outputs = torch.zeros(2, nfe, nfe, dtype=torch.float64)
    for n in range(nfe):
        ratio = sigma[n + 1] / sigma[n]
        states[n, n] = ratio
        outputs[n, : n + 1] = (alpha[n + 1] - ratio * alpha[n]) * form.weights[n, : n + 1].flip(0)
    told = schedule.inverse_half_log_snr(form.levels[:-1] + form.told)
    return Table(told.clamp(min=earliest_asked(schedule, t_end), max=schedule.t_max), states, outputs)


def interpolated(schedule: Schedule, below: Table, above: Table, nfe: int, t_end: float) -> Table:
    """Return the table of an NFE between two others: their forms are drawn over the share of steps done and mixed.

    Args:
        schedule: the forward process.
        below: a solver of fewer calls.
        above: a solver of more calls.
        nfe: network evaluations, between those two.
        t_end: time that sampling ends at.

    Raises:
        ValueError: when ``nfe`` is not between them or one of them has no form (:func:`form_of`).
    """
    if not below.nfe < nfe < above.nfe:
        raise UserError(f"nfe must lie between {below.nfe} and {above.nfe}, got {nfe}")
    # Errors fall with powers of the step, so the share is one of steps' lengths.
    share = (1 / below.nfe - 1 / nfe) / (1 / below.nfe - 1 / above.nfe)
    first, second = (_resampled(form_of(schedule, table, t_end), nfe) for table in (below, above))
    mixed = [torch.lerp(getattr(first, name), getattr(second, name), share) for name in vars(first)]
    return table_of_form(schedule, Form(*mixed), t_end)


def _resampled(form: Form, nfe: int) -> Form:
    """The same curves at another number of steps; weights of answers that are not there yet go to the oldest."""
    lags = [_read(form.weights[:, lag], nfe) for lag in range(len(form.told))]
    weights = torch.zeros(nfe, nfe, dtype=torch.float64)
    for lag, column in enumerate(lags):
        for n in range(nfe):
            weights[n, min(lag, n)] += column[n]
    return Form(_read(form.levels, nfe + 1), _read(form.told, nfe), weights)


def _read(curve: Tensor, count: int) -> Tensor:
    """A curve over [0, 1] at so many even places."""
    place = torch.linspace(0, len(curve) - 1, count, dtype=torch.float64)
    left = place.long().clamp(max=max(len(curve) - 2, 0))
    return torch.lerp(curve[left], curve[(left + 1).clamp(max=len(curve) - 1)], place - left)


def _mixture(schedule: Schedule, folded: Table) -> tuple[Tensor, Tensor]:
    """How much noise and signal the states between start and sample have ``(N - 1,)`` each, were all answers right."""
    alpha, sigma = schedule(torch.tensor(1.0, dtype=torch.float64))
    kept = folded.states[:-1, 0]
    return kept * sigma, kept * alpha + folded.outputs[:-1].sum(1)


def _levels(schedule: Schedule, t: Tensor) -> Tensor:
    """The half log-SNR, finite at a flow's ends too."""
    level = schedule.half_log_snr(t)
    inside = t.clamp(schedule.t_min + _INSIDE, 1 - _INSIDE)
    return torch.where(level.isfinite(), level, schedule.half_log_snr(inside))


def _times(schedule: Schedule, levels: Tensor, t_end: float) -> Tensor:
    times = schedule.inverse_half_log_snr(levels)
    times[0], times[-1] = 1.0, t_end
    return times
