"""Classical solvers: each a pure function from a schedule and a time grid to a table.

Every function takes the forward process and ``t``, a grid of N + 1 times from noise to data (see
:func:`gas.grids.as_grid`), in which it is differentiable; its table has NFE N. ``order`` is the number of predictions
that a step combines. ``alpha, sigma, lam`` are the schedule at ``t``; ``h = lam_{n+1} - lam_n``.

Where the half log-SNR is infinite (rectified flow at t = 1, any schedule at sigma = 0), the formulas of higher order
are 0/0. Predictions at such a time enter no derivative estimate of DPM-Solver++ and UniPC, and a step of theirs that
ends there has order 1, which is exact in the limit. iPNDM and DEIS combine noise predictions, which stay finite. A
first step from alpha = 0 is DDIM for all.
"""

from gas.classical.deis import deis
from gas.classical.dpmpp import ddim, dpmpp, dpmpp_corrected
from gas.classical.heun import heun
from gas.classical.ipndm import ipndm
from gas.classical.registry import NAMED_GRIDS, SOLVERS, Classical, candidates, format_times
from gas.classical.unipc import unipc

__all__ = [
    "NAMED_GRIDS",
    "SOLVERS",
    "Classical",
    "candidates",
    "ddim",
    "deis",
    "dpmpp",
    "dpmpp_corrected",
    "format_times",
    "heun",
    "ipndm",
    "unipc",
]
