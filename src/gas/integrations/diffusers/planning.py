"""Planning: which table a pipeline runs, in its own form of states and time, and whether the solver fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas.classical.registry import SOLVERS, Classical
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

__all__ = [
    "Choice",
    "NetworkTimes",
    "Plan",
    "Policy",
    "Run",
    "base_of",
    "classical_plan",
    "even_times",
    "grid_plan",
    "learned_plan",
    "levels",
    "misfits",
    "shifted",
    "table_end",
]

_KEYS = {
    "missing_nfe": ("base", "error"),
    "schedule": ("learned", "pipeline"),
    "timestep_dtype": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Policy:
    """What to do where a pipeline asks for something that was not learned; see :class:`gas.GASScheduler`.

    Raises:
        ValueError: names the argument, what came and what there is.
    """

    missing_nfe: str = "base"
    base: str | None = None
    schedule: str = "learned"
    timestep_dtype: str = "float32"

    def __post_init__(self) -> None:
        for key, known in _KEYS.items():
            if getattr(self, key) not in known:
                raise UserError(f"{key} must be one of {', '.join(known)}, got {getattr(self, key)!r}")
        if self.base is not None:
            solver, _, grid = self.base.partition("/")
            named("solver", solver, SOLVERS)
            grids = {**GRIDS, "shifted": None}
            if not grid:
                raise UserError(
                    f"base must be 'SOLVER/GRID', got {self.base!r}: grids are {', '.join(sorted(grids))}"
                )
            named("grid", grid, grids)


@dataclass(frozen=True)
class Choice:
    """Chooses plans for one scheduler."""

    process: Process
    artefact: Artefact | None
    policy: Policy
    config: Mapping[str, Any]
    _plans: dict[int, Plan] = field(default_factory=dict, init=False, repr=False, compare=False)

    def plan(
        self,
        nfe: int | None,
        timesteps: Sequence[float] | Tensor | None,
        sigmas: Sequence[float] | Tensor | None,
        mu: float | None,
    ) -> tuple[Plan, list[str]]:
        """Return the plan for what a pipeline hands to ``set_timesteps``, and what to warn of.

        Raises:
            ValueError: when nothing gives the number of steps, two things disagree on it, or there is no such table.
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
            timesteps = None  # what the network is told at the sigmas: see NetworkTimes
        given = timesteps if timesteps is not None else sigmas
        if given is not None:
            count = len(given) - (sigmas is not None and float(given[-1]) == 0)
            if nfe not in (None, count):
                raise UserError(f"num_inference_steps is {nfe} but {count} timesteps or sigmas were passed")
            nfe = count
        if nfe is None or nfe < 1:
            raise UserError(f"num_inference_steps must be at least 1, got {nfe}")
        shift, terminal = shift_of(self.config, mu), self.config.get("shift_terminal") or 0.0
        if given is not None and self.policy.schedule == "pipeline":
            t = self._times(given[:nfe], timesteps is not None, shift, terminal)
            t_end = 0.0 if self.process.kind == "flow" else None  # as in diffusers, the last level is 0
            return grid_plan(self.process, self._base(nfe)[0], t, t_end), []
        notes = [] if given is None else self._ignored(given[:nfe], timesteps is not None)
        if self.artefact is not None and nfe in self.artefact.nfes:
            if nfe not in self._plans:  # kept, so that the next run finds its coefficients read
                self._plans[nfe] = learned_plan(self.process, self.artefact, nfe)
            return self._plans[nfe], notes
        return self._without_table(nfe, shift, terminal, notes)

    def from_the_middle(self, plan: Plan, n: int) -> tuple[Plan, str]:
        """Return the base solver, started afresh at the n-th time of a plan, and what to say of it.

        Raises:
            ValueError: when the plan's times do not fall, so that no solver can be built on them.
        """
        solver = self._base(len(plan.t))[0]
        rest = grid_plan(self.process, solver, plan.t[n:], plan.t_end)
        return rest, (
            f"this run starts at step {n} of {len(plan.t)}, where {plan.label} lacks its history: "
            f"{solver} does the rest, at the same times"
        )

    def _base(self, nfe: int) -> tuple[str, str]:
        spec = self.policy.base or base_of(self.artefact, nfe, self.process)
        solver, _, grid = spec.partition("/")
        return solver, grid

    def _without_table(
        self, nfe: int, shift: float, terminal: float, notes: list[str]
    ) -> tuple[Plan, list[str]]:
        artefact = self.artefact
        t_end = None if artefact is None else artefact.document.t_end
        spec = "/".join(self._base(nfe))
        if artefact is not None:
            has = f"{artefact.source} has no table for NFE {nfe}; it has NFE {', '.join(map(str, artefact.nfes))}"
            if self.policy.missing_nfe == "error":
                raise UserError(has)
            notes = [*notes, f"{has}: running {spec} instead (missing_nfe='base')"]
        t_end = self.process.t_end if t_end is None else t_end
        return classical_plan(self.process, spec, nfe, t_end, shift, terminal), notes

    def _times(self, given: Sequence[float] | Tensor, told: bool, shift: float, terminal: float) -> Tensor:
        if told:
            return self.process.time(torch.as_tensor(given, dtype=torch.float64))
        t = levels(given, self.process)
        return shifted(t, shift, terminal) if self.process.kind == "flow" else t

    def _ignored(self, given: Sequence[float] | Tensor, told: bool) -> list[str]:
        """Say that handed-over times are not used, unless they are those that pipelines hand over by themselves."""
        values = torch.as_tensor(given, dtype=torch.float64)
        if not told and torch.allclose(values, even_times(len(values), 1.0, 0.0), atol=1e-3):
            return []
        if not times_were_passed():
            return []
        return [
            f"of the {'timesteps' if told else 'sigmas'} passed only the number, {len(values)}, is used: the solver "
            "has its own (schedule='learned'; schedule='pipeline' runs a classical solver at yours)"
        ]


@dataclass(frozen=True)
class NetworkTimes:
    """What a flow's network is told at each time.

    ``t M`` as a rule. CogView4's is told the time before the shift: its pipeline passes ``sigmas``, which are then
    shifted, and ``timesteps``, which are not. Between those passed the told times are interpolated.

    Args:
        process: the pipeline's.
        timesteps: ``(N,)``, told at ``sigmas`` ``(N,)``; ``None`` where the pipeline passes not both.
        shift: of the sigmas.
    """

    process: Process
    timesteps: Sequence[float] | Tensor | None = None
    sigmas: Sequence[float] | Tensor | None = None
    shift: float = 1.0

    def at(self, t: Tensor) -> Tensor:
        """Return the float time that the network is told at ``t``, float64."""
        if self.timesteps is None:
            return self.process.network_time(t)
        return _interpolated(t / (self.shift - (self.shift - 1) * t), *self._knots)

    def inverse(self, timestep: Tensor) -> Tensor:
        """Return the time ``t`` at which the network is given ``timestep``."""
        if self.timesteps is None:
            return self.process.time(timestep)
        return shifted(_interpolated(timestep, *reversed(self._knots)), self.shift)

    @property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Sigmas before the shift and told times, ascending from 0 to at least 1."""
        ends = [(0.0, 0.0), (1.0, float(self.process.steps))]
        sigmas, timesteps = (torch.as_tensor(values).tolist() for values in (self.sigmas, self.timesteps))
        knots = sorted({*ends, *zip(sigmas, timesteps, strict=True)})
        return np.array([sigma for sigma, _ in knots]), np.array([time for _, time in knots])


def _interpolated(x: Tensor, at: np.ndarray, values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.interp(x.numpy(), at, values))


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


def _in_form(process: Process, table: Table, schedule: Schedule, t_end: float | None, label: str) -> Plan:
    """Match noise levels, then scale states: both leave a table that already fits as it is, bit for bit."""
    if isinstance(schedule, Flow) != (process.kind == "flow"):
        kinds = [type(schedule).__name__, type(process.schedule).__name__]
        raise UserError(
            f"{label} was made for schedule {kinds[0]}, the pipeline has {kinds[1]}: no table serves both"
        )
    t = table.times
    if not same_schedule(schedule, process.schedule):
        t = process.schedule.inverse_half_log_snr(schedule.half_log_snr(t))
    if process.kind != "edm":
        return Plan(table, t, t_end, 1.0, label)
    alpha = schedule(table.times)[0]
    return Plan(sigma_form(table, alpha), t, t_end, float(1 / alpha[0]), label)


class Run:
    """Runs a plan from its first row on, on the states that the pipeline really has.

    The rows run as they are written, not folded: inpainting and callbacks change states between steps, and a folded
    table would not weigh them.

    Args:
        plan: the table.
        process: what the pipeline's network predicts.
    """

    def __init__(self, plan: Plan, process: Process) -> None:
        p, q = process.conversion(plan.t)
        self._weights = iter(list(zip(p.tolist(), q.tolist(), strict=True)))
        self._stepper = Stepper(plan.table)

    def step(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the estimate of the clean sample, in the dtype of ``y``.

        Nothing is kept of what is handed in or out: see :class:`gas.Stepper`.

        Args:
            output: the network's answer, of the shape of ``y``.
            y: the state it was asked at.
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
    """Return each thing in which the pipeline is not what the solver was made for; what is not known is not compared.

    Args:
        artefact: the solver.
        process: the pipeline's.
        guidance: the guidance scale that the pipeline is called with.
        shift: a flow's shift of resolution in this call.
        sample_shape: of one state, without the batch.
    """
    if artefact is None:
        return []
    facts = {"shift": shift, "sample_shape": sample_shape}
    if (artefact.document.model or {}).get("prediction") in PREDICTIONS:
        facts = {"prediction": process.prediction, **facts}
    # An EDM network is conditioned on noise levels, so that any VP schedule of times will do.
    schedule = None if process.kind == "edm" else process.schedule
    known = {name: value for name, value in facts.items() if value is not None}
    return artefact.differences(known, schedule=schedule, guidance=guidance, user="this pipeline")
