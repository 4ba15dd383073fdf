"""iPNDM: Adams-Bashforth on noise predictions, whatever the spacing."""

from __future__ import annotations

from torch import Tensor

from gas.arguments import integer
from gas.classical.rows import Grid, Times, noise_table
from gas.schedule import Schedule
from gas.table import Table

_ADAMS_BASHFORTH = {
    1: [1.0],
    2: [1.5, -0.5],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def ipndm(schedule: Schedule, t: Times, order: int = 4) -> Table:
    """Improved PNDM: Adams-Bashforth weights of even spacing on noise predictions, in ``sigma/alpha``.

    ``x' = (alpha'/alpha) x + (sigma' - sigma alpha'/alpha) sum_i b_i eps_{n-i}``, with
    ``eps_j = (x_j - alpha_j d_j) / sigma_j``.

    References:
        Zhang and Chen, arXiv 2204.13902, section 3.3 and appendix H.2; Liu et al., arXiv 2202.09778.
    """
    integer("ipndm order", order, 1, 4)
    grid = Grid.of(schedule, t)

    def weights(n: int) -> dict[int, Tensor]:
        gain = grid.sigma[n + 1] - grid.sigma[n] * grid.alpha[n + 1] / grid.alpha[n]
        return {n - i: gain * b for i, b in enumerate(_ADAMS_BASHFORTH[min(n + 1, order)])}

    return noise_table(grid, weights)
