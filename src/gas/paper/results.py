"""Results on disk, to compare with the paper: the files of ``gas evaluate --json`` and ``gas compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gas.display import error_text
from gas.errors import UserError
from gas.io import CHECKSUM, read_json, verify_checksum
from gas.paper.tables import PaperFigure

__all__ = ["MeasuredResult", "best_of", "read_results"]

# Names of rows, before a grid or a file's name, for solvers that the paper calls otherwise.
_NAMES = {
    "DPM++(3M)": ("dpmpp-3m",),
    "UniPC": ("unipc", "unipc-3-bh1", "unipc-3-bh2"),
    "iPNDM": ("ipndm", "ipndm-3"),
    "GAS of FFHQ": ("GAS of ffhq",),
}


@dataclass(frozen=True, kw_only=True)
class MeasuredResult:
    """One solver in a file of results.

    Attributes:
        preset: that it was measured on.
        name: of its row.
        nfe: of the solver.
        figures: by metric: ``"FID"`` in Inception's features against real data, ``"recall"``, ``"coverage"``.
        samples: that were measured.
        path: the file.
        settings: of the preset that were not the published ones.
    """

    preset: str
    name: str
    nfe: int
    figures: Mapping[str, float]
    samples: int
    path: Path
    settings: Mapping[str, str] = field(default_factory=dict)


def read_results(folder: Path) -> list[MeasuredResult]:
    """Read every result below a folder; files of other kinds are passed over.

    Raises:
        FileNotFoundError: when there is no such folder.
        UserError: for a file of results that is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of results {folder}")
    results: list[MeasuredResult] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            document = read_json(path)
            if isinstance(document, dict) and CHECKSUM in document:
                document = verify_checksum(document, "it")
        except (OSError, ValueError) as error:
            raise UserError(
                f"result {path} is damaged ({error_text(error)}): make it again, or take it away"
            ) from error
        if isinstance(document, dict):
            results += _results_of(document, path)
    return results


def best_of(
    figure: PaperFigure, results: Sequence[MeasuredResult], settings: Mapping[str, str]
) -> MeasuredResult | None:
    """Return the result for a figure: with the figure's metric if any has it, then with the most samples.

    Results of other settings than those that differ from the published ones do not count.
    """
    fitting = [
        each for each in results if _measures(each, figure) and _unnamed(each.settings) == _unnamed(settings)
    ]
    return max(fitting, key=lambda each: (figure.metric in each.figures, each.samples), default=None)


def _unnamed(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the name of a row does not show."""
    return {name: value for name, value in settings.items() if name not in ("solver", "objective")}


def _measures(result: MeasuredResult, figure: PaperFigure) -> bool:
    if result.preset != figure.preset:
        return False
    if figure.solver == "teacher":
        return result.name.endswith("(teacher)") and (not figure.nfe or result.nfe == figure.nfe + 1)
    return result.nfe == figure.nfe and result.name in _NAMES.get(figure.solver, (figure.solver,))


def _results_of(document: Mapping[str, Any], path: Path) -> Iterator[MeasuredResult]:
    """Yield the rows of one file: of ``gas evaluate``, or the one of a cell of ``gas compare``."""
    cell = document.get("cell")
    context = {**document, **(document.get("measured") or {})} if isinstance(cell, dict) else document
    rows = _row_of(cell) if isinstance(cell, dict) else document.get("rows")
    preset = context.get("preset") or context.get("model")
    if not isinstance(rows, list) or not isinstance(preset, str):
        return
    for row in rows:
        try:
            name = str(row["name"])
            if not name.endswith("(teacher)"):
                name = name.split(" (")[0].split(" / ")[0]
            yield MeasuredResult(
                preset=preset,
                name=name,
                nfe=int(row["nfe"]),
                figures=_figures(row, context),
                samples=int(row["samples"]),
                path=path,
                settings=dict(context.get("settings") or {}),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"result {path} is damaged ({type(error).__name__}: {error_text(error)})"
            ) from error


def _row_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a cell as a row of ``gas evaluate``; none where its samples were not finite."""
    if cell.get("metrics") is None:
        return []
    spec = str(cell["spec"])
    name = cell["label"] if cell["category"] == "learned" else spec.partition("/")[0]
    return [{**cell["metrics"], "name": "(teacher)" if spec == "teacher" else name, "nfe": cell["nfe"]}]


def _figures(row: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that are of the paper's kind: in Inception's features, to real data."""
    if context.get("features") != "inception":
        return {}
    figures = {}
    if row.get("frechet_data") is not None:
        figures["FID"] = float(row["frechet_data"])
    shares = (row.get("to_data") or {}).get("prdc") or {}
    return figures | {name: float(shares[name]) for name in ("recall", "coverage") if name in shares}
