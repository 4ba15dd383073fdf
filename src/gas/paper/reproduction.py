"""From a figure of the paper to the run that measures it here, and to its result on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gas.display import error_text
from gas.errors import UserError
from gas.io import CHECKSUM, read_json, verify_checksum
from gas.paper.files import find_files, find_measuring_files
from gas.paper.presets import Objective, Preset, preset_by_name
from gas.paper.tables import PaperFigure
from gas.solver_file import load

# Settings that decide what is measured, not what is learned.
_MEASURED = ("nfes", "evaluation_seeds", "samples", "reference")

# Names of rows, before a grid or a file's name, for solvers that the paper calls otherwise.
_NAMES = {
    "DPM++(3M)": ("dpmpp-3m",),
    "UniPC": ("unipc", "unipc-3-bh1", "unipc-3-bh2"),
    "iPNDM": ("ipndm", "ipndm-3"),
    "GAS of FFHQ": ("GAS of ffhq",),
}


@dataclass(frozen=True, kw_only=True)
class MeasuringRun:
    """One training and evaluation, which measures one or several figures of a table.

    Attributes:
        preset: whose network is sampled.
        trained: on which the solver is learned.
        solver: path of the solver file.
        result: path of the evaluation.
    """

    preset: Preset
    trained: Preset
    objective: Objective
    nfe: int
    solver: Path
    result: Path

    @property
    def name(self) -> str:
        """The run's name among those of its table: its result's, without the hash of changed settings."""
        return self.result.stem.partition("-set-")[0]

    def missing(self, weights: Path, *, measuring: bool = True) -> list[str]:
        """Return the names of the missing files that the run needs, for measuring too if the metric's are asked for."""
        unneeded = "" if self.objective == "gas" else "critic"
        files = [file for file in find_files(self.trained, weights) if file.role != unneeded]
        files += [file for file in find_files(self.preset, weights) if file.role in ("network", "prompts")]
        files += find_measuring_files(self.preset, weights) if measuring else []
        return list(dict.fromkeys(file.name for file in files if file.path is None))

    def check_solver(self) -> None:
        """Refuse a solver file at this run's path that was trained with other settings.

        Raises:
            UserError: names the first setting that differs.
        """
        if not self.solver.exists():
            return
        training = load(self.solver).document.training
        # The file counts pairs under these names, and its objective is "gs" or "gas".
        counted = ("pairs", "validation", "objective")
        for name, value in self.trained.settings(without=(*counted, *_MEASURED)).items():
            if str(training.get(name, value)) != value:
                raise UserError(
                    f"{self.solver} was trained with {name}={training[name]}, this cell needs {name}={value}: move "
                    f"that file away, or say --set {name}={training[name]}"
                )


def run_for(figure: PaperFigure, results: Path, changes: Sequence[str] = ()) -> MeasuringRun:
    """Return the run that measures a figure; classical solvers and the teacher are measured beside GS.

    Changed settings, as ``name=value``, make files of other names.
    """
    setups = (preset_by_name(name) for name in (figure.preset, figure.trained_on))
    preset, trained = (setup.changed(figure.settings) for setup in setups)
    objective: Objective = "gas" if figure.solver.startswith("GAS") else "gs"
    nfe = figure.nfe or preset.nfes[-1]
    measured, learned = preset.changed(changes), trained.changed(changes)
    path = learned.solver_path(objective, nfe)
    if figure.solver == "GAS, classic":
        path = path.with_name(f"gas-classic-{nfe}.json")
    setup = f"{figure.preset}-from-{figure.trained}" if figure.trained else figure.preset
    return MeasuringRun(
        preset=measured,
        trained=learned,
        objective=objective,
        nfe=nfe,
        solver=path.with_stem(path.stem + _tag(trained, learned, without=_MEASURED)),
        result=results / f"{setup}-{path.stem}{_tag(preset, measured)}.json",
    )


def _tag(usual: Preset, changed: Preset, without: Sequence[str] = ()) -> str:
    """Return the end of a file's name for changed settings: equal for equal settings, empty without any."""
    changes = dict(changed.settings(without).items() - usual.settings().items())
    if not changes:
        return ""
    return f"-set-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]}"


# --- results: files of ``gas evaluate --json`` and ``gas compare`` ---------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MeasuredResult:
    """One solver in a file of results.

    ``figures`` are those of the paper's metrics: ``"FID"`` in Inception's features against real data, ``"recall"``,
    ``"coverage"``; ``settings`` those of the preset that were not the published ones.
    """

    preset: str
    name: str
    nfe: int
    figures: Mapping[str, float]
    samples: int
    path: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def measures(self, figure: PaperFigure) -> bool:
        """Return whether this is the setup, the solver and the NFE of a figure."""
        if self.preset != figure.preset:
            return False
        if figure.solver == "teacher":
            return self.name.endswith("(teacher)") and (not figure.nfe or self.nfe == figure.nfe + 1)
        return self.nfe == figure.nfe and self.name in _NAMES.get(figure.solver, (figure.solver,))


def read_results(folder: Path) -> list[MeasuredResult]:
    """Read every result below a folder; files of other kinds are passed over.

    Raises:
        UserError: for a file of results that is damaged.
    """
    results: list[MeasuredResult] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            document = read_json(path)
            if isinstance(document, dict) and CHECKSUM in document:
                document = verify_checksum(document, "it")
            if isinstance(document, dict):
                results += _results_of(document, path)
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            kind = "" if isinstance(error, (OSError, UserError)) else f"{type(error).__name__}: "
            raise UserError(f"result {path} is damaged ({kind}{error_text(error)}): make it again") from error
    return results


def best_of(
    figure: PaperFigure, results: Sequence[MeasuredResult], settings: Mapping[str, str]
) -> MeasuredResult | None:
    """Return the result for a figure: with the figure's metric if any has it, then with the most samples.

    Results of other settings than those that differ from the published ones do not count.
    """
    fitting = [
        each for each in results if each.measures(figure) and _unnamed(each.settings) == _unnamed(settings)
    ]
    return max(fitting, key=lambda each: (figure.metric in each.figures, each.samples), default=None)


def _unnamed(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the name of a row does not show."""
    return {name: value for name, value in settings.items() if name not in ("solver", "objective")}


def _results_of(document: Mapping[str, Any], path: Path) -> Iterator[MeasuredResult]:
    """Yield the rows of one file: of ``gas evaluate``, or the one of a cell of ``gas compare``."""
    cell = document.get("cell")
    if isinstance(cell, dict):
        document = {**document, **(document.get("measured") or {}), "rows": _rows_of(cell)}
    preset = document.get("preset") or document.get("model")
    if not isinstance(document.get("rows"), list) or not isinstance(preset, str):
        return
    for row in document["rows"]:
        name = str(row["name"])
        yield MeasuredResult(
            preset=preset,
            name=name if name.endswith("(teacher)") else name.split(" (")[0].split(" / ")[0],
            nfe=int(row["nfe"]),
            figures=_figures(row) if document.get("features") == "inception" else {},
            samples=int(row["samples"]),
            path=path,
            settings=dict(document.get("settings") or {}),
        )


def _rows_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a cell as a row of ``gas evaluate``; none where its samples were not finite."""
    if cell.get("metrics") is None:
        return []
    spec = str(cell["spec"])
    name = cell["label"] if cell["category"] == "learned" else spec.partition("/")[0]
    return [{**cell["metrics"], "name": "(teacher)" if spec == "teacher" else name, "nfe": cell["nfe"]}]


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the paper's metrics, to real data."""
    shares = (row.get("to_data") or {}).get("prdc") or {}
    figures = {"FID": row.get("frechet_data"), **{name: shares.get(name) for name in ("recall", "coverage")}}
    return {name: float(value) for name, value in figures.items() if value is not None}
