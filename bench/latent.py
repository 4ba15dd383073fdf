"""GS and GAS against classical solvers on a guided model of latents: ``python bench/latent.py --model mnist-latent``.

For every NFE: GS is learned from teacher pairs (``gas pairs --guidance 2``), GAS goes on from it against a critic, and
both are measured on unseen seeds beside the classical solvers, each on the grid that is best for it on 64 of the
validation pairs. Solver files that are there are not learned again.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import rows
import torch
from gas.cli.measuring import yardstick

import gas
from gas.classical.registry import Classical
from gas.cli.evaluate import taught
from gas.cli.options import parse_nfes, parse_seeds
from gas.evaluation.evaluator import Yardstick
from gas.evaluation.sampler import run
from gas.learned.generalized import GeneralizedSolver
from gas.models.protocol import Model
from gas.table import Table
from gas.training.adversarial.setup import GAS, adversary_for, fit_adversarial
from gas.training.distillation import distill, neighbor_grid
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import StartSearch
from gas.training.ranking import best_classical

BASELINES = {
    "Euler": ["ddim"],
    "DPM-Solver++": ["dpmpp-2m", "dpmpp-3m"],
    "UniPC-3": ["unipc-3-bh2"],
    "iPNDM-3": ["ipndm-3"],
}
SHORT_RUN = GaussNewton(iterations=3, batch=10, validate_every=3)
FINISH = GaussNewton(iterations=10, batch=48, growth=1.1, forgetting=0.8)


def main() -> None:
    """Learn and measure every NFE, and draw the samples of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist-latent")
    parser.add_argument("--pairs", type=Path, help="to train and to choose on, guided")
    parser.add_argument("--validation", type=int, default=256)
    parser.add_argument("--unseen", default="50000:50512", help="seeds to measure on")
    parser.add_argument("--nfe", default="4-7")
    parser.add_argument("--gas", default="4-7", help="NFE that GAS is learned for too")
    parser.add_argument("--budget", type=int, default=5_000, help="network evaluations a step of GS")
    parser.add_argument("--gas-iterations", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("runs/latent"), help="solver files")
    parser.add_argument("--out", type=Path, default=Path("docs/results/latent"))
    parser.add_argument("--picture", type=Path, help="a .png of the first NFE's samples")
    parser.add_argument("--table", action="store_true", help="print what is in --out, and stop")
    options = parser.parse_args()
    if options.table:
        print(table_of(options.out, options.model, parse_nfes(options.nfe)))
        return
    if options.pairs is None:
        parser.error("--pairs is needed: make some with gas pairs --guidance 2")
    bench = Bench.open(options)
    for nfe in parse_nfes(options.nfe):
        bench.measure(nfe)
    if options.picture is not None:
        bench.draw(options.picture, parse_nfes(options.nfe)[0])


@dataclass(frozen=True)
class Bench:
    """What all NFE share."""

    model: Model
    pairs: gas.Pairs
    validation: gas.Pairs
    ruler: Yardstick
    teacher: Classical
    options: argparse.Namespace

    @classmethod
    def open(cls, options: argparse.Namespace) -> "Bench":
        """Read pairs and run the teacher on unseen seeds."""
        model = gas.zoo.load(options.model)
        read = gas.pairs.read_pairs(options.pairs, model=model)
        teacher = Classical(**{"t_end": model.t_end, **read.teacher})
        unseen = taught(model, teacher, parse_seeds(options.unseen), read.guidance)
        if bool(torch.isin(unseen.seeds, read.seeds).any()):
            raise ValueError("--unseen holds seeds that are trained or chosen on")
        for folder in (options.work, options.out):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(model, *read.split(options.validation), yardstick(model, unseen), teacher, options)

    def measure(self, nfe: int) -> None:
        """Measure all solvers of an NFE and keep what came out."""
        path = self.options.out / f"{self.options.model}-{nfe}.json"
        if path.exists():
            return
        found = [self.row(name, label, table) for name, label, table in self.solvers(nfe)]
        found.append(self.row("teacher", self.teacher.label, None))
        told = {
            "model": self.options.model,
            "guidance": self.pairs.guidance,
            "unseen": self.options.unseen,
            "pairs": [len(self.pairs), len(self.validation)],
            "teacher": self.teacher.config(),
            "command": rows.command(),
            "machine": rows.machine(),
            "rows": found,
        }
        path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
        for one in found:
            print(nfe, one["name"], one["label"], f"MSE {one['mse']:.5f}", one["to_teacher"], flush=True)

    def row(self, name: str, label: str, table: Table | None) -> dict[str, object]:
        """Run a solver on the unseen seeds, or take the teacher's own samples, and measure."""
        pairs = self.ruler.pairs
        made = pairs.target if table is None else run(self.model, pairs, table)
        nfe = self.teacher.nfe if table is None else table.nfe
        kept = {"name", "nfe", "mse", "mse_half_width", "frechet_data", "frechet_data_interval"}
        found = asdict(self.ruler.measure(name, made, nfe))
        near = found["to_teacher"] or {}
        return {
            "label": label,
            **{key: value for key, value in found.items() if key in kept},
            "to_teacher": {key: value for key, value in near.items() if key.startswith("frechet")},
        }

    def solvers(self, nfe: int) -> Iterator[tuple[str, str, Table]]:
        """Yield every solver of an NFE with what it is: its grid, or its file's start."""
        few = self.validation.subset(slice(0, 64))
        for name, choice in BASELINES.items():
            best = best_classical(self.model, few, nfe, choice)
            yield name, best.classical.label, best.table
        yield "GS", "learned", self.gs(nfe)
        if nfe in parse_nfes(self.options.gas):
            yield "GAS", "learned", self.adversarial(nfe)

    def file(self, nfe: int, kind: str) -> Path:
        """Where a solver is kept."""
        return self.options.work / f"{self.options.model}-{nfe}-{kind}.json"

    def gs(self, nfe: int) -> Table:
        """GS, whose start search has the times of the next smaller NFE that exists."""
        path = self.file(nfe, "gs")
        if not path.exists():
            search = StartSearch(screening_pairs=16, validation_pairs=32, candidates=3, short_run=SHORT_RUN)
            smaller = [n for n in range(1, nfe) if self.file(n, "gs").exists()]
            if smaller:
                last = gas.load(self.file(smaller[-1], "gs")).table(smaller[-1])
                grid = neighbor_grid(self.model.schedule, last, nfe, self.model.t_end)
                search = replace(search, candidates=2, extra_grid=grid)
            *_, end = distill(
                self.model, self.pairs, self.validation, nfe, config=self.config(), search=search
            )
            print(f"GS {nfe}: {end.best_classical.label} {end.best_classical_loss:.5f} -> {end.loss:.5f},")
            print(f"  {end.evaluations:,} network evaluations", flush=True)
            self.save(path, end.solver)
        return gas.load(path).table(nfe)

    def config(self) -> GaussNewton:
        """Settings of GS after the start search."""
        return replace(FINISH, budget=self.options.budget)

    def adversarial(self, nfe: int) -> Table:
        """GAS, which goes on from GS against a critic."""
        path = self.file(nfe, "gas")
        if not path.exists():
            table = gas.load(self.file(nfe, "gs")).table(nfe)
            solver = GeneralizedSolver.from_table(self.model.schedule, table, self.model.t_end)
            steps = self.options.gas_iterations
            config = replace(GAS, iterations=steps, batch=16, validate_every=steps // 4)
            adversary = adversary_for(self.model, self.pairs, config=config, samples=512)
            for record in fit_adversarial(adversary, solver, self.model, self.pairs, self.validation):
                print(f"  GAS {nfe} at {record.iteration}: Frechet {record.validation_loss:.4f}", flush=True)
            self.save(path, solver, objective="gas")
        return gas.load(path).table(nfe)

    def save(self, path: Path, solver: object, **training: object) -> None:
        """Write a solver file that says what it was made for."""
        told = {"guidance": self.pairs.guidance, "teacher": self.teacher.config(), "loss": "l2"}
        gas.save(path, solver, model=self.model, training=training, **told)

    def draw(self, path: Path, nfe: int, columns: int = 10) -> None:
        """Draw the decoded samples of the first unseen seeds, one row a solver."""
        from gas.plotting.samples import sample_grid

        first = self.ruler.pairs.subset(slice(0, columns))
        found = json.loads((self.options.out / f"{self.options.model}-{nfe}.json").read_text())
        errors = {row["name"]: row["mse"] for row in found["rows"]}
        shown = []
        for name, label, table in self.solvers(nfe):
            made = self.model.decode(run(self.model, first, table))
            shown.append((f"{name}\n{label}\n{nfe} calls, MSE {errors[name]:.4f}", made.clamp(-1, 1)))
        last = self.model.decode(first.target).clamp(-1, 1)
        shown.append((f"Teacher\n{self.teacher.label}\n{self.teacher.nfe} calls", last))
        names = [label.partition("\n")[0] for label, _ in shown]
        sample_grid(
            path,
            shown,
            title=f"The same pipeline, prompts and noise at guidance {self.pairs.guidance:g}, {nfe} calls",
            note=f"{self.options.model}: the first {columns} unseen seeds, decoded; MSE of latents to the teacher.",
            highlight=names.index("GS"),
        )
        print(f"wrote {path}")


def table_of(folder: Path, model: str, nfes: list[int]) -> str:
    """What was measured, as a table in Markdown: one row a solver, one column an NFE."""
    paths = {nfe: folder / f"{model}-{nfe}.json" for nfe in nfes}
    found = {nfe: json.loads(path.read_text())["rows"] for nfe, path in paths.items() if path.exists()}
    if not found:
        raise SystemExit(f"{folder} holds no measurements of {model}: run this without --table")
    cells = {(row["name"], nfe): row for nfe, measured in found.items() for row in measured}
    lines = [
        "| " + " | ".join(["solver", *(f"{nfe} calls" for nfe in nfes)]) + " |",
        "|---" * (len(nfes) + 1) + "|",
    ]
    for name in dict.fromkeys(name for name, _ in cells):
        told = [_cell(cells.get((name, nfe))) for nfe in nfes]
        lines.append("| " + " | ".join([name, *told]) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    """Error to the teacher in thousandths; Frechet distance to it; distance to real data."""
    if row is None:
        return ""
    error = f"{1000 * row['mse']:.2f} ± {1000 * row['mse_half_width']:.2f}"
    return f"{error}; {row['to_teacher']['frechet']:.2f}; {row['frechet_data']:.1f}"


if __name__ == "__main__":
    main()
