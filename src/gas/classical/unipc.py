"""UniPC: a predictor and a corrector that shares the next step's network evaluation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gas.arguments import choice, integer
from gas.classical.rows import Grid, Times, added
from gas.schedule import Schedule
from gas.table import Row, Table


def unipc(
    schedule: Schedule,
    t: Times,
    order: int = 3,
    variant: Literal["bh1", "bh2"] = "bh2",
    *,
    lower_order_final: bool = True,
) -> Table:
    """UniPC predictor-corrector in data prediction; the corrector reuses the next step's prediction.

    The corrector adds a combination of predictions to the state that the network has just been evaluated at, so it
    folds into the row of the next step, and a step stays one network evaluation.

    Args:
        order: of the predictor, 1 to 3; the corrector is one order higher.
        variant: ``B(h) = h`` (bh1) or ``expm1(h)`` (bh2).
        lower_order_final: reduce the order over the last steps, as the authors' code does.

    References:
        Zhao et al., arXiv 2302.04867, algorithms 1 and 2, equations 3 and 9.
    """
    integer("unipc order", order, 1, 3)
    choice("unipc variant", variant, ("bh1", "bh2"))
    grid = Grid.of(schedule, t)
    rows: list[Row] = []
    corrector: dict[int, Tensor] = {}
    for n in range(grid.steps):
        k = grid.usable(n, order, final=lower_order_final)
        ratio = grid.sigma[n + 1] / grid.sigma[n]
        predicted = _outputs(grid, n, k, variant, corrected=False)
        row = added({j: ratio * c for j, c in corrector.items()}, predicted)
        rows.append(({n: ratio}, row))
        corrector = {}
        if n + 1 < grid.steps and not bool(torch.isinf(grid.lam[n : n + 2]).any()):
            corrected = _outputs(grid, n, k, variant, corrected=True)
            corrector = added(corrected, {j: -c for j, c in predicted.items()})
    return Table.from_rows(grid.t[:-1], rows)


def _outputs(grid: Grid, n: int, order: int, variant: str, *, corrected: bool) -> dict[int, Tensor]:
    """Weights of the predictions in UniPC's step n, by index; ``corrected`` adds the prediction at its end."""
    lam, alpha = grid.lam, grid.alpha[n + 1]
    h = lam[n + 1] - lam[n]
    p1 = torch.expm1(-h)
    weights = {n: -alpha * p1}
    # Nodes of the differences to prediction n: past ones, and the end of the step for the corrector.
    points = [n - i for i in range(1, order)] + ([n + 1] if corrected else [])
    if not points:
        return weights
    scale = -h if variant == "bh1" else p1
    if len(points) == 1:
        rho = torch.full((1,), 0.5, dtype=torch.float64)
    else:
        r = torch.stack([(lam[j] - lam[n]) / h for j in points])
        power, phi, factorial, right = torch.arange(len(points)), p1 / -h - 1, 1, []
        for i in range(len(points)):
            right.append(phi * factorial / scale)
            factorial *= i + 2
            phi = phi / -h - 1 / factorial
        rho = torch.linalg.solve(r[None, :] ** power[:, None], torch.stack(right))
    for j, weight in zip(points, rho, strict=True):
        difference = -alpha * scale * weight * (1 if j == n + 1 else h / (lam[j] - lam[n]))
        weights = added(weights, {j: difference, n: -difference})
    return weights
