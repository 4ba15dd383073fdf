"""GITS: the time grid of least cost on a teacher's trajectories, by dynamic programming; no gradients."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

from gas import grids
from gas.arguments import MAX_BATCH, choice, integer, number
from gas.classical.ipndm import ipndm
from gas.errors import UserError
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, check_pairs
from gas.sampling import recorded_run


def gits(
    model: Model,
    pairs: Pairs,
    nfe: int,
    *,
    steps: int = 60,
    order: int = 4,
    discount: float = 1.15,
    measure: Literal["deviation", "distance"] = "deviation",
    batch: int = 64,
) -> Tensor:
    """Return the ``nfe + 1`` times of a fine grid whose Euler jumps stay nearest to the teacher's trajectories.

    ``min sum_k discount^k cost(t_k, t_{k+1})``, where the cost of a jump is the distance of an Euler step from the
    teacher's state at one time to its state at the other (:func:`jump_costs`). The result is a grid
    for any solver: ``gas.Classical(solver, gas.classical.format_times(t), nfe, model.t_end)``.

    Args:
        model: whose denoiser to call, ``steps`` times for each pair.
        pairs: noise and labels of the trajectories; targets are not used.
        nfe: network evaluations, at most ``steps``.
        steps: of the teacher, iPNDM on the Karras grid.
        order: of the teacher, 1 to 4.
        discount: factor of a jump's cost per jump before it; above 1, later jumps weigh more.
        measure: ``"deviation"``, a state's distance from the line between the ends of its trajectory, minus the
            teacher's, or plain ``"distance"`` from the teacher's state.
        batch: trajectories at once; all their states are in memory.

    Raises:
        ValueError: names the setting that is out of range.

    References:
        Chen et al., arXiv 2405.11326; the path, its discount and both measures as in the authors' code.
    """
    choice("measure", measure, ("deviation", "distance"))
    integer("nfe (at most the teacher's steps)", nfe, 1, steps)
    number("discount", discount, "(0, inf)")
    integer("batch", batch, 1, MAX_BATCH)
    check_pairs(pairs, model)
    if len(pairs) == 0:
        raise UserError("pairs must be at least one, got none")
    t = grids.karras(model.schedule, steps, model.t_end)
    total = torch.zeros(steps + 1, steps + 1, dtype=torch.float64)
    for start in range(0, len(pairs), batch):
        part = pairs.subset(slice(start, start + batch))
        total += len(part) * jump_costs(model, part, t, order=order, measure=measure)
    if bool(total.isnan().any()):
        raise UserError(
            f"the teacher's run on {steps} steps of {model.name} is not finite: choose other pairs"
        )
    return t[cheapest_path(total / len(pairs), nfe, discount)]


@torch.no_grad()
def jump_costs(
    model: Model, pairs: Pairs, t: Tensor, *, order: int = 4, measure: str = "deviation"
) -> Tensor:
    """Return the cost of every Euler jump between two times of a fine grid ``(K + 1, K + 1)``, infinite backwards.

    States are compared as ``x / alpha``, whose probability flow in ``sigma / alpha`` is straight where the noise
    estimate is constant. Jumps from ``alpha = 0`` (a flow at t = 1) go to the prediction itself, and their deviations
    are measured from the state after it.

    Args:
        model: whose denoiser to ask.
        pairs: noise and labels.
        t: K + 1 times.
        order: of the teacher, iPNDM.
        measure: as in :func:`gits`.
    """
    alpha, sigma = model.schedule(t)
    denoise, noise = model.bind(pairs.labels, pairs.guidance), pairs.noise.to(model.device)
    states, predictions = recorded_run(denoise, noise, ipndm(model.schedule, t, order))
    line = int(alpha[0] == 0)  # the first state that can be scaled
    scaled = [x / float(a) if a > 0 else x for x, a in zip(states, alpha, strict=True)]
    costs = torch.full((len(t), len(t)), torch.inf, dtype=torch.float64)
    for i, j in itertools.combinations(range(len(t)), 2):
        ratio = sigma[j] / sigma[i]
        landed = float(ratio / alpha[j]) * states[i] + float(1 - ratio * alpha[i] / alpha[j]) * predictions[i]
        if measure == "distance":
            costs[i, j] = _norm(landed - scaled[j]).mean()
        else:
            ends = scaled[line], scaled[-1]
            costs[i, j] = (_from_line(landed, *ends) - _from_line(scaled[j], *ends)).mean()
    return costs


def cheapest_path(costs: Tensor, jumps: int, discount: float = 1.0) -> list[int]:
    """Return the ``jumps + 1`` indices from first to last with least ``sum_k discount^k costs[i_k, i_{k+1}]``.

    Args:
        costs: ``(K, K)`` of going from one index to a later one, infinite elsewhere.
        jumps: at least 1, fewer than K.
        discount: factor a jump.
    """
    best, choices = costs[:, -1], []
    for _ in range(jumps - 1):
        best, choice = (costs + discount * best[None, :]).min(dim=1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, len(costs) - 1]


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm.double()


def _from_line(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the distance ``(B,)`` of points from the lines through two others."""
    along = (first - last).flatten(1)
    along = along / torch.linalg.vector_norm(along, dim=1, keepdim=True)
    offset = (x - last).flatten(1)
    return _norm(offset - (offset * along).sum(1, keepdim=True) * along)
