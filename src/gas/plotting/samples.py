"""Grids of samples: one row per solver, one column per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from gas.errors import UserError
from gas.plotting.style import ACCENT, GREY, INK, TINT, Sheet, text_width, wrap

_WIDTH, _WIDTH_MIN, _MARGIN = 900, 420, 22
_GAP, _ROW_GAP, _ERRORS_GAP = 4, 16, 20
_STRIP, _LINE, _LABEL_MAX = 8, 19, 220
_CELL_MIN, _CELL_MAX = 12, 120


def sample_grid(
    path: str | Path,
    rows: Sequence[tuple[str, Tensor]],
    *,
    title: str,
    note: str = "",
    highlight: int | None = None,
    errors: bool = False,
    scale: int = 2,
) -> Path:
    """Draw the samples of several solvers from the same seeds, one row per solver, and save them as a PNG.

    Images keep their pixels: enlarged by a whole factor without smoothing, or averaged where they are
    larger than their place. The page is at most 900 CSS pixels wide.

    Args:
        path: the PNG file to write; whole or absent.
        rows: ``(label, images)`` from top to bottom. ``images`` is ``(K, C, H, W)`` in [-1, 1] with C = 1
            or 3, the same shape in every row; column k is the same seed everywhere. The first line of a
            label is set bold, the following ones small ("GS\\nMSE 0.0123").
        title: heading.
        note: small print under the picture.
        highlight: index of the row of the learned solver, drawn in the accent color.
        errors: draw right of each row how far its images are from those of the last row, the teacher's: the mean over
            channels of absolute differences, on one scale for all rows, from white at 0 to dark at their 99 % quantile.
        scale: device pixels in a CSS pixel, 1 or more.

    Raises:
        UserError: for no rows, a wrong shape or range, or a highlight or scale that does not fit.
        ModuleNotFoundError: when matplotlib is not installed.
    """
    _check(rows, highlight, scale)
    labels = [_label_lines(label) for label, _ in rows]
    left = _MARGIN + round(max((text_width(*line) for lines in labels for line in lines), default=0)) + 18
    shown, gap = len(rows[0][1]), _ERRORS_GAP if errors else 0
    if errors:
        rows = _with_errors(rows)
    count = len(rows[0][1])
    image = _image_size(rows[0][1], _WIDTH - left - _MARGIN - gap, scale)
    cell_h, cell_w = (math.ceil(size / scale) for size in image)
    width = max(left + count * (cell_w + _GAP) - _GAP + gap + _MARGIN, _WIDTH_MIN)
    heading = wrap(title, width - 2 * _MARGIN, 17, bold=True)
    small = wrap(note, width - 2 * _MARGIN, 11)
    top = _MARGIN + 24 * len(heading) + 12
    pitch = max(cell_h, _LINE * max(map(len, labels))) + _ROW_GAP
    bottom = top + pitch * len(rows)
    sheet = Sheet(width, bottom + 16 * len(small) + (8 if small else 6), scale)
    for i, line in enumerate(heading):
        sheet.text(_MARGIN, _MARGIN + 10 + 24 * i, line, size=17, bold=True)
    for i, (_, images) in enumerate(rows):
        middle, chosen = top + i * pitch + (pitch - _ROW_GAP) // 2, i == highlight
        if chosen:
            height = pitch - _ROW_GAP + 10
            sheet.box(_STRIP, middle - height / 2, width - 2 * _STRIP, height, TINT)
            sheet.box(_STRIP, middle - height / 2, 4, height, ACCENT)
        for n, (text, size, bold) in enumerate(labels[i]):
            y = middle + _LINE * (n - (len(labels[i]) - 1) / 2)
            color = (ACCENT if chosen else INK) if bold else GREY
            sheet.text(_MARGIN, y, text, size=size, bold=bold, color=color)
        for k, pixels in enumerate(_pixels(images, image)):
            sheet.image(left + k * (cell_w + _GAP) + gap * (k >= shown), middle - cell_h // 2, pixels)
    sheet.small_print(_MARGIN, bottom + 4, small)
    return sheet.save(path)


def _with_errors(rows: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Append to the images ``(K, C, H, W)`` of each row K pictures of their differences to the last row's."""
    pictures = [images.detach().to("cpu", torch.float32).expand(-1, 3, -1, -1) for _, images in rows]
    errors = torch.stack([(images - pictures[-1]).abs().mean(dim=1, keepdim=True) for images in pictures])
    largest = max(float(np.quantile(errors[:-1].numpy(), 0.99)), float(errors.max()) / 255) or 1.0
    white, dark = torch.ones(3, 1, 1), torch.tensor([*bytes.fromhex(INK[1:])]) / 127.5 - 1
    drawn = torch.lerp(white, dark.view(3, 1, 1), (errors / largest).clamp(max=1))
    return [(label, torch.cat([pictures[i], drawn[i]])) for i, (label, _) in enumerate(rows)]


def _check(rows: Sequence[tuple[str, Tensor]], highlight: int | None, scale: int) -> None:
    """Refuse arguments that cannot be drawn."""
    if not rows:
        raise UserError("rows must hold at least one (label, images) pair, got none")
    shape = tuple(rows[0][1].shape)
    for label, images in rows:
        name = f"images of row {label.splitlines()[0] if label else ''!r}"
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
            raise UserError(
                f"{name} must have shape (K, C, H, W) with C = 1 or 3, got {tuple(images.shape)}; "
                "decode latents to pixels first"
            )
        if tuple(images.shape) != shape:
            raise UserError(
                f"{name} must have the shape {shape} of the first row (the same seeds in every row), "
                f"got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise UserError(f"{name} must be floats in [-1, 1], got {images.dtype}; pass x / 127.5 - 1")
        low, high = float(images.min()), float(images.max())
        if not (low >= -1.0001 and high <= 1.0001):
            raise UserError(
                f"{name} must lie in [-1, 1], got values from {low:.4g} to {high:.4g}; "
                "pass images.clamp(-1, 1), or x / 127.5 - 1 for pixels of 0 .. 255"
            )
    if scale < 1:
        raise UserError(f"scale must be a whole number of at least 1, got {scale}")
    if highlight is not None and not 0 <= highlight < len(rows):
        raise UserError(f"highlight must be a row of 0 .. {len(rows) - 1} or None, got {highlight}")


def _label_lines(label: str) -> list[tuple[str, float, bool]]:
    """Break a label into ``(line, size, is bold)``: its first line is a name, the others are figures."""
    name, _, figures = label.partition("\n")
    names = [(line, 13.0, True) for line in wrap(name, _LABEL_MAX, 13, bold=True)]
    return names + [(line, 12.0, False) for line in wrap(figures, _LABEL_MAX, 12)]


def _image_size(images: Tensor, room: int, scale: int) -> tuple[int, int]:
    """Return (height, width) of an image in device pixels, where a row has ``room`` CSS pixels."""
    count, _, h, w = images.shape
    side = min((room + _GAP) // count - _GAP, _CELL_MAX)
    if side < _CELL_MIN:
        raise UserError(f"rows must have fewer columns to be legible, got {count}; pass images[:16]")
    factor = side * scale / max(h, w)
    factor = math.floor(factor) if factor >= 1 else factor
    return max(int(h * factor), 1), max(int(w * factor), 1)


def _pixels(images: Tensor, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Return ``(h, w, 3)`` bytes of every image: whole-factor enlargement, or averaging where it shrinks."""
    values = images.detach().to("cpu", torch.float32)
    if size[0] >= values.shape[2]:
        factor = size[0] // values.shape[2]
        values = values.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    else:
        values = interpolate(values, size, mode="bilinear", antialias=True)
    levels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy())
