"""Which table a pipeline runs, in the pipeline's own form of states and its own time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.artefact import Artefact
from gas.catalogue import SOLVERS, Classical
from gas.grids import as_grid
from gas.integrations.diffusers.process import Process
from gas.integrations.form import ending_in_data, sigma_form
from gas.names import named
from gas.schedule import Flow, Schedule
from gas.table import Table

__all__ = [
    "Plan",
    "base_of",
    "classical_plan",
    "even_times",
    "grid_plan",
    "learned_plan",
    "levels",
    "same_schedule",
    "shifted",
    "table_end",
]

# What stands in where nothing is said: the order that guidance bears.
_DEFAULT_SOLVER = "unipc-2-bh2"


@dataclass(frozen=True)
class Plan:
    """A table ready to run in a pipeline.

    Attributes:
        table: in the pipeline's form of states.
        t: ``(N,)``, the pipeline's own time at which row n asks.
        t_end: time that it ends at; ``None`` in data, its last estimate itself.
        scale: of the first state, beside the table's own: standard deviation of the pipeline's starting noise.
        label: what it is, for messages.
    """

    table: Table
    t: Tensor
    t_end: float | None
    scale: float
    label: str


def learned_plan(process: Process, artefact: Artefact, nfe: int) -> Plan:
    """Return the plan of an artefact's own table; on another schedule of the same form, at the same noise levels.

    Raises:
        ValueError: when there is no table of this NFE, or it is of a flow and the pipeline is not, or the reverse.
    """
    schedule = process.schedule if artefact.schedule is None else artefact.schedule
    table = artefact.table(nfe)
    t_end = table_end(artefact, nfe, schedule)
    if t_end is not None and not same_schedule(schedule, process.schedule):  # the same level of noise
        level = schedule.half_log_snr(torch.tensor(t_end, dtype=torch.float64))
        t_end = float(process.schedule.inverse_half_log_snr(level))
    return _in_form(process, table, schedule, t_end, f"the table of NFE {nfe}")


def table_end(artefact: Artefact, nfe: int, schedule: Schedule) -> float | None:
    """Return the time that a table ends at: its file's, or that of the noise it leaves; ``None`` where it leaves none.

    With a perfect denoiser every answer is x_0, and the last state ``c x_T + sum_j b_j x_0`` holds noise ``c sigma_T``.
    """
    if artefact.document.t_end is not None:
        return artefact.document.t_end
    table = artefact.table(nfe)
    first, *answers = table.unrolled()[-1].tolist()
    alpha, sigma = (float(part) for part in schedule(table.times[0]))
    noise, signal = first * sigma, first * alpha + sum(answers)
    if noise <= 1e-9 * abs(signal):
        return None
    return float(schedule.inverse_half_log_snr(torch.tensor(signal / noise, dtype=torch.float64).log()))


def classical_plan(
    process: Process, spec: str, nfe: int, t_end: float, shift: float, terminal: float
) -> Plan:
    """Return the plan of a classical solver ``SOLVER/GRID``; the grid ``shifted`` is that of diffusers' flows.

    Raises:
        ValueError: for an unknown name, or an NFE that the solver cannot have.
    """
    solver, _, grid = spec.partition("/")
    if grid in ("shifted", "flow_shifted"):
        return grid_plan(process, solver, even_times(nfe, shift, terminal), 0.0)
    table = Classical(solver, grid, nfe, t_end).table(process.schedule)
    return _in_form(process, table, process.schedule, t_end, spec)


def grid_plan(process: Process, solver: str, t: Tensor, t_end: float | None) -> Plan:
    """Return the plan of a classical solver that asks once at each of these times of the pipeline.

    Args:
        process: the pipeline's.
        solver: a name; Heun, which asks twice, is replaced.
        t: ``(N,)``, strictly decreasing.
        t_end: time that it ends at; with ``None``, or where the times go as far, at the last estimate itself.

    Raises:
        ValueError: when the times do not fall strictly.
    """
    built = named("solver", _DEFAULT_SOLVER if solver == "heun" else solver, SOLVERS)
    if t_end is None or float(t[-1]) <= t_end:
        table = ending_in_data(built, process.schedule, t if len(t) == 1 else as_grid(t))
    else:
        grid = as_grid(torch.cat([t, torch.tensor([t_end], dtype=torch.float64)]))
        table = built(process.schedule, grid)
    end = t_end if t_end is not None and float(t[-1]) > t_end else None
    return _in_form(process, table, process.schedule, end, f"{solver} on {len(t)} given times")


def base_of(artefact: Artefact | None, nfe: int, process: Process) -> str:
    """Return ``SOLVER/GRID`` that the nearest table's training started from, or what suits the process."""
    default = f"{_DEFAULT_SOLVER}/{'shifted' if process.kind == 'flow' else 'log_snr'}"
    if artefact is None:
        return default
    nearest = artefact.entry(min(artefact.nfes, key=lambda known: (abs(known - nfe), known)))
    solver, _, grid = (nearest.start or "").partition("/")
    known = solver in SOLVERS and grid and "," not in grid and not (solver == "heun" and nfe % 2)
    return f"{solver}/{grid}" if known else default


def even_times(nfe: int, shift: float, terminal: float) -> Tensor:
    """Return the N times that a flow pipeline asks at: even from 1 to 1/N, shifted, stretched to end at ``terminal``.

    References:
        Esser et al., arXiv 2403.03206, section 5.3.2, for the shift.
    """
    return shifted(torch.linspace(1, 1 / nfe, nfe, dtype=torch.float64), shift, terminal)


def shifted(t: Tensor, shift: float, terminal: float = 0.0) -> Tensor:
    """Return ``shift t / (1 + (shift - 1) t)``, stretched so that the last is ``terminal`` unless that is 0."""
    t = shift * t / (1 + (shift - 1) * t)
    return 1 - (1 - t) * ((1 - terminal) / (1 - t[-1])) if terminal and len(t) > 1 else t


def levels(values: Sequence[float] | Tensor, process: Process) -> Tensor:
    """Return the times of ``sigma/alpha`` levels, or of a flow's sigmas."""
    sigma = torch.as_tensor(values, dtype=torch.float64)
    return sigma if process.kind == "flow" else process.schedule.inverse_half_log_snr(-sigma.log())


def same_schedule(a: Schedule, b: Schedule) -> bool:
    """Whether two schedules have the same noise levels, up to the rounding of float32 betas."""
    t = torch.linspace(max(0.01, a.t_end, b.t_end), 0.99, 99, dtype=torch.float64)
    return isinstance(a, Flow) == isinstance(b, Flow) and bool(
        ((a.half_log_snr(t) - b.half_log_snr(t)).abs() < 1e-3).all()
    )


def _in_form(process: Process, table: Table, schedule: Schedule, t_end: float | None, label: str) -> Plan:
    """Match noise levels, then scale states: both leave a table that already fits as it is, bit for bit."""
    if isinstance(schedule, Flow) != (process.kind == "flow"):
        kinds = [type(schedule).__name__, type(process.schedule).__name__]
        raise ValueError(
            f"{label} was made for schedule {kinds[0]}, the pipeline has {kinds[1]}: no table serves both"
        )
    t = table.times
    if not same_schedule(schedule, process.schedule):
        t = process.schedule.inverse_half_log_snr(schedule.half_log_snr(t))
    if process.kind != "edm":
        return Plan(table, t, t_end, 1.0, label)
    alpha = schedule(table.times)[0]
    return Plan(sigma_form(table, alpha), t, t_end, float(1 / alpha[0]), label)
