from . import analytic as analytic, dmn as dmn, published as published
from .analytic import (
    GRIDS as GRIDS,
    as_grid as as_grid,
    flow_shifted as flow_shifted,
    karras as karras,
    log_snr as log_snr,
    shift_of_mu as shift_of_mu,
    time_cubic as time_cubic,
    time_quadratic as time_quadratic,
    time_uniform as time_uniform,
)
