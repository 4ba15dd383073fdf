"""The picture of errors at one NFE: a bar a solver, from zero, the smallest first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gas.report.style import ACCENT, GREY, INK, MUTED, RULE, Sheet, text_width, wrap

__all__ = ["error_bars"]

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
    right = (
        _BARS_WIDTH
        - _BARS_MARGIN
        - round(max(text_width(text, 12, bold=True) for text in numbers.values()))
        - 8
    )
    longest = max(errors.values())
    sheet.box(left - 1, _BARS_TOP - 4, 1, bottom - _BARS_TOP + 4, RULE)
    for n, name in enumerate(sorted(errors, key=lambda name: errors[name])):
        y, chosen = _BARS_TOP + _ROW * n + _ROW / 2, name == highlight
        width = max(1.0, (right - left) * errors[name] / longest)
        sheet.text(left - 10, y, name, size=12, bold=chosen, color=ACCENT if chosen else INK, align="right")
        sheet.box(left, y - _BAR / 2, width, _BAR, ACCENT if chosen else MUTED[0])
        sheet.text(left + width + 7, y, numbers[name], size=12, bold=chosen, color=ACCENT if chosen else GREY)
    for i, line in enumerate(small):
        sheet.text(_BARS_MARGIN, bottom + 16 + 16 * i, line, size=11, color=GREY)
    return sheet.save(path)
