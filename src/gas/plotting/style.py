"""The style of every picture: a palette, a typeface, and a white page measured in CSS pixels."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gas.display import plain
from gas.errors import UserError
from gas.io import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, GREY, RULE, GRIDLINE = "#24292f", "#6e7781", "#d0d7de", "#eceff2"
ACCENT, TINT = "#d9480f", "#fdf3ee"
MUTED = ("#4f7396", "#7d9b76", "#98779f", "#b59a5b", "#8c959f")
"""Colors of what is not highlighted, used in this order and cyclically."""

_FONT = "DejaVu Sans"  # ships with matplotlib, so a picture looks the same on every machine
_POINTS = 0.72  # points in one CSS pixel, as a sheet holds 100 of them in an inch


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError, with advice, where matplotlib is missing: before long work, not after it."""
    matplotlib_module("figure")


class Sheet:
    """A white page of ``width x height`` CSS pixels with its origin in the upper left corner.

    It leaves matplotlib's global state alone. The file has ``scale`` times as many pixels a side; 2 is sharp on today's
    screens.

    Raises:
        UserError: for a scale below 1.
        ModuleNotFoundError: when matplotlib is not installed.
    """

    def __init__(self, width: int, height: int, scale: int = 2) -> None:
        if scale < 1:
            raise UserError(f"scale must be a whole number of at least 1, got {scale}")
        self.width, self.height, self.scale = width, height, scale
        figure = matplotlib_module("figure").Figure
        self.figure: Figure = figure(figsize=(width / 100, height / 100), dpi=100 * scale, facecolor="white")
        self._canvas = matplotlib_module("backends.backend_agg").FigureCanvasAgg(self.figure)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        color: str = INK,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
        upright: bool = False,
    ) -> None:
        """Write one line whose middle is at height ``y``, ``upright`` along an axis; ``size`` in CSS pixels."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            plain(text),
            ha=align,
            va="center" if upright else "center_baseline",
            rotation="vertical" if upright else "horizontal",
            fontweight="bold" if bold else "normal",
            color=color,
            fontsize=size * _POINTS,
            fontfamily=_FONT,
            parse_math=False,
        )

    def small_print(self, x: float, y: float, lines: Sequence[str]) -> None:
        """Write lines of small print, the first at height ``y``."""
        for i, line in enumerate(lines):
            self.text(x, y + 16 * i, line, size=11, color=GREY)

    def image(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """Draw ``(h, w, 3)`` device pixels, without resampling, with their upper left corner at ``(x, y)``."""
        bottom = (self.height - y) * self.scale - pixels.shape[0]
        self.figure.figimage(pixels, x * self.scale, bottom, origin="upper", zorder=2)

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fill a rectangle behind everything else."""
        left, bottom, *size = self._bounds(x, y, width, height)
        shape, place = matplotlib_module("patches").Rectangle, self.figure.transFigure
        patch = shape((left, bottom), *size, transform=place, color=color, linewidth=0, zorder=-1)
        self.figure.add_artist(patch)

    def _bounds(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A rectangle as matplotlib has it: left, bottom, width and height in shares of the page."""
        return x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Return axes over this rectangle without a frame, their ticks in the house style."""
        axes = self.figure.add_axes(self._bounds(x, y, width, height))
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(
            which="both", length=0, colors=GREY, labelsize=11 * _POINTS, labelfontfamily=_FONT, pad=5
        )
        return axes

    def save(self, path: str | Path) -> Path:
        """Write the page as a PNG that is whole or absent; the same page gives the same bytes."""
        metadata = {"Software": None}
        return write_atomically(path, lambda file: self._canvas.print_png(file, metadata=metadata))


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return how wide a line of text is, in CSS pixels."""
    weight = "bold" if bold else "normal"
    font = matplotlib_module("font_manager").FontProperties(family=_FONT, weight=weight, size=size)
    converter = matplotlib_module("textpath").text_to_path
    return float(converter.get_text_width_height_descent(plain(text), font, ismath=False)[0])


def wrap(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Break text into lines no wider than ``width`` CSS pixels, at spaces and at its line breaks."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and text_width(longer, size, bold) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def matplotlib_module(module: str) -> Any:
    """Import a module of matplotlib, or say what to install."""
    try:
        importlib.import_module("matplotlib")  # first: its modules may be loaded without it
        return importlib.import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'gas-solver[plot]'") from error
