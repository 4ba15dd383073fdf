"""A family of solvers, one for each NFE: what one has learned starts the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gas.distill import Distilled, Report, distill
from gas.model import Model
from gas.pairs import Pairs
from gas.race import Race
from gas.schedule import Schedule
from gas.table import Table

__all__ = ["distill_family", "neighbour_grid"]

# A member with a neighbour races the neighbour's times against the two best grids; one without, against more.
_STARTS = 3


def distill_family(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfes: Sequence[int],
    *,
    race: Race | None = None,
    **options: Any,
) -> Iterator[Report]:
    """Learn a Generalized Solver for each NFE, the smallest first, with fewer network calls than one by one.

    Learned times are a grid like any other: drawn on the next NFE, they enter its race beside the two best
    classical grids, and the others need not be tried.

    Args:
        model: whose denoiser to ask.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        nfes: network evaluations of each member.
        race: how the start of each member is chosen.
        options: as for :func:`gas.distill`, for every member.

    Yields:
        The reports of :func:`gas.distill` for each member, each ended by its :class:`gas.Distilled`.
    """
    last: Table | None = None
    race = Race() if race is None else race
    for nfe in sorted(set(nfes)):
        entered = race
        if last is not None:
            near = neighbour_grid(model.schedule, last, nfe, model.t_end)
            entered = replace(race, starts=min(_STARTS, race.starts), near=near)
        for report in distill(model, pairs, validation, nfe, race=entered, **options):
            yield report
            if isinstance(report, Distilled):
                last = report.table()


def neighbour_grid(schedule: Schedule, table: Table, nfe: int, t_end: float) -> Tensor:
    """Return a grid ``(nfe + 1,)`` with the spacing of another solver's told times.

    The half log-SNR of its times is drawn over the share of steps done, and read off at more or fewer steps.

    Args:
        schedule: the forward process.
        table: the solver to take after.
        nfe: network evaluations of the grid.
        t_end: time that sampling ends at.
    """
    told = table.times.detach()[1:].clamp(min=t_end, max=1.0)
    times = torch.cat([told.new_ones(1), told, told.new_full((1,), t_end)])
    # Infinite ends (a flow's) are drawn from just inside; told times may fall back or coincide, a grid's may not.
    level = (
        schedule.half_log_snr(times.clamp(min=schedule.t_min + 1e-4, max=1 - 1e-4))
        .cummax(dim=0)
        .values.numpy()
    )
    share = np.linspace(0, 1, nfe + 1)
    drawn = np.interp(share, np.linspace(0, 1, len(level)), level)
    even = level[0] + share * (level[-1] - level[0])
    grid = schedule.inverse_half_log_snr(torch.from_numpy(0.98 * drawn + 0.02 * even))
    grid[0], grid[-1] = 1.0, t_end
    return grid
