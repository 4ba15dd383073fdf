"""A cell of the paper with what makes it here: settings, files and the words of its commands."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gas.errors import UserError

if TYPE_CHECKING:
    from gas.paper.files import Found
    from gas.paper.presets import Objective, Preset
    from gas.paper.tables import Cell

__all__ = ["Line", "More"]

_KINDS = {"LD3": "ld3", "S4S-Alt": "s4s-alt", "GS without theory": "gs-free"}
# Settings that decide what is measured, not what is learned.
_MEASURED = ("nfes", "evaluation_seeds", "samples", "metric", "reference")
_BASELINES = "dpmpp-3m/log_snr,unipc-3-bh1/log_snr,ipndm-3"


@dataclass(frozen=True)
class More:
    """What every cell is made with."""

    sets: tuple[str, ...]
    weights: Path | None
    device: str
    measure: tuple[str, ...]

    def words(self) -> list[str]:
        """As options of commands."""
        own = ["--preset-weights", str(self.weights)] if self.weights else []
        return own + (["--device", self.device] if self.device != "cpu" else [])


@dataclass(frozen=True)
class Line:
    """A cell with what makes it."""

    cell: Cell
    preset: Preset
    trained: Preset
    objective: Objective
    nfe: int
    solver: Path
    result: Path
    options: tuple[str, ...]
    more: More

    @classmethod
    def of(cls, cell: Cell, results: Path, more: More) -> Line:
        from gas.cli.presets import solver_file
        from gas.paper.presets import preset_by_name

        kind = _KINDS.get(cell.solver)
        own = (*cell.sets, *((f"solver={kind}",) if kind and not cell.sets else ()))
        preset, trained = (preset_by_name(name) for name in (cell.preset, cell.trained or cell.preset))
        tag = _tag(preset.changed(own), more.sets)
        own_tag = _tag(trained.changed(own), more.sets, without=_MEASURED)
        told = (*own, *more.sets)
        preset, trained = preset.changed(told), trained.changed(told)
        objective: Objective = "gas" if cell.solver.startswith("GAS") else "gs"
        nfe = cell.nfe or preset.nfes[-1]  # the teacher's, and classical solvers', lines come with some GS
        solver = solver_file(trained, objective, nfe)
        if cell.solver == "GAS, classic":
            solver = solver.with_name(f"gas-classic-{nfe}.json")
        name = f"{cell.preset}-from-{cell.trained}" if cell.trained else cell.preset
        name, solver = f"{name}-{solver.stem}{tag}.json", solver.with_stem(f"{solver.stem}{own_tag}")
        options = (*(word for setting in told for word in ("--set", setting)), *more.words())
        return cls(cell, preset, trained, objective, nfe, solver, results / name, options, more)

    def commands(self) -> list[list[str]]:
        """Words of the commands that make this cell: training, where a solver is learned, and evaluation."""
        words = ["--nfe", str(self.nfe), *self.options]
        train = ["train", "--preset", self.trained.name, "--objective", self.objective]
        evaluate = ["evaluate", "--preset", self.cell.preset, "--solver", str(self.solver)]
        evaluate += ["--transfer"] if self.cell.trained else []
        baselines = ["--baselines", _BASELINES if self.cell.preset == "cifar10" else ""]
        return [
            [*train, *words, "--out", str(self.solver)],
            [*evaluate, *words, *baselines, *self.measure(), "--json"],
        ]

    def command(self) -> str:
        """The commands as people type them."""
        train, evaluate = (" ".join(["gas", *map(shlex.quote, words)]) for words in self.commands())
        return f"{train} && {evaluate} > {shlex.quote(str(self.result))}"

    def measure(self) -> list[str]:
        """Words that name what the cell's figure is measured in and against: those given, or the preset's own files."""
        if self.more.measure:
            return list(self.more.measure)
        words = []
        for entry in self._measuring_files():
            place = str(entry.path or entry.looked[0])
            options = {
                "features": ["--features", "inception", "--weights"],
                "reference": ["--reference"],
                "images": ["--real", place, "--reference"],
            }
            words += [*options[entry.file.role], place]
        return words

    def _measuring_files(self) -> list[Found]:
        from gas.paper.files import find_measuring_files, weights_folder

        return find_measuring_files(self.preset, weights_folder(self.more.weights))

    def check(self) -> None:
        """Refuse a solver that lies where this cell's belongs and was trained with other settings.

        Raises:
            ValueError: names the first that differs.
        """
        from gas.solver_file import load

        if not self.solver.exists():
            return
        found, wanted = load(self.solver).document.training, self.trained.told()
        # Numbers of pairs are counted there, and objective is another thing of that name.
        for name in ("pairs", "validation", "objective", *_MEASURED):
            wanted.pop(name)
        for name, value in wanted.items():
            if str(found.get(name, value)) != value:
                raise UserError(
                    f"{self.solver} was trained with {name}={found[name]}, this cell needs {name}={value}: move that "
                    f"file away, or say --set {name}={found[name]}"
                )

    def missing(self) -> list[str]:
        """The published files that it needs and that are not there."""
        from gas.paper.files import find_files, weights_folder

        wanted = {"network", "prompts", "loss", "loss weights"} | (
            {"critic"} if self.objective == "gas" else set()
        )
        folder = weights_folder(self.more.weights)
        found = [one for one in find_files(self.trained, folder) if one.file.role in wanted]
        found += [one for one in find_files(self.preset, folder) if one.file.role in ("network", "prompts")]
        found += [] if self.more.measure else self._measuring_files()
        return list(dict.fromkeys(one.file.name for one in found if one.path is None))


def _tag(usual: Preset, sets: tuple[str, ...], without: tuple[str, ...] = ()) -> str:
    """The end of the names of files that are made with other settings: the same for the same, another for others."""
    before, after = usual.told(), usual.changed(sets).told()
    told = {name: value for name, value in after.items() if value != before[name] and name not in without}
    return f"-set-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]}" if told else ""
