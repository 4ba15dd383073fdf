"""Pictures of solvers, as PNG files: sample grids, times, error curves."""

from gas.report.errors import error_plot
from gas.report.grid import sample_grid
from gas.report.style import require_matplotlib
from gas.report.times import times_plot

__all__ = ["error_plot", "require_matplotlib", "sample_grid", "times_plot"]
