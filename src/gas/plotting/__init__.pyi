from . import errors as errors, samples as samples, style as style, times as times
from .errors import error_plot as error_plot
from .samples import sample_grid as sample_grid
from .style import require_matplotlib as require_matplotlib
from .times import times_plot as times_plot
