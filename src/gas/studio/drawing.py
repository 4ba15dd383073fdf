"""Results as HTML for the page: pictures, coefficients, plots and the course of a training."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

import gas
from gas.display import significant
from gas.models.protocol import Model
from gas.studio.actions import Choice, Curves, Entry, Row
from gas.studio.learning import PREVIEW, Snapshot

# The plot of a training in the units of its SVG: left, right, top and bottom.
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 584.0, 14.0, 160.0


def notice(text: str, kind: str = "problem") -> str:
    """Return a box with a sentence: a ``problem``, or a ``hint``."""
    return _part("notice", text, kind) if text else ""


def empty(title: str, text: str) -> str:
    """Return what stands where results will be."""
    return _part("empty", title, text)


def pictures(rows: Sequence[Row], choice: Choice) -> str:
    """Return the pictures of every solver, a row each; the best PSNR stands out."""
    ratios = {row.name: row.psnr for row in rows if row.psnr is not None}
    strongest = max(ratios, key=lambda name: ratios[name] or 0.0) if len(ratios) > 1 else ""
    return _part("pictures", rows, choice.seeds, strongest)


def weights(entries: Sequence[Entry]) -> str:
    """Return the coefficients of every solver as the table they are, shaded by their size."""
    solvers = [
        (f"{each.name} {each.detail}".strip(), each.learned, _lines(each.table))
        for each in entries
        if each.table
    ]
    return _part("weights", solvers)


def times_picture(model: Model, entries: Sequence[Entry]) -> str:
    """Return the plot of the times at which every solver evaluates the network."""
    drawn = [each for each in entries if each.table]
    highlight = next((n for n, each in enumerate(drawn) if each.learned), None)
    series = [(each.name, each.table.times.tolist(), ()) for each in drawn if each.table]
    png = _png(gas.plotting.times_plot, series, model.schedule, highlight=highlight)
    return _part("picture", png, "times of the network evaluations of each solver")


def error_picture(curves: Curves, note: str, highlight: str | None) -> str:
    """Return the plot of errors over NFE."""
    png = _png(gas.plotting.error_plot, curves, note=note, highlight=highlight)
    return _part("picture", png, "error to the teacher over network evaluations")


def training(snapshot: Snapshot) -> str:
    """Return the course of a training: progress, losses, and samples as it learns."""
    return _part("training", snapshot, _curve(snapshot), PREVIEW)


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("gas.studio", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["pngs"] = _pngs
    return environment.get_template("parts.html.j2").module


def _part(name: str, *args: Any) -> str:
    return str(getattr(_template(), name)(*args))


def _pngs(row: Row) -> list[str]:
    """Return the images of a row as PNG files in base64, a pixel each: browsers enlarge them."""
    from PIL import Image

    texts = []
    for image in [] if row.images is None else row.images:
        levels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).squeeze(2)
        file = io.BytesIO()
        Image.fromarray(levels.numpy()).save(file, "png")
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


def _png(plot: Callable[..., Path], *args: Any, **kwargs: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return base64.b64encode(plot(Path(folder) / "plot.png", *args, **kwargs).read_bytes()).decode()


def _lines(table: gas.Table) -> list[dict[str, Any]]:
    """Return the rows of a table: the time, and the weights of states and predictions with their size and sign."""
    matrix = torch.cat([table.states, table.outputs], dim=1)
    largest = float(matrix.abs().max()) or 1.0
    lines = []
    for time, row in zip(table.times.tolist(), matrix.tolist(), strict=True):
        cells = [
            {
                "text": f"{weight:.3f}" if weight else "",
                "share": round(abs(weight) / largest, 3),
                "sign": "plus" if weight > 0 else "minus",
            }
            for weight in row
        ]
        lines.append({"time": significant(time, 3), "cells": cells})
    return lines


def _curve(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the losses of a training in the units of the plot, ``None`` before the first."""
    losses = [loss for _, loss in snapshot.points]
    if not losses or not all(0 < loss < math.inf for loss in losses):
        return None
    all_losses = [*losses, *([snapshot.classical[1]] if snapshot.classical else [])]
    low, high = math.log(min(all_losses) / 1.15), math.log(max(all_losses) * 1.15)
    last = max(1, snapshot.points[-1][0])

    def height(loss: float) -> float:
        return round(_BOTTOM - (math.log(loss) - low) / (high - low) * (_BOTTOM - _TOP), 1)

    points = [
        (round(_LEFT + step / last * (_RIGHT - _LEFT), 1), height(loss)) for step, loss in snapshot.points
    ]
    ticks = [
        (height(loss), f"{loss:.2g}") for loss in (math.exp(low + (high - low) * n / 4) for n in range(5))
    ]
    classical = None
    if snapshot.classical is not None:
        name, loss = snapshot.classical
        classical = height(loss), f"{name}, {significant(loss, 3)}"
    return {"points": points, "ticks": ticks, "classical": classical, "last": last}
