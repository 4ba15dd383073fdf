"""The picture of times: at which noise levels each solver evaluates the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gas.errors import UserError
from gas.plotting.style import ACCENT, GREY, GRIDLINE, INK, MUTED, RULE, Sheet, text_width, wrap
from gas.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WIDTH, _MARGIN, _PITCH, _TOP = 900, 22, 42, 86
_LABELS = (1, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4, 1e-5)

_NOTE = (
    "A dot is a network evaluation, at the time passed to the network{}. A learned solver may pass another time than "
    "its state's, and so not evaluate at t = 1."
)

Series = tuple[str, Sequence[float], Sequence[float]]


def times_plot(
    path: str | Path,
    series: Sequence[Series],
    schedule: Schedule,
    *,
    note: str | None = None,
    highlight: int | None = None,
    scale: int = 2,
) -> Path:
    """Draw the times of several solvers under each other, over the half log-SNR, and save it as a PNG.

    A dot is a network evaluation, a short stroke the time of a state. They differ where a solver passes another time
    to the network than its state's.

    Args:
        path: the PNG file to write; whole or absent.
        series: ``(name, times, steps)`` from top to bottom: the N times passed to the network (``table.times``, from 0
            to the schedule's ``t_max``), and the N + 1 times of the grid, or ``()`` to draw none.
        schedule: gives the axis ``half_log_snr(t)``; times at which it is infinite are arrows at the edge.
        note: small print under the picture; by default it explains dots and strokes.
        highlight: index of the learned solver, drawn in the accent color.
        scale: device pixels in a CSS pixel, 1 or more.

    Raises:
        UserError: for no series, times outside that or all at infinity, or a highlight or scale that does not fit.
        ModuleNotFoundError: when matplotlib is not installed.
    """
    _check(series, schedule, highlight)
    left = _MARGIN + round(max(text_width(name, 13, bold=True) for name, _, _ in series)) + 24
    if note is None:
        strokes = any(len(steps) for _, _, steps in series)
        note = _NOTE.format("; a stroke is the time of a state" if strokes else "")
    under, small = _TOP + _PITCH * len(series), wrap(note, _WIDTH - 2 * _MARGIN, 11)
    sheet = Sheet(_WIDTH, under + 58 + (16 * len(small) + 4 if small else 0), scale)
    nfe = sorted({len(times) for _, times, _ in series})
    heading = f"Times of the network evaluations, NFE {nfe[0]}" + (f" to {nfe[-1]}" if len(nfe) > 1 else "")
    sheet.text(_MARGIN, 30, heading, size=17, bold=True)

    axes = sheet.axes(left, _TOP, _WIDTH - left - _MARGIN, _PITCH * len(series))
    axes.set(xlim=_range(schedule, series), ylim=(len(series) - 0.5, -0.5), yticks=[])
    _label(sheet, axes, schedule, left, under)
    for i, (name, times, steps) in enumerate(series):
        chosen = i == highlight
        color = ACCENT if chosen else INK
        sheet.text(_MARGIN, _TOP + _PITCH * (i + 0.5), name, size=13, bold=chosen, color=color)
        _draw(axes, i, _half_log_snr(schedule, times), _half_log_snr(schedule, steps), chosen)
    sheet.small_print(_MARGIN, under + 62, small)
    return sheet.save(path)


def _check(series: Sequence[Series], schedule: Schedule, highlight: int | None) -> None:
    """Refuse arguments that cannot be drawn."""
    if not series:
        raise UserError("series must hold at least one (name, times, steps) triple, got none")
    for name, times, steps in series:
        if len(times) == 0:
            raise UserError(f"times of {name!r} must hold at least one time, got none")
        outside = [float(t) for t in (*times, *steps) if not schedule.t_min <= t <= schedule.t_max]
        if outside:
            raise UserError(
                f"times of {name!r} must lie in [{schedule.t_min:.6g}, {schedule.t_max:g}], 1 being noise, got "
                f"{outside[0]:.6g}"
            )
    if highlight is not None and not 0 <= highlight < len(series):
        raise UserError(f"highlight must be a series of 0 .. {len(series) - 1} or None, got {highlight}")


def _half_log_snr(schedule: Schedule, times: Sequence[float]) -> list[float]:
    """Return the half log-SNR of every time; infinite at the ends of some schedules."""
    values = torch.tensor([float(t) for t in times], dtype=torch.float64)
    return [float(lam) for lam in schedule.half_log_snr(values).detach()]


def _range(schedule: Schedule, series: Sequence[Series]) -> tuple[float, float]:
    """Return the ends of the axis: all finite places and a little air."""
    places = _half_log_snr(schedule, [t for _, times, steps in series for t in (*times, *steps)])
    finite = list(filter(math.isfinite, places))
    if not finite:
        raise UserError("series must hold a time of finite half log-SNR, got only times at infinity")
    air = 0.03 * (max(finite) - min(finite)) or 1.0
    return min(finite) - air, max(finite) + air


def _label(sheet: Sheet, axes: Axes, schedule: Schedule, left: float, under: float) -> None:
    """Write the half log-SNR under the axes and t over them, as many labels as have room."""
    low, high = axes.get_xlim()
    width = _WIDTH - left - _MARGIN
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, math.inf) if (high - low) / s <= 12)
    axes.set_xticks([step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)])
    axes.grid(axis="x", color=GRIDLINE, linewidth=1)
    axes.set_axisbelow(True)
    taken = left - 40.0
    known = [t for t in _LABELS if schedule.t_min <= t]
    for t, lam in zip(known, _half_log_snr(schedule, known), strict=True):
        x = left + (lam - low) / (high - low) * width
        if low <= lam <= high and x - taken >= 44:
            sheet.text(x, _TOP - 12, f"{t:g}", size=11, color=GREY, align="center")
            taken = x
    sheet.text(left - 12, _TOP - 12, "time t", size=11, color=GREY, align="right")
    sheet.text(left, under + 38, "← noise", size=11, color=GREY)
    axis = "half log-SNR  λ = log(α / σ)"  # noqa: RUF001 (Greek is meant)
    sheet.text(left + width / 2, under + 38, axis, size=11, color=GREY, align="center")
    sheet.text(left + width, under + 38, "data →", size=11, color=GREY, align="right")


def _draw(axes: Axes, i: int, times: list[float], steps: list[float], chosen: bool) -> None:
    """Draw the line of one series with its strokes and dots; what is at infinity becomes an arrow."""
    low, high = axes.get_xlim()
    color = ACCENT if chosen else MUTED[0]
    axes.plot([low, high], [i, i], color=RULE, linewidth=1, zorder=1)
    axes.plot(steps, [i] * len(steps), "|", color=color, markersize=13, markeredgewidth=1, zorder=2)
    size = 8.5 if chosen else 7
    axes.plot(times, [i] * len(times), "o", color=color, markersize=size, markeredgecolor="white", zorder=3)
    for edge, marker, infinite in ((low, "<", -math.inf), (high, ">", math.inf)):
        if infinite in times:
            axes.plot([edge], [i], marker, color=color, markersize=size, clip_on=False, zorder=3)
