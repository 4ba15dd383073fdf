"""A cell of the paper with what makes it here: settings, files and the words of its commands."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gas.paper import Cell
    from gas.presets import Preset
    from gas.presets.preset import Objective

__all__ = ["Line", "More"]

_KINDS = {"LD3": "ld3", "S4S-Alt": "s4s-alt", "GS without theory": "gs-free"}
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
        from gas.presets import preset_by_name

        kind = _KINDS.get(cell.solver)
        told = (*cell.sets, *((f"solver={kind}",) if kind and not cell.sets else ()), *more.sets)
        preset = preset_by_name(cell.preset).changed(told)
        trained = preset_by_name(cell.trained).changed(told) if cell.trained else preset
        objective: Objective = "gas" if cell.solver.startswith("GAS") else "gs"
        nfe = cell.nfe or preset.nfes[-1]  # the teacher's, and classical solvers', lines come with some GS
        solver = solver_file(trained, objective, nfe)
        if cell.solver == "GAS, classic":
            solver = solver.with_name(f"gas-classic-{nfe}.json")
        name = (
            f"{cell.preset}-from-{cell.trained}-{solver.name}"
            if cell.trained
            else f"{cell.preset}-{solver.name}"
        )
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
            [*evaluate, *words, *baselines, *self.more.measure, "--json"],
        ]

    def command(self) -> str:
        """The commands as people type them."""
        train, evaluate = (" ".join(["gas", *map(shlex.quote, words)]) for words in self.commands())
        return f"{train} && {evaluate} > {shlex.quote(str(self.result))}"

    def missing(self) -> list[str]:
        """The published files that it needs and that are not there."""
        from gas.presets import find_files, weights_folder

        wanted = {"network", "prompts", "loss", "loss weights"} | (
            {"critic"} if self.objective == "gas" else set()
        )
        folder = weights_folder(self.more.weights)
        found = [one for one in find_files(self.trained, folder) if one.file.role in wanted]
        found += [one for one in find_files(self.preset, folder) if one.file.role in ("network", "prompts")]
        return list(dict.fromkeys(one.file.name for one in found if one.path is None))
