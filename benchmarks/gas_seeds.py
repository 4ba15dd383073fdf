"""GS and GAS over several training seeds, measured on the same unseen seeds: ``python benchmarks/gas_seeds.py --help``.

Between them stands a control: GAS's steps of Adam, batches and choice of the best, but a discriminator of weight 0.
The discriminator's share of GAS's gain over GS is what the control does not have. The lifted kinds add a residual to
the last row of GS: trained on the pairs, then against a discriminator, and that one's control.
Every solver is a result with a JSON file of its own; existing ones are not made again, and an interrupted training
resumes. The teacher's samples come from ``gas pairs``. Print the table with ``benchmarks/gas_report.py``.
"""

import argparse
import json
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import rows
import torch
from safetensors.torch import save_file

import gas
from gas.classical.registry import SOLVERS
from gas.evaluation import Evaluator, feature_space, sample_pairs
from gas.experiments import (
    AdversarialMethod,
    Budget,
    Experiment,
    SolverResult,
    Store,
    run_method,
)
from gas.pairs.dataset import read_pairs
from gas.training.adversarial.setup import BALANCE, GAS
from gas.training.distillation import Distilled, distill
from gas.training.lifting import (
    GAS_LIFTING,
    Lifted,
    Lifting,
    RecordedPairs,
    fit_lifted,
    lifted_samples,
    measured_cost,
    record_runs,
)
from gas.training.loop import FitRecord
from gas.training.plan import FINISH
from gas.training.ranking import best_classical

# Samples that are stored for the picture.
SHOWN = 16
# Of residuals.
WIDTH, PATCH = 8, 1

# Kinds by name, and the weight of their discriminator: without one, the usual one, or 0.
KINDS = {
    "gs": None,
    "gas": BALANCE,
    "control": 0.0,
    "lifted": None,
    "lifted_gas": BALANCE,
    "lifted_control": 0.0,
}


def main() -> None:
    """Make and measure every missing result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--pairs", type=Path, required=True, help="to train and to choose on")
    parser.add_argument("--unseen", type=Path, required=True, help="the teacher's samples to measure on")
    parser.add_argument("--real", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--nfe", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--seeds", type=int, default=3, help="training seeds 0 .. N - 1")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--validation", type=int, default=512)
    parser.add_argument("--width", type=int, default=WIDTH, help="channels of residuals")
    parser.add_argument("--patch", type=int, default=PATCH, help="side of their patches")
    parser.add_argument("--work", type=Path, default=Path("runs/gas-seeds"), help="solver files and states")
    parser.add_argument("--out", type=Path, default=Path("docs/results/few-calls"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = gas.zoo.load(options.model)
    train, validation = read_pairs(options.pairs, model=model).split(options.validation)
    unseen = read_pairs(options.unseen, model=model)
    evaluator = Evaluator.for_model(model, unseen, feature_space(model, real=options.real))
    teacher(options, model, evaluator)
    for nfe in options.nfe:
        classical(options, model, evaluator, validation, nfe)
        for seed in range(options.seeds):
            for name in options.kinds:
                path = options.out / f"{options.model}-{nfe}-{name}-{seed}.json"
                if path.exists():
                    continue
                balance = KINDS[name]
                budget = Budget(
                    config=replace(FINISH, seed=seed),
                    gas=replace(GAS_LIFTING if name.startswith("lifted") else GAS, seed=seed),
                    balance=BALANCE if balance is None else balance,
                )
                folder = options.work / f"{options.model}-{seed}"
                experiment = Experiment(
                    model=model, train=train, validation=validation, budget=budget, folder=folder
                )
                cell = Cell(experiment, evaluator, nfe, name)
                figures, samples = cell.lifted(options) if name.startswith("lifted") else cell.table()
                weight = {} if balance is None else {"balance": balance}
                write_json(path, evaluator, {**figures, "training_seed": seed, **weight})
                if seed == 0:
                    shown = samples[:SHOWN].contiguous()
                    save_file({"samples": shown}, options.work / f"{path.stem}.safetensors")


@dataclass(frozen=True)
class Cell:
    """One kind of solver at one NFE, trained and measured."""

    experiment: Experiment
    evaluator: Evaluator
    nfe: int
    name: str

    def table(self) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the figures and samples of GS, GAS or its control."""
        gs = DistilledGS(self.experiment.folder / "search")
        method = gs if self.name == "gs" else AdversarialMethod(self.name, self.name.upper(), gs)
        result = run_method(self.experiment, self.evaluator, method, self.nfe, Store(self.experiment.folder))
        if result.metrics is None:
            raise SystemExit(f"{self.name} of NFE {self.nfe} diverged")
        shown = self.evaluator.pairs.view(slice(0, SHOWN))
        figures = {"evaluations": result.evaluations, "seconds": result.seconds}
        return {**asdict(result.metrics), **figures}, sample_pairs(self.experiment.model, shown, result.table)

    def lifted(self, options: argparse.Namespace) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the figures and samples of GS with a residual."""
        experiment, began = self.experiment, time.perf_counter()
        table = Store(experiment.folder).read("gs", self.nfe).table
        lifting = Lifting(seed=experiment.budget.gas.seed, width=options.width, patch=options.patch)
        state = experiment.folder / self.name
        state.mkdir(exist_ok=True)
        first = experiment.folder / "lifted" / f"nfe-{self.nfe}-lift.pt"
        if self.name != "lifted" and first.exists():  # the first training is the same
            shutil.copy(first, state / first.name)
        runs = [self.recorded(experiment.train), self.recorded(experiment.validation)]
        adversary = None if self.name == "lifted" else experiment.adversary
        training = fit_lifted(
            experiment.model, *runs, table, config=lifting, adversary=adversary, state=state
        )
        result = outcome(training)
        seconds = round(time.perf_counter() - began, 2)
        samples = self.samples(result.table)
        measured = asdict(self.evaluator.measure(self.name, samples, self.nfe))
        cost = measured_cost(lifting, experiment.model, runs[0])
        residual = {"numbers": cost.numbers, "width": lifting.width, "patch": lifting.patch}
        figures = {"residual": {**residual, "share_of_a_call": cost.share}, "stopped": result.stopped}
        return {**measured, **figures, "evaluations": result.evaluations, "seconds": seconds}, samples

    def samples(self, table: gas.Table) -> torch.Tensor:
        """Return the samples of a lifted table, from recorded runs of GS."""
        residual = (table.residuals or {}).get(self.nfe - 1)
        runs = self.recorded(self.evaluator.pairs)
        if residual is None:
            return runs.states[:, -1]
        with torch.no_grad():
            return torch.cat([lifted_samples(residual, part) for part in runs.batches()])

    def recorded(self, pairs: gas.Pairs) -> RecordedPairs:
        """Return runs of GS on pairs; those of the last cell are made once."""
        key = (self.experiment.folder, self.nfe, int(pairs.seeds[0]))
        if key not in _RUNS:
            for old in [each for each in _RUNS if each[:2] != key[:2]]:
                del _RUNS[old]
            table = Store(self.experiment.folder).read("gs", self.nfe).table
            _RUNS[key] = record_runs(self.experiment.model, table, pairs)
        return _RUNS[key]


_RUNS: dict[tuple[Path, int, int], RecordedPairs] = {}


def outcome(training: Generator[FitRecord, None, Lifted]) -> Lifted:
    """Train to the end."""
    while True:
        try:
            next(training)
        except StopIteration as stop:
            return stop.value


@dataclass(frozen=True)
class DistilledGS:
    """GS as ``gas train`` makes it: the start by successive halving, the best classical table if nothing beats it."""

    state: Path
    spec = "gs"
    label = "GS"
    category = "learned"
    base = None

    def unavailable(self, experiment: Experiment, nfe: int) -> str:
        """GS exists at every NFE."""
        return ""

    def fingerprint(self, experiment: Experiment, nfe: int) -> dict[str, Any]:
        """Return what decides the solver."""
        return {"kind": "gs", "start": "successive halving", **experiment.fingerprint()}

    def make(self, experiment: Experiment, nfe: int, base: None) -> Iterator[FitRecord | SolverResult]:
        """Train the solver of one NFE."""
        config = experiment.budget.config
        for report in distill(
            experiment.model,
            experiment.train,
            experiment.validation,
            nfe,
            config=config,
            state=self.state,
        ):
            if isinstance(report, FitRecord):
                yield report
            elif isinstance(report, Distilled):
                yield SolverResult(report.solver, report.start, report.evaluations, report.stopped)


def teacher(options: argparse.Namespace, model: gas.models.Model, evaluator: Evaluator) -> None:
    """Measure the teacher's own samples."""
    pairs = evaluator.pairs
    solver = gas.Classical.from_config({"t_end": model.t_end, **pairs.teacher})
    write(options.out / f"{options.model}-teacher.json", evaluator, solver.label, pairs.target, solver.nfe)


def classical(
    options: argparse.Namespace,
    model: gas.models.Model,
    evaluator: Evaluator,
    validation: gas.Pairs,
    nfe: int,
) -> None:
    """Measure the classical solver that is best on the validation pairs."""
    path = options.out / f"{options.model}-{nfe}-classical.json"
    if not path.exists():
        best = best_classical(model, validation, nfe, list(SOLVERS), finalists=3)
        samples = sample_pairs(model, evaluator.pairs, best.table)
        write(path, evaluator, best.classical.label, samples, nfe)
        save_file({"samples": samples[:SHOWN].contiguous()}, options.work / f"{path.stem}.safetensors")


def write(path: Path, evaluator: Evaluator, name: str, samples: torch.Tensor, nfe: int) -> None:
    """Measure samples and write the figures, unless the file exists."""
    if not path.exists():
        write_json(path, evaluator, asdict(evaluator.measure(name, samples, nfe)))


def write_json(path: Path, evaluator: Evaluator, figures: dict[str, Any]) -> None:
    """Write figures with the seeds they are of, the command and the machine."""
    seeds = evaluator.pairs.seeds
    document = {"seeds": [int(seeds[0]), int(seeds[-1]) + 1], **figures}
    document |= {"command": rows.command(), "machine": rows.machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(f"{path}: Frechet to data {figures['frechet_data']:.3f}, MSE {figures['mse']:.5f}", flush=True)


if __name__ == "__main__":
    main()
