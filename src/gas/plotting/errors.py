"""The picture of errors: how the distance to the teacher falls with the number of network evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gas.errors import UserError
from gas.plotting.style import ACCENT, GREY, GRIDLINE, INK, MUTED, Sheet, matplotlib_module, text_width, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WIDTH, _MARGIN, _LEFT, _TOP, _PLOT, _ROW = 900, 22, 88, 64, 360, 26

Curves = Mapping[str, Mapping[int, float]]


def error_plot(
    path: str | Path, curves: Curves, *, note: str = "", highlight: str | None = None, scale: int = 2
) -> Path:
    """Draw mean squared error over NFE, both logarithmic, one line per solver, and save it as a PNG.

    Where all have the same single NFE there is no line to draw: each solver gets a bar, on a linear axis from zero,
    with its error at the end.

    Args:
        path: the PNG file to write; whole or absent.
        curves: ``{name: {nfe: error}}``, NFE at least 1, errors positive and finite.
        note: small print under the picture.
        highlight: name of the learned solver, drawn in the accent color over the others.
        scale: device pixels in a CSS pixel, 1 or more.

    Raises:
        UserError: for other curves, or a highlight or scale that does not fit.
        ModuleNotFoundError: when matplotlib is not installed.
    """
    _check(curves, highlight)
    nfes = sorted({nfe for curve in curves.values() for nfe in curve})
    small = wrap(note, _WIDTH - 2 * _MARGIN, 11)
    height = _PLOT if len(nfes) > 1 else _ROW * len(curves)
    sheet = Sheet(_WIDTH, _TOP + height + 56 + (16 * len(small) + 4 if small else 0), scale)
    heading = "" if len(nfes) > 1 else f", {nfes[0]} network evaluations"
    sheet.text(_MARGIN, 30, f"Error to the teacher{heading}", size=17, bold=True)
    names = round(max(text_width(name, 12, bold=True) for name in curves))
    if len(nfes) > 1:
        _draw_lines(sheet, curves, names, highlight)
        label = "network evaluations a sample (NFE)"
    else:
        _draw_bars(sheet, {name: curve[nfes[0]] for name, curve in curves.items()}, names, highlight)
        label = "MSE to the teacher; smaller is better"
    sheet.text(_WIDTH / 2, _TOP + height + 38, label, size=11, color=GREY, align="center")
    sheet.small_print(_MARGIN, _TOP + height + 60, small)
    return sheet.save(path)


def _check(curves: Curves, highlight: str | None) -> None:
    """Refuse arguments that cannot be drawn."""
    if not curves:
        raise UserError("curves must hold at least one {name: {nfe: error}} entry, got none")
    for name, curve in curves.items():
        if not curve:
            raise UserError(f"curve {name!r} must hold at least one error, got none; leave the solver out")
        for nfe, error in curve.items():
            if nfe < 1:
                raise UserError(f"NFE of curve {name!r} must be at least 1, got {nfe}")
            if not 0 < error < math.inf:
                raise UserError(
                    f"error of {name!r} at NFE {nfe} must be positive and finite for a logarithmic axis, "
                    f"got {error}; leave that point out and say so in the note"
                )
    if highlight is not None and highlight not in curves:
        raise UserError(f"highlight must be one of {sorted(curves)} or None, got {highlight!r}")


def _frame(axes: Axes, curves: Curves) -> None:
    """Set both axes logarithmic, with a tick at every NFE for which there is room."""
    nfes = sorted({nfe for curve in curves.values() for nfe in curve})
    errors = [error for curve in curves.values() for error in curve.values()]
    low, high = min(errors) / 1.25, max(errors) * 1.25
    air = (nfes[-1] / nfes[0]) ** 0.02
    axes.set(xscale="log", yscale="log", ylim=(low, high), xlim=(nfes[0] / air, nfes[-1] * air))
    axes.minorticks_off()
    shown = nfes[:1]
    for nfe in nfes[1:]:
        if nfe / shown[-1] > (nfes[-1] / nfes[0]) ** 0.03:
            shown.append(nfe)
    axes.set_xticks(shown, labels=map(str, shown))
    factors = (1,) if high / low > 3000 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(matplotlib_module("ticker").LogLocator(subs=factors, numticks=99))
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.grid(axis="y", color=GRIDLINE, linewidth=1)
    axes.set_axisbelow(True)


def _draw_lines(sheet: Sheet, curves: Curves, names: int, highlight: str | None) -> None:
    """Draw the lines, the highlighted one last and strongest; list their names in the order of their ends."""
    right = _WIDTH - _MARGIN - names - 20
    axes = sheet.axes(_LEFT, _TOP, right - 6 - _LEFT, _PLOT)
    _frame(axes, curves)
    label = "MSE to the teacher, log scale"
    sheet.text(_MARGIN, _TOP + _PLOT / 2, label, size=11, color=GREY, align="center", upright=True)
    others = [name for name in curves if name != highlight]
    styles = {name: (MUTED[n % len(MUTED)], n >= len(MUTED)) for n, name in enumerate(others)}
    if highlight is not None:
        styles[highlight] = (ACCENT, False)
    legend = sorted(curves, key=lambda name: -curves[name][max(curves[name])])
    for name, (color, dashed) in styles.items():
        chosen = name == highlight
        axes.plot(
            *zip(*sorted(curves[name].items()), strict=True),
            linestyle="--" if dashed else "-",
            marker="o",
            color=color,
            linewidth=2.4 if chosen else 1.5,
            markersize=6.5 if chosen else 4.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            clip_on=False,
            zorder=4 if chosen else 3,
        )
        y = _TOP + 8 + 18 * legend.index(name)
        for start, length in ((0, 5), (8, 5)) if dashed else ((0, 13),):
            sheet.box(right + start, y - 1, length, 2.5, color)
        sheet.text(right + 19, y, name, size=12, bold=chosen, color=color)


def _draw_bars(sheet: Sheet, errors: Mapping[str, float], names: int, highlight: str | None) -> None:
    """Draw a bar for each error, the smallest on top, on a linear axis from zero, with the number at its end."""
    left, longest = _MARGIN + names + 12, max(errors.values())
    room = _WIDTH - _MARGIN - left - 80  # the numbers, "0.000123" say, stand in these 80
    for n, name in enumerate(sorted(errors, key=lambda name: errors[name])):
        y, chosen, width = _TOP + _ROW * (n + 0.5), name == highlight, room * errors[name] / longest
        sheet.text(left - 10, y, name, size=12, bold=chosen, color=ACCENT if chosen else INK, align="right")
        sheet.box(left, y - 8, max(1.0, width), 16, ACCENT if chosen else MUTED[0])
        text, color = f"{errors[name]:.3g}", ACCENT if chosen else GREY
        sheet.text(left + width + 7, y, text, size=12, bold=chosen, color=color)
