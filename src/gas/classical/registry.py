"""Classical solvers and grids by name: teachers are built from them, and learned solvers are compared with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor

from gas.arguments import MAX_NFE, integer, number
from gas.classical.deis import deis
from gas.classical.dpmpp import ddim, dpmpp, dpmpp_corrected
from gas.classical.heun import heun
from gas.classical.ipndm import ipndm
from gas.classical.unipc import unipc
from gas.errors import UserError
from gas.grids.analytic import GRIDS, as_grid
from gas.grids.dmn import dmn
from gas.grids.published import PUBLISHED
from gas.registry import named
from gas.schedule import Flow, Schedule
from gas.table import Table

__all__ = ["NAMED_GRIDS", "SOLVERS", "Classical", "candidates", "format_times", "parse_times"]

SOLVERS: dict[str, Callable[[Schedule, Tensor], Table]] = {
    "ddim": ddim,
    "dpmpp-2m": partial(dpmpp, order=2),
    "dpmpp-3m": partial(dpmpp, order=3),
    "dpmpp-3m-corrected": partial(dpmpp_corrected, order=3),
    "unipc-1-bh1": partial(unipc, order=1, variant="bh1"),
    "unipc-1-bh2": partial(unipc, order=1, variant="bh2"),
    "unipc-2-bh1": partial(unipc, order=2, variant="bh1"),
    "unipc-2-bh2": partial(unipc, order=2, variant="bh2"),
    "unipc-3-bh1": partial(unipc, order=3, variant="bh1"),
    "unipc-3-bh2": partial(unipc, order=3, variant="bh2"),
    "ipndm-2": partial(ipndm, order=2),
    "ipndm-3": partial(ipndm, order=3),
    "ipndm-4": partial(ipndm, order=4),
    "deis-2": partial(deis, order=2),
    "deis-3": partial(deis, order=3),
    "heun": heun,
}

# All grids. Those not in GRIDS are for a single model, or slow to build, and are compared only on request.
NAMED_GRIDS: dict[str, Callable[[Schedule, int, float], Tensor]] = {**GRIDS, "dmn": dmn, **PUBLISHED}


@dataclass(frozen=True)
class Classical:
    """A classical solver by name: everything but the schedule.

    Args:
        solver: a key of :data:`SOLVERS`.
        grid: a key of :data:`NAMED_GRIDS`, or the times themselves, comma-separated from 1 down to ``t_end``.
        nfe: network evaluations, an even number for Heun, which takes two a step.
        t_end: time that sampling ends at, in [0, 1).

    >>> Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=1e-3).label
    'unipc-3-bh2 / log_snr'
    """

    solver: str
    grid: str
    nfe: int
    t_end: float

    def __post_init__(self) -> None:
        named("solver", self.solver, SOLVERS)
        if not isinstance(self.grid, str) or "," not in self.grid:
            named("grid", self.grid, NAMED_GRIDS)
        integer("nfe (network evaluations)", self.nfe, 1, MAX_NFE)
        number("t_end", self.t_end, "[0, 1)")
        if self.solver == "heun" and self.nfe % 2:
            raise UserError(f"heun evaluates the network twice a step, so nfe must be even, got {self.nfe}")

    @property
    def label(self) -> str:
        """Solver and grid for display."""
        return f"{self.solver} / {'own times' if ',' in self.grid else self.grid}"

    @property
    def spec(self) -> str:
        """Solver and grid as a command-line argument: ``SOLVER/GRID``."""
        return f"{self.solver}/{self.grid}"

    def table(self, schedule: Schedule) -> Table:
        """Build the table on a schedule."""
        table = SOLVERS[self.solver](schedule, self.times(schedule))
        if table.nfe != self.nfe:
            raise UserError(f"{self.label} on {schedule} has NFE {table.nfe}, not {self.nfe}")
        return table

    def times(self, schedule: Schedule) -> Tensor:
        """Return the time grid on a schedule: one time more than the solver takes steps."""
        steps = self.nfe // 2 if self.solver == "heun" else self.nfe
        if "," not in self.grid:
            return NAMED_GRIDS[self.grid](schedule, steps, self.t_end)
        t = as_grid(parse_times(self.grid))
        if len(t) != steps + 1 or float(t[0]) != 1 or float(t[-1]) != self.t_end:
            raise UserError(
                f"a grid for {self.solver} at NFE {self.nfe} is {steps + 1} times from 1 to {self.t_end:g}, "
                f"got {len(t)} from {float(t[0]):g} to {float(t[-1]):g}"
            )
        return t

    def config(self) -> dict[str, Any]:
        """Return the fields in plain JSON values."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Classical:
        """Return the solver of :meth:`config`; further entries, such as a teacher's ``model``, are left out."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})


def format_times(t: Tensor) -> str:
    """Format times as the ``grid`` of :class:`Classical`: exactly, separated by commas."""
    return ",".join(map(repr, t.tolist()))


def candidates(
    schedule: Schedule,
    nfe: int,
    t_end: float,
    *,
    solvers: Sequence[str] = (),
    grids: Sequence[str] = (),
    times: Tensor | None = None,
) -> Iterator[tuple[Classical, Table]]:
    """Yield every classical solver on every grid at this NFE, with its table.

    Arguments as of :func:`candidate_solvers`.
    """
    for solver in candidate_solvers(schedule, nfe, t_end, solvers=solvers, grids=grids, times=times):
        yield solver, solver.table(schedule)


def candidate_solvers(
    schedule: Schedule,
    nfe: int,
    t_end: float,
    *,
    solvers: Sequence[str] = (),
    grids: Sequence[str] = (),
    times: Tensor | None = None,
) -> Iterator[Classical]:
    """Yield every classical solver on every grid at this NFE.

    Args:
        schedule, nfe, t_end: as for the grids.
        solvers: keys of :data:`SOLVERS`; all by default.
        grids: keys of :data:`NAMED_GRIDS`; by default all of ``GRIDS``, ``flow_shifted`` for flows only.
        times: ``(nfe + 1,)`` to use as the only grid instead, without Heun, which takes half as many steps.
    """
    if times is not None:
        grids = [format_times(times)]
    elif not grids:
        grids = [grid for grid in GRIDS if grid != "flow_shifted" or isinstance(schedule, Flow)]
    # At an infinite half log-SNR Heun takes Euler steps, so that its NFE is not twice its steps.
    ends = schedule.half_log_snr(1.0), schedule.half_log_snr(t_end)
    no_heun = times is not None or nfe % 2 == 1 or any(bool(end.isinf()) for end in ends)
    for solver in solvers or SOLVERS:
        if solver == "heun" and no_heun:
            continue
        for grid in grids:
            yield Classical(solver, grid, nfe, t_end)


def parse_times(text: str) -> list[float]:
    """Parse times separated by commas."""
    times = []
    for part in text.split(","):
        try:
            times.append(float(part))
        except ValueError:
            raise UserError(
                f"a grid of times is numbers separated by commas, got {part.strip()[:60]!r}"
            ) from None
    return times
