"""GS and GAS over several training seeds, measured on the same unseen seeds: ``python bench/gas_seeds.py --help``.

Between them stands a control: GAS's steps of Adam, batches and choice of the best, but a critic of weight 0. What GAS
has over GS is the critic's doing only as far as the control does not have it too.
Every solver is a cell with a JSON file of its own; those that are there are not made again, and an interrupted
training goes on. The teacher's samples come from ``gas pairs``. Print the table with ``bench/gas_report.py``.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import rows
import torch
from gas.cli.measuring import held_out, yardstick
from safetensors.torch import save_file

import gas
from gas.classical.registry import SOLVERS, Classical
from gas.cli.options import parse_nfes
from gas.evaluation.evaluator import Yardstick
from gas.evaluation.sampler import run
from gas.learned.generalized import GeneralizedSolver
from gas.table import Table
from gas.training.adversarial.setup import BALANCE, GAS, adversary_for, fit_adversarial
from gas.training.distillation import FINISH, distill
from gas.training.initialization import StartSearch
from gas.training.ranking import best_classical
from gas.zoo.model import ZooModel


def main() -> None:
    """Make and measure every cell that is not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--pairs", type=Path, required=True, help="to train and to choose on")
    parser.add_argument("--unseen", type=Path, required=True, help="the teacher's samples to measure on")
    parser.add_argument("--real", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--nfe", default="2-4")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds 0 .. N - 1")
    parser.add_argument("--validation", type=int, default=512)
    parser.add_argument("--balance", type=float, default=BALANCE)
    parser.add_argument("--work", type=Path, default=Path("runs/gas-seeds"), help="solver files and states")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gas"))
    options = parser.parse_args()
    bench = Bench.open(options)
    bench.cell("teacher", bench.teacher)
    for nfe in parse_nfes(options.nfe):
        bench.cell(f"{nfe}-classical", lambda nfe=nfe: bench.classical(nfe))
        for seed in range(options.seeds):
            for kind in ("gs", "gas", "control"):
                bench.cell(
                    f"{nfe}-{kind}-{seed}",
                    lambda nfe=nfe, kind=kind, seed=seed: bench.learned(nfe, kind, seed),
                )


@dataclass(frozen=True)
class Bench:
    """What all cells share."""

    model: ZooModel
    pairs: gas.Pairs
    validation: gas.Pairs
    ruler: Yardstick
    options: argparse.Namespace

    @classmethod
    def open(cls, options: argparse.Namespace) -> "Bench":
        """Read pairs and images."""
        model = gas.zoo.load(options.model)
        pairs, validation = gas.pairs.read_pairs(options.pairs, model=model).split(options.validation)
        unseen = gas.pairs.read_pairs(options.unseen, model=model)
        if bool(torch.isin(unseen.seeds, torch.cat([pairs.seeds, validation.seeds])).any()):
            raise ValueError("--unseen holds seeds that are trained or chosen on")
        options.work.mkdir(parents=True, exist_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
        ruler = yardstick(model, unseen, held_out(model, options.real))
        return cls(model, pairs, validation, ruler, options)

    def cell(self, name: str, make: Callable[[], dict[str, object]]) -> None:
        """Make a cell and keep what it measured, unless it is there."""
        path = self.options.out / f"{self.options.model}-{name}.json"
        if path.exists():
            return
        found = make()
        told = {"seeds": [int(self.ruler.pairs.seeds[0]), int(self.ruler.pairs.seeds[-1]) + 1], **found}
        told |= {"command": rows.command(), "machine": rows.machine()}
        path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
        print(f"{path}: Frechet to data {told['frechet_data']:.3f}, MSE {told['mse']:.5f}", flush=True)

    def teacher(self) -> dict[str, object]:
        """The teacher's own distance to data."""
        pairs = self.ruler.pairs
        teacher = Classical(**{"t_end": self.model.t_end, **pairs.teacher})
        return asdict(self.ruler.measure(teacher.label, pairs.target, teacher.nfe))

    def classical(self, nfe: int) -> dict[str, object]:
        """The best of all classical solvers on all grids, chosen on these very seeds."""
        best = best_classical(self.model, self.ruler.pairs, nfe, list(SOLVERS))
        return self.measured(best.classical.label, best.table)

    def learned(self, nfe: int, kind: str, seed: int) -> dict[str, object]:
        """Train a solver, or read the one that an interrupted run has trained, and measure it."""
        path = self.options.work / f"{self.options.model}-{nfe}-{kind}-{seed}.json"
        if not path.exists():
            solver = self.gs(nfe, seed) if kind == "gs" else self.gas(nfe, kind, seed)
            gas.save(path, solver, model=self.model)
        samples = path.with_suffix(".safetensors") if seed == 0 else None
        return {
            **self.measured(kind.upper(), gas.load(path).table(nfe), samples),
            "training_seed": seed,
            **({} if kind == "gs" else {"balance": self.balance(kind)}),
        }

    def gs(self, nfe: int, seed: int) -> GeneralizedSolver | Table:
        """GS as ``gas train --seed`` makes it."""
        state = self.options.work / f"{self.options.model}-{nfe}-{seed}.state"
        search = StartSearch().seeded(seed)
        config = replace(FINISH, seed=seed)
        *_, last = distill(
            self.model, self.pairs, self.validation, nfe, config=config, search=search, state=state
        )
        return last.solver

    def balance(self, kind: str) -> float:
        """The critic's weight in units of the paired loss: none in the control."""
        return 0.0 if kind == "control" else float(self.options.balance)

    def gas(self, nfe: int, kind: str, seed: int) -> GeneralizedSolver:
        """GAS or its control, which go on from GS of the same seed."""
        model, work = self.model, self.options.work
        table = gas.load(work / f"{self.options.model}-{nfe}-gs-{seed}.json").table(nfe)
        solver = GeneralizedSolver.from_table(model.schedule, table, model.t_end)
        adversary = adversary_for(
            model, self.pairs, balance=self.balance(kind), config=replace(GAS, seed=seed), seed=seed
        )
        checkpoint = work / f"{self.options.model}-{nfe}-{kind}-{seed}.pt"
        for record in fit_adversarial(
            adversary, solver, model, self.pairs, self.validation, checkpoint=checkpoint
        ):
            logs = " ".join(f"{name} {value:.3g}" for name, value in record.logs.items())
            print(
                f"  NFE {nfe} {kind} seed {seed} at {record.iteration}: {record.validation_loss:.4f} {logs}",
                flush=True,
            )
        return solver

    def measured(self, name: str, table: Table, samples: Path | None = None) -> dict[str, object]:
        """Run a table on the unseen seeds and measure; keep the samples where a path is given."""
        made = run(self.model, self.ruler.pairs, table)
        if samples is not None:
            save_file({"samples": made}, samples)
        return asdict(self.ruler.measure(name, made, table.nfe))


if __name__ == "__main__":
    main()
