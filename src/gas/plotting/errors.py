"""The picture of errors: how the distance to the teacher falls with the number of network evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gas.errors import UserError
from gas.plotting.style import ACCENT, GREY, GRIDLINE, INK, MUTED, RULE, Sheet, text_width, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["error_bars", "error_plot"]

_WIDTH, _MARGIN, _LEFT, _TOP, _PLOT, _LINE = 900, 22, 88, 64, 360, 18

Curves = Mapping[str, Mapping[int, float]]


def error_plot(
    path: str | Path,
    curves: Curves,
    *,
    title: str = "Error to the teacher",
    ylabel: str = "MSE to the teacher",
    note: str = "",
    highlight: str | None = None,
    scale: int = 2,
) -> Path:
    """Draw error over NFE, both logarithmic, one line per solver, and save it as a PNG.

    Solvers are named at the ends of their lines where the names have room, else in a legend. Where all have the same
    single NFE there is no line to draw: :func:`gas.plotting.errors.error_bars` draws a bar for each.

    Args:
        path: the PNG file to write; whole or absent.
        curves: ``{name: {nfe: error}}``, errors positive and finite.
        title: heading.
        ylabel: what the error is, along its axis.
        note: small print under the picture.
        highlight: name of the learned solver, drawn in the accent color over the others.
        scale: device pixels in a CSS pixel, 1 or more.

    Returns:
        ``path``.

    Raises:
        ValueError: for no curves, an empty one, an NFE below 1, an error that is not positive and finite,
            or a highlight or scale that does not fit.
        ModuleNotFoundError: when matplotlib is not installed.
    """
    _check(curves, highlight, scale)
    nfes = {nfe for curve in curves.values() for nfe in curve}
    if len(nfes) == 1:
        (nfe,) = nfes
        heading = f"{title}, {nfe} network evaluations"
        bars = {name: curve[nfe] for name, curve in curves.items()}
        return error_bars(
            path, bars, title=heading, label=ylabel, note=note, highlight=highlight, scale=scale
        )
    small = wrap(note, _WIDTH - 2 * _MARGIN, 11)
    margin = _MARGIN + round(max(text_width(name, 12, bold=True) for name in curves)) + 26
    sheet = Sheet(_WIDTH, _TOP + _PLOT + 56 + (16 * len(small) + 4 if small else 0), scale)
    sheet.text(_MARGIN, 30, title, size=17, bold=True)
    sheet.text(
        _MARGIN, _TOP + _PLOT / 2, f"{ylabel}, log scale", size=11, color=GREY, align="center", upright=True
    )
    width = _WIDTH - _LEFT - margin
    axes = sheet.axes(_LEFT, _TOP, width, _PLOT)
    _frame(axes, curves)
    styles = _draw(axes, curves, highlight)
    heights, at_end = _name_heights(axes, curves)
    for name, height in heights.items():
        x, y, chosen = _WIDTH - margin + 6, _TOP + height, name == highlight
        color, dashed = styles[name]
        if not at_end:
            for start, length in ((0, 5), (8, 5)) if dashed else ((0, 13),):
                sheet.box(x - 5 + start, y - 1, length, 2.5, color)
        sheet.text(x if at_end else x + 14, y, name, size=12, bold=chosen, color=color)
    label = "network evaluations a sample (NFE)"
    sheet.text(_LEFT + width / 2, _TOP + _PLOT + 38, label, size=11, color=GREY, align="center")
    sheet.small_print(_MARGIN, _TOP + _PLOT + 60, small)
    return sheet.save(path)


def _check(curves: Curves, highlight: str | None, scale: int) -> None:
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
    if scale < 1:
        raise UserError(f"scale must be a whole number of at least 1, got {scale}")


def _frame(axes: Axes, curves: Curves) -> None:
    """Set both axes logarithmic, with a tick at every NFE for which there is room."""
    nfes = sorted({nfe for curve in curves.values() for nfe in curve})
    errors = [error for curve in curves.values() for error in curve.values()]
    low, high = min(errors) / 1.25, max(errors) * 1.25
    air = (nfes[-1] / nfes[0]) ** 0.02 if len(nfes) > 1 else 1.1
    axes.set(xscale="log", yscale="log", ylim=(low, high), xlim=(nfes[0] / air, nfes[-1] * air))
    axes.minorticks_off()
    gaps = [b - a for a, b in zip([0.0, *map(math.log, nfes)], map(math.log, nfes), strict=False)]
    room = 0.03 * math.log(nfes[-1] / nfes[0])
    shown = [nfe for nfe, gap in zip(nfes, gaps, strict=True) if gap > room or nfe in (nfes[0], nfes[-1])]
    axes.set_xticks(shown, labels=[str(nfe) for nfe in shown])
    factors = (1,) if high / low > 3000 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    axes.grid(axis="y", color=GRIDLINE, linewidth=1)
    axes.set_axisbelow(True)


def _draw(axes: Axes, curves: Curves, highlight: str | None) -> dict[str, tuple[str, bool]]:
    """Draw the lines, the highlighted one last and strongest; return each one's ``(color, is dashed)``."""
    others = [name for name in curves if name != highlight]
    styles = {name: (MUTED[n % len(MUTED)], n >= len(MUTED)) for n, name in enumerate(others)}
    if highlight is not None:
        styles[highlight] = (ACCENT, False)
    for name, (color, dashed) in styles.items():
        chosen = name == highlight
        nfes = sorted(curves[name])
        axes.plot(
            nfes,
            [curves[name][nfe] for nfe in nfes],
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
    return styles


def _name_heights(axes: Axes, curves: Curves) -> tuple[dict[str, float], bool]:
    """Return the height of every name in CSS pixels from the top, and whether it stands at its line's end.

    Names keep a line apart from each other. If that moves one far from its line, or the lines do not
    all end at the right edge, the names are a legend: listed from the top, in the order of the last errors.
    """
    low, high = (math.log(limit) for limit in axes.get_ylim())
    fall = _PLOT / (high - low)
    last = {name: (high - math.log(curve[max(curve)])) * fall for name, curve in curves.items()}
    names = sorted(curves, key=lambda name: last[name])
    apart = _spread([last[name] for name in names], _LINE)
    together = len({max(curve) for curve in curves.values()}) == 1
    if together and all(abs(y - last[name]) <= _LINE for name, y in zip(names, apart, strict=True)):
        return dict(zip(names, apart, strict=True)), True
    return {name: 8.0 + _LINE * n for n, name in enumerate(names)}, False


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Return the numbers nearest to sorted ``values``, in least squares, that are ``gap`` apart or more.

    Less ``n gap`` they must not decrease: isotonic regression, by pooling neighbors that do.
    """
    pools: list[tuple[float, int]] = []
    for n, value in enumerate(values):
        mean, count = value - n * gap, 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    flat = [mean for mean, count in pools for _ in range(count)]
    return [mean + n * gap for n, mean in enumerate(flat)]


_BARS_WIDTH, _BARS_MARGIN, _BARS_TOP, _ROW, _BAR = 900, 22, 84, 26, 16


def error_bars(
    path: str | Path,
    errors: Mapping[str, float],
    *,
    title: str,
    label: str,
    note: str = "",
    highlight: str | None = None,
    scale: int = 2,
) -> Path:
    """Draw a bar for each error, on a linear axis from zero with the number at its end, and save it as a PNG.

    Args:
        path: the PNG file to write; whole or absent.
        errors: by name of the solver, positive and finite.
        title: heading.
        label: what the error is, in small print under the heading.
        note: small print under the picture.
        highlight: name of the solver in the accent color.
        scale: device pixels in a CSS pixel, 1 or more.

    Raises:
        ModuleNotFoundError: when matplotlib is not installed.
    """
    small = wrap(note, _BARS_WIDTH - 2 * _BARS_MARGIN, 11)
    bottom = _BARS_TOP + _ROW * len(errors)
    sheet = Sheet(_BARS_WIDTH, bottom + 16 * len(small) + 24, scale)
    sheet.text(_BARS_MARGIN, 30, title, size=17, bold=True)
    sheet.text(_BARS_MARGIN, 54, f"{label}; smaller is better", size=12, color=GREY)
    left = _BARS_MARGIN + round(max(text_width(name, 12, bold=True) for name in errors)) + 12
    numbers = {name: f"{error:.3g}" for name, error in errors.items()}
    widest = round(max(text_width(text, 12, bold=True) for text in numbers.values()))
    right = _BARS_WIDTH - _BARS_MARGIN - widest - 8
    longest = max(errors.values())
    sheet.box(left - 1, _BARS_TOP - 4, 1, bottom - _BARS_TOP + 4, RULE)
    for n, name in enumerate(sorted(errors, key=lambda name: errors[name])):
        y, chosen = _BARS_TOP + _ROW * n + _ROW / 2, name == highlight
        width = max(1.0, (right - left) * errors[name] / longest)
        sheet.text(left - 10, y, name, size=12, bold=chosen, color=ACCENT if chosen else INK, align="right")
        sheet.box(left, y - _BAR / 2, width, _BAR, ACCENT if chosen else MUTED[0])
        sheet.text(left + width + 7, y, numbers[name], size=12, bold=chosen, color=ACCENT if chosen else GREY)
    sheet.small_print(_BARS_MARGIN, bottom + 16, small)
    return sheet.save(path)
