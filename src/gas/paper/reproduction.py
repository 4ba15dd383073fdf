"""From a figure of the paper to the run that measures it here: settings, solver file, result and missing files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gas.errors import UserError
from gas.paper.files import find_files, find_measuring_files
from gas.paper.presets import Objective, Preset, preset_by_name
from gas.paper.tables import PaperFigure
from gas.solver_file import load

__all__ = ["MeasuringRun", "run_for"]

# What is learned, by the paper's names of other solvers than GS.
_SOLVERS = {"LD3": "ld3", "S4S-Alt": "s4s-alt", "GS without theory": "gs-free"}
# Settings that decide what is measured, not what is learned.
_MEASURED = ("nfes", "evaluation_seeds", "samples", "metric", "reference")


@dataclass(frozen=True, kw_only=True)
class MeasuringRun:
    """One training and evaluation, which measures one or several figures of a table.

    Attributes:
        preset: whose network is sampled.
        trained: on which the solver is learned.
        objective: ``"gs"`` or ``"gas"``.
        nfe: of the solver.
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
        roles = {"network", "prompts", "loss", "loss weights"}
        if self.objective == "gas":
            roles.add("critic")
        located = [each for each in find_files(self.trained, weights) if each.role in roles]
        located += [each for each in find_files(self.preset, weights) if each.role in ("network", "prompts")]
        located += find_measuring_files(self.preset, weights) if measuring else []
        return list(dict.fromkeys(each.name for each in located if each.path is None))

    def check_solver(self) -> None:
        """Refuse a solver file at this run's path that was trained with other settings.

        Raises:
            UserError: names the first setting that differs.
        """
        if not self.solver.exists():
            return
        training, settings = load(self.solver).document.training, self.trained.settings()
        # The file counts pairs under these names, and its objective is "gs" or "gas".
        for name in ("pairs", "validation", "objective", *_MEASURED):
            settings.pop(name)
        for name, value in settings.items():
            if str(training.get(name, value)) != value:
                raise UserError(
                    f"{self.solver} was trained with {name}={training[name]}, this cell needs {name}={value}: move "
                    f"that file away, or say --set {name}={training[name]}"
                )


def run_for(figure: PaperFigure, results: Path, changes: Sequence[str] = ()) -> MeasuringRun:
    """Return the run that measures a figure.

    Classical solvers and the teacher are measured beside GS. Changed settings, as ``name=value``, make files of other
    names.
    """
    solver = _SOLVERS.get(figure.solver)
    settings = figure.settings or ((f"solver={solver}",) if solver else ())
    preset, trained = (preset_by_name(name).changed(settings) for name in (figure.preset, figure.trained_on))
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
    before = usual.settings()
    changes = {
        name: value
        for name, value in changed.settings().items()
        if value != before[name] and name not in without
    }
    if not changes:
        return ""
    return f"-set-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]}"
