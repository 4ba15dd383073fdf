"""Time grids: ``(nfe + 1,)`` times from 1 (noise) down to ``t_end`` (data)."""

from gas.grids.analytic import (
    GRIDS,
    as_grid,
    flow_shifted,
    karras,
    log_snr,
    shift_of_mu,
    time_cubic,
    time_quadratic,
    time_uniform,
)

__all__ = [
    "GRIDS",
    "as_grid",
    "flow_shifted",
    "karras",
    "log_snr",
    "shift_of_mu",
    "time_cubic",
    "time_quadratic",
    "time_uniform",
]
