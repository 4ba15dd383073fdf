"""Planning: the table that a pipeline runs, in its own scale of states and unit of time, and whether the solver fits.

For each ``set_timesteps`` of a pipeline the :class:`Planner` returns a :class:`Plan`, which a :class:`Run` executes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas.arguments import MAX_NFE, integer, number, of_type
from gas.classical.registry import SOLVERS, Classical
from gas.errors import UserError
from gas.grids.analytic import GRIDS, as_grid
from gas.integrations.diffusers.caller import times_were_passed
from gas.integrations.table_transforms import ending_in_data, sigma_form
from gas.pipelines.process import Process, data_prediction, numbers, shift_of
from gas.registry import named
from gas.sampling import Stepper
from gas.schedule import Flow, Schedule, same_schedule, without_rounding
from gas.solver_file import Artefact
from gas.table import Table

Times = Sequence[float] | Tensor

# The classical solver by default: its order is stable under guidance.
_DEFAULT_SOLVER = "unipc-2-bh2"

_CHOICES = {
    "missing_nfe": ("base", "error"),
    "schedule": ("learned", "pipeline"),
    "timestep_dtype": ("float32", "bfloat16", "float16"),
}


def check_policy(config: Mapping[str, Any]) -> None:
    """Refuse arguments of :class:`gas.GASScheduler` that say what to do about steps and times that were not learned."""
    for key, values in _CHOICES.items():
        if config[key] not in values:
            raise UserError(f"{key} must be one of {', '.join(values)}, got {config[key]!r}")
    for key, interval in (("guidance_scale", "(-inf, inf)"), ("shift_terminal", "[0, 1)")):
        if config[key] is not None:
            number(key, config[key], interval)
    if config["base"] is not None:
        of_type("base", config["base"], str, "'SOLVER/GRID'")
        solver, _, grid = config["base"].partition("/")
        named("solver", solver, SOLVERS)
        grids = {**GRIDS, "shifted": None}
        if not grid:
            raise UserError(
                f"base must be 'SOLVER/GRID', got {config['base']!r}: grids are {', '.join(sorted(grids))}"
            )
        named("grid", grid, grids)


@dataclass(frozen=True)
class Plan:
    """A table ready to run in a pipeline, for states as that scales them.

    Attributes:
        t: ``(N,)``, the pipeline's time of each row.
        t_end: time that the table ends at; ``None`` when it ends with its last prediction of the data.
        scale: standard deviation of the pipeline's starting noise.
        label: for messages.
    """

    table: Table
    t: Tensor
    t_end: float | None
    scale: float
    label: str


@dataclass(frozen=True)
class Planner:
    """Chooses the plans of one scheduler; ``branched`` ones count forward passes."""

    process: Process
    artefact: Artefact | None
    config: Mapping[str, Any]
    warn: Callable[[str], None]
    branched: bool = False

    def plan(self, nfe: int | None, timesteps: Times | None, sigmas: Times | None, mu: float | None) -> Plan:
        """Return the plan for the arguments of a pipeline's ``set_timesteps``.

        Raises:
            ValueError: when nothing gives the number of steps, two arguments disagree on it, or there is no such table.
        """
        if self.artefact is not None and not self.branched:
            self.artefact.check_nfes("a pipeline without a BranchGuider")
        if timesteps is not None and sigmas is not None:
            if self.process.kind != "flow":
                raise UserError("timesteps and sigmas are the same but for flows: pass one of them")
            if len(timesteps) != len(sigmas):
                raise UserError(
                    f"timesteps and sigmas must be equally many, got {len(timesteps)} and {len(sigmas)}"
                )
            timesteps = None  # they belong to the network alone: see UnshiftedTimes
        given = timesteps if timesteps is not None else sigmas
        if given is not None:
            given = numbers("sigmas" if timesteps is None else "timesteps", given)
            count = len(given) - (sigmas is not None and float(given[-1]) == 0)
            if nfe not in (None, count):
                raise UserError(f"num_inference_steps is {nfe} but {count} timesteps or sigmas were passed")
            nfe, given = count, given[:count]
        nfe = integer("num_inference_steps", nfe, 1, MAX_NFE)
        if self.branched:
            return self._branched(nfe)
        shift, terminal = shift_of(self.config, mu), self.config.get("shift_terminal") or 0.0
        if given is not None and self.config["schedule"] == "pipeline":
            return self._at_given_times(given, timesteps is not None, shift, terminal)
        if given is not None and times_were_passed():
            self._warn_of_ignored("sigmas" if timesteps is None else "timesteps", given)
        if self.artefact is not None and nfe in self.artefact.nfes:
            return self._learned(self.artefact, self.artefact.table(nfe), f"NFE {nfe}")
        return self._classical(nfe, shift, terminal)

    def from_the_middle(self, plan: Plan, n: int) -> Plan:
        """Return the base solver, started afresh at the n-th time of a plan."""
        if plan.table.branches is not None:
            raise UserError(f"a table with branches runs from its first row, got a start at step {n}")
        solver, t = _at_each_time(self._base(len(plan.t))), plan.t[n:]
        self.warn(
            f"this run starts at step {n} of {len(plan.t)}, where {plan.label} lacks its history: "
            f"{solver} does the rest, at the same times"
        )
        # Heun's table and learned ones may repeat a time, or go back: such a row leaves the state as it is.
        reached = t.cummin(0).values
        is_new = torch.cat([torch.ones(1, dtype=torch.bool), reached.diff() < 0])
        run = self._on_grid(solver, reached[is_new], plan.t_end)
        return replace(run, table=_with_idle_rows(run.table, is_new), t=reached)

    def _base(self, nfe: int) -> str:
        """``SOLVER/GRID`` of the config, or where the training of the nearest table started, or a default."""
        default = f"{_DEFAULT_SOLVER}/{'shifted' if self.process.kind == 'flow' else 'log_snr'}"
        if self.config["base"] or self.artefact is None:
            return self.config["base"] or default
        nearest = self.artefact.entry(min(self.artefact.nfes, key=lambda n: (abs(n - nfe), n)))
        solver, _, grid = (nearest.start or "").partition("/")
        is_usable = solver in SOLVERS and grid and "," not in grid and not (solver == "heun" and nfe % 2)
        return f"{solver}/{grid}" if is_usable else default

    def _warn_of_ignored(self, name: str, given: Tensor) -> None:
        """Warn of times that are not used, unless they are those that a pipeline passes by itself."""
        if name == "timesteps" or not torch.allclose(given, _even_times(len(given), 1.0, 0.0), atol=1e-3):
            self.warn(
                f"of the {name} passed only the number, {len(given)}, is used: the solver has its own "
                "(schedule='learned'; schedule='pipeline' runs a classical solver at yours)"
            )

    def _branched(self, forwards: int) -> Plan:
        """The artefact's table of so many forward passes."""
        artefact = self.artefact
        if artefact is None or forwards not in artefact.forwards:
            has = (
                "no solver file" if artefact is None else f"{artefact.source}, which has {artefact.forwards}"
            )
            raise UserError(
                f"a BranchGuider runs tables with branches, and {forwards} forward passes were asked of {has}"
            )
        return self._learned(artefact, artefact.table(forwards=forwards), f"{forwards} forward passes")

    def _learned(self, artefact: Artefact, table: Table, label: str) -> Plan:
        """The artefact's own table; on another schedule of the same kind, at the same noise levels."""
        schedule = self.process.schedule if artefact.schedule is None else artefact.schedule
        t_end = _table_end(artefact, table, schedule)
        if t_end is not None and not same_schedule(schedule, self.process.schedule):
            level = schedule.half_log_snr(torch.tensor(t_end, dtype=torch.float64))
            t_end = float(self.process.schedule.inverse_half_log_snr(level))
        return self._plan(table, schedule, t_end, f"the table of {label}")

    def _classical(self, nfe: int, shift: float, terminal: float) -> Plan:
        """The base solver, for an NFE without a table."""
        artefact, t_end = self.artefact, self.process.t_end
        solver, _, grid = self._base(nfe).partition("/")
        is_shifted = grid in ("shifted", "flow_shifted")  # that of diffusers' flows
        solver = _at_each_time(solver) if is_shifted else solver
        spec = f"{solver}/{grid}"
        if artefact is not None:
            reason = f"{artefact.source} has no table for NFE {nfe}; it has NFE {', '.join(map(str, artefact.nfes))}"
            if self.config["missing_nfe"] == "error":
                raise UserError(reason)
            self.warn(f"{reason}: running {spec} instead (missing_nfe='base')")
            t_end = t_end if artefact.document.t_end is None else artefact.document.t_end
        if is_shifted:
            return self._on_grid(solver, _even_times(nfe, shift, terminal), 0.0)
        table = Classical(solver, grid, nfe, t_end).table(self.process.schedule)
        return self._plan(table, self.process.schedule, t_end, spec)

    def _at_given_times(self, given: Tensor, are_timesteps: bool, shift: float, terminal: float) -> Plan:
        """The base solver at the times or levels that the pipeline passed, ending as in diffusers, at level 0."""
        solver = _at_each_time(self._base(len(given)))
        is_flow = self.process.kind == "flow"
        if are_timesteps:
            t = self.process.time(given)
        elif is_flow:
            t = _shifted(given, shift, terminal)
        else:
            t = self.process.schedule.inverse_half_log_snr(-given.log())
        return self._on_grid(solver, t, 0.0 if is_flow else None)

    def _on_grid(self, solver: str, t: Tensor, t_end: float | None) -> Plan:
        """A classical solver with one evaluation at each of the decreasing times ``t`` ``(N,)``.

        It ends at ``t_end``; with ``None``, or when the times reach it, with the last prediction.
        """
        build, schedule, t = SOLVERS[solver], self.process.schedule, without_rounding(t)
        if t_end is None or float(t[-1]) <= t_end:
            t_end, table = None, ending_in_data(build, schedule, t if len(t) == 1 else as_grid(t))
        else:
            table = build(schedule, as_grid(torch.cat([t, torch.tensor([t_end], dtype=torch.float64)])))
        return self._plan(table, schedule, t_end, f"{solver} on {len(t)} given times")

    def _plan(self, table: Table, schedule: Schedule, t_end: float | None, label: str) -> Plan:
        """Match noise levels, then scale states; a table that fits already keeps its bits."""
        process = self.process
        if isinstance(schedule, Flow) != (process.kind == "flow"):
            raise UserError(
                f"{label} was made for schedule {type(schedule).__name__}, the pipeline has "
                f"{type(process.schedule).__name__}: no table serves both"
            )
        t, scale = table.times, 1.0
        if not same_schedule(schedule, process.schedule):
            t = process.schedule.inverse_half_log_snr(schedule.half_log_snr(t))
        if process.kind == "edm":
            alpha = schedule(table.times)[0]
            table, scale = sigma_form(table, alpha), float(1 / alpha[0])
        return Plan(table=table, t=t, t_end=t_end, scale=scale, label=label)


def _at_each_time(spec: str) -> str:
    """The solver of ``SOLVER/GRID`` if it evaluates once a step, otherwise (Heun) the default one."""
    solver = spec.partition("/")[0]
    return _DEFAULT_SOLVER if solver == "heun" else solver


def _with_idle_rows(table: Table, is_run: Tensor) -> Table:
    """The table with rows between its own, where ``is_run`` ``(M,)`` is false, that leave the state as it is."""
    rows, size = is_run.nonzero()[:, 0], len(is_run)
    states, outputs = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    states[rows] = 0.0
    states[rows[:, None], rows], outputs[rows[:, None], rows] = table.states, table.outputs
    return Table(table.times[is_run.cumsum(0) - 1], states, outputs)


def _table_end(artefact: Artefact, table: Table, schedule: Schedule) -> float | None:
    """The time that a table ends at: its file's, or that of its remaining noise; ``None`` without any.

    With a perfect denoiser every prediction is x_0, and the last state ``c x_T + sum_j b_j x_0`` has noise
    ``c sigma_T``.
    """
    if artefact.document.t_end is not None:
        return artefact.document.t_end
    first, *outputs = replace(table, residuals=None).unrolled()[-1].tolist()
    alpha, sigma = (float(part) for part in schedule(table.times[0]))
    noise, signal = first * sigma, first * alpha + sum(outputs)
    if noise <= 1e-9 * abs(signal):
        return None
    return float(schedule.inverse_half_log_snr(torch.tensor(signal / noise, dtype=torch.float64).log()))


def _even_times(nfe: int, shift: float, terminal: float) -> Tensor:
    """The N times of a flow pipeline, even from 1 to 1/N, shifted (arXiv 2403.03206) and stretched to ``terminal``."""
    return _shifted(torch.linspace(1, 1 / nfe, nfe, dtype=torch.float64), shift, terminal)


def _shifted(t: Tensor, shift: float, terminal: float = 0.0) -> Tensor:
    """``shift t / (1 + (shift - 1) t)``, stretched so that the last is ``terminal`` unless that is 0."""
    t = shift * t / (1 + (shift - 1) * t)
    return 1 - (1 - t) * ((1 - terminal) / (1 - t[-1])) if terminal and len(t) > 1 else t


class UnshiftedTimes:
    """The network's time of a flow pipeline that passes ``sigmas``, to be shifted, and unshifted ``timesteps``.

    CogView4's does. Between the given ones the network's time is interpolated.
    """

    def __init__(self, timesteps: Times, sigmas: Times, shift: float, steps: int) -> None:
        given = zip(torch.as_tensor(sigmas).tolist(), torch.as_tensor(timesteps).tolist(), strict=True)
        self._sigmas, self._times = np.array(sorted({(0.0, 0.0), (1.0, float(steps)), *given})).T
        self._shift = shift

    def network_time(self, t: Tensor) -> Tensor:
        sigmas = t / (self._shift - (self._shift - 1) * t)
        return torch.from_numpy(np.interp(sigmas.numpy(), self._sigmas, self._times))

    def time(self, network_time: Tensor) -> Tensor:
        sigmas = torch.from_numpy(np.interp(network_time.numpy(), self._times, self._sigmas))
        return _shifted(sigmas, self._shift)


class Run:
    """Executes a plan, on the states that the pipeline really has.

    The rows are not folded: inpainting and callbacks change states between steps, and a folded table would not weigh
    the changed ones.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        p, q = process.conversion(plan.t)
        self._weights = iter(list(zip(p.tolist(), q.tolist(), strict=True)))
        self._stepper = Stepper(plan.table)

    def start(self, y: Tensor) -> Tensor:
        """Return the first state as a residual of the start corrects it."""
        return self._stepper.start(y)

    def step(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the prediction of x_0 for the network's output at ``y``, in the dtype of ``y``."""
        self._stepper.check(y, output)
        self._stepper.add_state(y)
        p, q = next(self._weights)
        wide = y.dtype if y.dtype.itemsize > 2 else torch.float32
        d = data_prediction(output.to(wide), y, p, q)
        return self._stepper.next_state(d), d.to(y.dtype)
