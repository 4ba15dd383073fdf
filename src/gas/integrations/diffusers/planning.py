"""Planning: the table that a pipeline runs, in its own scale of states and unit of time, and whether the solver fits.

For each ``set_timesteps`` of a pipeline the :class:`Planner` returns a :class:`Plan`, which a :class:`Run` executes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas.classical.registry import SOLVERS, Classical
from gas.compatibility import differences
from gas.errors import UserError
from gas.grids.analytic import GRIDS, as_grid
from gas.integrations.diffusers.caller import times_were_passed
from gas.integrations.table_transforms import ending_in_data, sigma_form
from gas.pipelines.process import PREDICTIONS, Process, data_prediction, shift_of
from gas.registry import named
from gas.sampling import Stepper
from gas.schedule import Flow, Schedule, same_schedule
from gas.solver_file import Artefact
from gas.table import Table

__all__ = ["NetworkTimes", "Plan", "Planner", "Policy", "Run", "misfits"]

Times = Sequence[float] | Tensor

# The classical solver by default: its order is stable under guidance.
_DEFAULT_SOLVER = "unipc-2-bh2"

_CHOICES = {
    "missing_nfe": ("base", "error"),
    "schedule": ("learned", "pipeline"),
    "timestep_dtype": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Policy:
    """What to do when a pipeline wants something that was not learned; see :class:`gas.GASScheduler`.

    Raises:
        ValueError: names the argument, its value and the possible ones.
    """

    missing_nfe: str = "base"
    base: str | None = None
    schedule: str = "learned"
    timestep_dtype: str = "float32"

    def __post_init__(self) -> None:
        for key, values in _CHOICES.items():
            if getattr(self, key) not in values:
                raise UserError(f"{key} must be one of {', '.join(values)}, got {getattr(self, key)!r}")
        if self.base is not None:
            solver, _, grid = self.base.partition("/")
            named("solver", solver, SOLVERS)
            grids = {**GRIDS, "shifted": None}
            if not grid:
                raise UserError(
                    f"base must be 'SOLVER/GRID', got {self.base!r}: grids are {', '.join(sorted(grids))}"
                )
            named("grid", grid, grids)


# --- plans ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A table ready to run in a pipeline.

    Attributes:
        table: for states as the pipeline scales them.
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


def learned_plan(process: Process, artefact: Artefact, nfe: int) -> Plan:
    """Return the plan of an artefact's own table; on another schedule of the same kind, at the same noise levels.

    Raises:
        ValueError: when there is no table of this NFE, or only one of table and pipeline is of a flow.
    """
    schedule = process.schedule if artefact.schedule is None else artefact.schedule
    t_end = _table_end(artefact, nfe, schedule)
    if t_end is not None and not same_schedule(schedule, process.schedule):
        level = schedule.half_log_snr(torch.tensor(t_end, dtype=torch.float64))
        t_end = float(process.schedule.inverse_half_log_snr(level))
    return _plan(process, artefact.table(nfe), schedule, t_end, f"the table of NFE {nfe}")


def _table_end(artefact: Artefact, nfe: int, schedule: Schedule) -> float | None:
    """The time that a table ends at: its file's, or that of its remaining noise; ``None`` without any.

    With a perfect denoiser every prediction is x_0, and the last state ``c x_T + sum_j b_j x_0`` has noise
    ``c sigma_T``.
    """
    if artefact.document.t_end is not None:
        return artefact.document.t_end
    table = artefact.table(nfe)
    first, *outputs = table.unrolled()[-1].tolist()
    alpha, sigma = (float(part) for part in schedule(table.times[0]))
    noise, signal = first * sigma, first * alpha + sum(outputs)
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
        return grid_plan(process, solver, _even_times(nfe, shift, terminal), 0.0)
    table = Classical(solver, grid, nfe, t_end).table(process.schedule)
    return _plan(process, table, process.schedule, t_end, spec)


def grid_plan(process: Process, solver: str, t: Tensor, t_end: float | None) -> Plan:
    """Return the plan of a classical solver with one evaluation at each of the given times.

    Args:
        process: of the pipeline.
        solver: a name; Heun, which evaluates twice a step, is replaced by the default solver.
        t: ``(N,)``, strictly decreasing.
        t_end: time to end at; with ``None``, or when the times reach it, end with the last prediction.

    Raises:
        ValueError: when the times are not strictly decreasing.
    """
    build = named("solver", _DEFAULT_SOLVER if solver == "heun" else solver, SOLVERS)
    if t_end is not None and float(t[-1]) <= t_end:
        t_end = None
    if t_end is None:
        table = ending_in_data(build, process.schedule, t if len(t) == 1 else as_grid(t))
    else:
        table = build(process.schedule, as_grid(torch.cat([t, torch.tensor([t_end], dtype=torch.float64)])))
    return _plan(process, table, process.schedule, t_end, f"{solver} on {len(t)} given times")


def _plan(process: Process, table: Table, schedule: Schedule, t_end: float | None, label: str) -> Plan:
    """Match noise levels, then scale states; a table that fits already keeps its bits."""
    if isinstance(schedule, Flow) != (process.kind == "flow"):
        kinds = [type(schedule).__name__, type(process.schedule).__name__]
        raise UserError(
            f"{label} was made for schedule {kinds[0]}, the pipeline has {kinds[1]}: no table serves both"
        )
    t, scale = table.times, 1.0
    if not same_schedule(schedule, process.schedule):
        t = process.schedule.inverse_half_log_snr(schedule.half_log_snr(t))
    if process.kind == "edm":
        alpha = schedule(table.times)[0]
        table, scale = sigma_form(table, alpha), float(1 / alpha[0])
    return Plan(table=table, t=t, t_end=t_end, scale=scale, label=label)


# --- times ----------------------------------------------------------------------------------------------


def _even_times(nfe: int, shift: float, terminal: float) -> Tensor:
    """The N times of a flow pipeline: even from 1 to 1/N, shifted, stretched to end at ``terminal``.

    References:
        Esser et al., arXiv 2403.03206, section 5.3.2, for the shift.
    """
    return _shifted(torch.linspace(1, 1 / nfe, nfe, dtype=torch.float64), shift, terminal)


def _shifted(t: Tensor, shift: float, terminal: float = 0.0) -> Tensor:
    """``shift t / (1 + (shift - 1) t)``, stretched so that the last is ``terminal`` unless that is 0."""
    t = shift * t / (1 + (shift - 1) * t)
    return 1 - (1 - t) * ((1 - terminal) / (1 - t[-1])) if terminal and len(t) > 1 else t


@dataclass(frozen=True)
class NetworkTimes:
    """The network's time at each time of a pipeline.

    ``t M`` for flows as a rule. CogView4's network takes the time before the shift: its pipeline passes ``sigmas``,
    which are then shifted, and ``timesteps``, which are not. Between those, the network's time is interpolated.

    Args:
        process: of the pipeline.
        timesteps: ``(N,)``, the network's times at ``sigmas`` ``(N,)``; ``None`` unless the pipeline passes both.
        shift: of the sigmas.
    """

    process: Process
    timesteps: Times | None = None
    sigmas: Times | None = None
    shift: float = 1.0

    def at(self, t: Tensor) -> Tensor:
        """Return the network's float time at ``t``, float64."""
        if self.timesteps is None:
            return self.process.network_time(t)
        return _interpolate(t / (self.shift - (self.shift - 1) * t), *self._knots)

    def inverse(self, network_time: Tensor) -> Tensor:
        """Return the time ``t`` of a network's time."""
        if self.timesteps is None:
            return self.process.time(network_time)
        return _shifted(_interpolate(network_time, *reversed(self._knots)), self.shift)

    @property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Sigmas before the shift and the network's times, ascending from 0 to at least 1."""
        ends = [(0.0, 0.0), (1.0, float(self.process.steps))]
        sigmas, timesteps = (torch.as_tensor(values).tolist() for values in (self.sigmas, self.timesteps))
        knots = sorted({*ends, *zip(sigmas, timesteps, strict=True)})
        return np.array([sigma for sigma, _ in knots]), np.array([time for _, time in knots])


def _interpolate(x: Tensor, knots: np.ndarray, values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.interp(x.numpy(), knots, values))


# --- the choice of a plan -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planner:
    """Chooses the plans of one scheduler."""

    process: Process
    artefact: Artefact | None
    policy: Policy
    config: Mapping[str, Any]
    _plans: dict[int, Plan] = field(default_factory=dict, init=False, repr=False, compare=False)

    def plan(
        self, nfe: int | None, timesteps: Times | None, sigmas: Times | None, mu: float | None
    ) -> tuple[Plan, list[str]]:
        """Return the plan for the arguments of a pipeline's ``set_timesteps``, and warnings.

        Raises:
            ValueError: when nothing gives the number of steps, two arguments disagree on it, or there is no such table.
        """
        if timesteps is not None and sigmas is not None:
            if self.process.kind != "flow":
                raise UserError(
                    "timesteps and sigmas say the same of a model that is no flow: pass one of them"
                )
            if len(timesteps) != len(sigmas):
                raise UserError(
                    f"timesteps and sigmas must be equally many, got {len(timesteps)} and {len(sigmas)}"
                )
            timesteps = None  # they belong to the network alone: see NetworkTimes
        given = timesteps if timesteps is not None else sigmas
        if given is not None:
            count = len(given) - (sigmas is not None and float(given[-1]) == 0)
            if nfe not in (None, count):
                raise UserError(f"num_inference_steps is {nfe} but {count} timesteps or sigmas were passed")
            nfe, given = count, torch.as_tensor(given[:count], dtype=torch.float64)
        if nfe is None or nfe < 1:
            raise UserError(f"num_inference_steps must be at least 1, got {nfe}")
        shift, terminal = shift_of(self.config, mu), self.config.get("shift_terminal") or 0.0
        if given is not None and self.policy.schedule == "pipeline":
            if timesteps is not None:
                t = self.process.time(given)
            elif self.process.kind == "flow":
                t = _shifted(given, shift, terminal)
            else:
                t = self.process.schedule.inverse_half_log_snr(-given.log())
            t_end = 0.0 if self.process.kind == "flow" else None  # as in diffusers, whose last level is 0
            return grid_plan(self.process, self._base(nfe).partition("/")[0], t, t_end), []
        notes = self._ignored_times("sigmas" if timesteps is None else "timesteps", given)
        if self.artefact is not None and nfe in self.artefact.nfes:
            if nfe not in self._plans:  # cached, so that its coefficients are read once
                self._plans[nfe] = learned_plan(self.process, self.artefact, nfe)
            return self._plans[nfe], notes
        return self._classical(nfe, shift, terminal, notes)

    def from_the_middle(self, plan: Plan, n: int) -> tuple[Plan, str]:
        """Return the base solver, started afresh at the n-th time of a plan, and a warning.

        Raises:
            ValueError: when the plan's times do not decrease, so that no solver can be built on them.
        """
        solver = self._base(len(plan.t)).partition("/")[0]
        rest = grid_plan(self.process, solver, plan.t[n:], plan.t_end)
        return rest, (
            f"this run starts at step {n} of {len(plan.t)}, where {plan.label} lacks its history: "
            f"{solver} does the rest, at the same times"
        )

    def _base(self, nfe: int) -> str:
        """``SOLVER/GRID`` of the policy, or where the training of the nearest table started, or a default."""
        default = f"{_DEFAULT_SOLVER}/{'shifted' if self.process.kind == 'flow' else 'log_snr'}"
        if self.policy.base or self.artefact is None:
            return self.policy.base or default
        nearest = self.artefact.entry(min(self.artefact.nfes, key=lambda n: (abs(n - nfe), n)))
        solver, _, grid = (nearest.start or "").partition("/")
        is_usable = solver in SOLVERS and grid and "," not in grid and not (solver == "heun" and nfe % 2)
        return f"{solver}/{grid}" if is_usable else default

    def _classical(self, nfe: int, shift: float, terminal: float, notes: list[str]) -> tuple[Plan, list[str]]:
        """The base solver, for an NFE without a table."""
        artefact, spec, t_end = self.artefact, self._base(nfe), self.process.t_end
        if artefact is not None:
            reason = f"{artefact.source} has no table for NFE {nfe}; it has NFE {', '.join(map(str, artefact.nfes))}"
            if self.policy.missing_nfe == "error":
                raise UserError(reason)
            notes = [*notes, f"{reason}: running {spec} instead (missing_nfe='base')"]
            t_end = t_end if artefact.document.t_end is None else artefact.document.t_end
        return classical_plan(self.process, spec, nfe, t_end, shift, terminal), notes

    def _ignored_times(self, name: str, given: Tensor | None) -> list[str]:
        """A warning of times that are not used, unless they are those that a pipeline passes by itself."""
        if given is None or (
            name == "sigmas" and torch.allclose(given, _even_times(len(given), 1.0, 0.0), atol=1e-3)
        ):
            return []
        if not times_were_passed():
            return []
        return [
            f"of the {name} passed only the number, {len(given)}, is used: the solver has its own "
            "(schedule='learned'; schedule='pipeline' runs a classical solver at yours)"
        ]


class Run:
    """Executes a plan, on the states that the pipeline really has.

    The rows are not folded: inpainting and callbacks change states between steps, and a folded table would not weigh
    the changed ones.

    Args:
        plan: to execute, from its first row on.
        process: of the pipeline.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        p, q = process.conversion(plan.t)
        self._weights = iter(list(zip(p.tolist(), q.tolist(), strict=True)))
        self._stepper = Stepper(plan.table)

    def step(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the prediction of x_0, in the dtype of ``y``; see :class:`gas.Stepper`.

        Args:
            output: of the network, of the shape of ``y``.
            y: the state at which it was evaluated.
        """
        self._stepper.check(y, output)
        self._stepper.add_state(y)
        p, q = next(self._weights)
        wide = y.dtype if y.dtype.itemsize > 2 else torch.float32
        d = data_prediction(output.to(wide), y, p, q)
        return self._stepper.next_state(d), d.to(y.dtype)


def misfits(
    artefact: Artefact | None,
    process: Process,
    *,
    guidance: float | None = None,
    shift: float | None = None,
    sample_shape: Sequence[int] | None = None,
) -> list[str]:
    """Return the differences between a pipeline and what the solver was made for; unknown properties do not count.

    Args:
        artefact: the solver.
        process: of the pipeline.
        guidance: guidance scale of the pipeline's call.
        shift: a flow's shift for the resolution of this call.
        sample_shape: of one state, without the batch.
    """
    if artefact is None:
        return []
    facts: dict[str, Any] = {"shift": shift, "sample_shape": sample_shape}
    if (artefact.document.model or {}).get("prediction") in PREDICTIONS:
        facts = {"prediction": process.prediction, **facts}
    facts = {name: value for name, value in facts.items() if value is not None}
    # An EDM network takes noise levels, so any VP schedule of times fits.
    schedule = None if process.kind == "edm" else process.schedule
    return differences(artefact.document, facts, schedule, guidance, user="this pipeline")
