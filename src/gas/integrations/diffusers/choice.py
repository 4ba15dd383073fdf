"""The policies: which plan a pipeline gets for what it asks, and what it should be told of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas.artefact import Artefact
from gas.catalogue import SOLVERS
from gas.grids import GRIDS
from gas.integrations.diffusers.caller import times_were_passed
from gas.integrations.diffusers.plan import (
    Plan,
    base_of,
    classical_plan,
    even_times,
    grid_plan,
    learned_plan,
    levels,
    shifted,
)
from gas.integrations.diffusers.process import Process
from gas.names import named

__all__ = ["Choice", "NetworkTimes", "Policy", "shift_of"]

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
                raise ValueError(f"{key} must be one of {', '.join(known)}, got {getattr(self, key)!r}")
        if self.base is not None:
            solver, _, grid = self.base.partition("/")
            named("solver", solver, SOLVERS)
            grids = {**GRIDS, "shifted": None}
            if not grid:
                raise ValueError(
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
                raise ValueError(
                    "timesteps and sigmas say the same of a model that is no flow: pass one of them"
                )
            if len(timesteps) != len(sigmas):
                raise ValueError(
                    f"timesteps and sigmas must be equally many, got {len(timesteps)} and {len(sigmas)}"
                )
            timesteps = None  # what the network is told at the sigmas: see NetworkTimes
        given = timesteps if timesteps is not None else sigmas
        if given is not None:
            count = len(given) - (sigmas is not None and float(given[-1]) == 0)
            if nfe not in (None, count):
                raise ValueError(f"num_inference_steps is {nfe} but {count} timesteps or sigmas were passed")
            nfe = count
        if nfe is None or nfe < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {nfe}")
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
                raise ValueError(has)
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
            return self.process.told(t)
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


def shift_of(config: Mapping[str, Any], mu: float | None) -> float:
    """Return the shift of a flow's times: the config's, or what ``mu`` makes of this resolution.

    Raises:
        ValueError: when the shift depends on the resolution and the pipeline has not told ``mu``.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or 1.0)
    if mu is None:
        raise ValueError(
            "mu must be passed where use_dynamic_shifting=True: the shift depends on the resolution"
        )
    told = torch.tensor(float(mu), dtype=torch.float64)
    return float(told.exp() if config.get("time_shift_type", "exponential") == "exponential" else told)
