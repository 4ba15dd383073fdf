"""Pictures of an experiment: error over NFE, the same noise through every solver, and the times of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from gas.display import significant
from gas.experiments.store import MethodResult
from gas.models.protocol import Model, images_of
from gas.plotting.errors import error_plot
from gas.plotting.samples import sample_grid
from gas.plotting.times import times_plot
from gas.schedule import Schedule

# Samples stored as pictures with every result.
PICTURES = 8
# Of those, the ones that a picture shows, each with its errors.
_SHOWN = 5
# Longest side of a stored picture in pixels, as large as a report shows it.
_SIDE = 128
# Lines that can be told apart besides the highlighted one.
_LINES = 10


def thumbnails(model: Model, samples: Tensor) -> Tensor | None:
    """Return the first samples as small pictures ``(K, C, H, W)`` in [-1, 1]; ``None`` where they are not images."""
    images = images_of(model, samples[:PICTURES]).float().cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        return None
    side = max(images.shape[2:])
    if side > _SIDE:
        size = [max(1, round(_SIDE * length / side)) for length in images.shape[2:]]
        images = interpolate(images, size, mode="bilinear", antialias=True)
    return images.clamp(-1, 1).half().float()


def draw(results: Sequence[MethodResult], schedule: Schedule, name: str, folder: Path) -> dict[str, Path]:
    """Draw all pictures that the results of model ``name`` allow, the teacher's among them; return files by title.

    Raises:
        ModuleNotFoundError: when matplotlib is not installed.
    """
    finite = [result for result in results if result.category != "teacher" and result.metrics is not None]
    teachers = [result for result in results if result.category == "teacher"]
    pictures = _draw_errors(folder / "errors.png", finite, name)
    for nfe in sorted({result.nfe for result in finite}):
        column = [result for result in finite if result.nfe == nfe]
        if all(result.pictures is not None for result in column):
            grid = _draw_samples(folder / f"samples-{nfe}.png", column, teachers[:1], name)
            pictures[f"The same noise through every solver, NFE {nfe}"] = grid
        times = _draw_times(folder / f"times-{nfe}.png", column, schedule)
        pictures[f"Times of the network evaluations, NFE {nfe}"] = times
    return pictures


def _draw_errors(path: Path, results: Sequence[MethodResult], name: str) -> dict[str, Path]:
    curves: dict[str, dict[int, float]] = {}
    for result in results:
        error = _mse(result)
        if 0 < error < math.inf:
            label = "best classical" if result.category == "classical" else result.label
            curve = curves.setdefault(label, {})
            curve[result.nfe] = min(error, curve.get(result.nfe, math.inf))
    if not curves:
        return {}
    highlight = next((label for label in ("GAS", "GS") if label in curves), None)
    labels = [*[label for label in curves if label != highlight][:_LINES], *filter(None, [highlight])]
    note = f"{name}; the classical line is the best of the classical rows at each NFE."
    error_plot(path, {label: curves[label] for label in labels}, note=note, highlight=highlight)
    return {"Error over network evaluations": path}


def _draw_samples(
    path: Path, results: Sequence[MethodResult], teacher: Sequence[MethodResult], name: str
) -> Path:
    rows: list[tuple[str, Tensor]] = []
    note, ends_with_teacher = f"the first {_SHOWN} unseen seeds", False
    for result in (*results, *teacher):
        if result.pictures is None or result.metrics is None:
            continue
        error = f"MSE x 1000: {significant(1000 * result.metrics.mse, 3)}"
        detail = f"{result.origin}, {result.nfe} calls" if result.category == "teacher" else error
        rows.append((f"{result.label}\n{detail}", result.pictures[:_SHOWN].float()))
        ends_with_teacher = result.category == "teacher"
    if ends_with_teacher:
        note += ", and how far each pixel is from the teacher's"
    return sample_grid(
        path,
        rows,
        title=f"The same noise, {results[0].nfe} network calls",
        note=f"{name}: {note}.",
        highlight=_highlighted([result.label for result in results]),
        errors=ends_with_teacher,
        scale=2 if rows[0][1].shape[1] == 1 else 1,
    )


def _draw_times(path: Path, results: Sequence[MethodResult], schedule: Schedule) -> Path:
    best = min((result for result in results if result.category == "classical"), key=_mse, default=None)
    series = [
        (result.label, result.table.times.tolist(), list[float]())
        for result in results
        if result.table is not None and (result.category != "classical" or result is best)
    ]
    return times_plot(path, series, schedule, highlight=_highlighted([label for label, _, _ in series]))


def _mse(result: MethodResult) -> float:
    return math.inf if result.metrics is None else result.metrics.mse


def _highlighted(labels: Sequence[str]) -> int | None:
    """The index of the label that is drawn in the accent color."""
    return next((labels.index(label) for label in ("GAS", "GS") if label in labels), None)
