"""GS and GAS over several training seeds, measured on the same unseen seeds: ``python benchmarks/gas_seeds.py --help``.

Between them stands a control: GAS's steps of Adam, batches and choice of the best, but a discriminator of weight 0.
The discriminator's share of GAS's gain over GS is what the control does not have.
Every solver is a result with a JSON file of its own; existing ones are not made again, and an interrupted training
resumes. The teacher's samples come from ``gas pairs``. Print the table with ``benchmarks/gas_report.py``.
"""

import argparse
import json
from collections.abc import Iterator
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
    MethodResult,
    SolverResult,
    Store,
    run_method,
)
from gas.pairs.dataset import read_pairs
from gas.training.adversarial.setup import BALANCE, GAS
from gas.training.distillation import Distilled, distill
from gas.training.loop import FitRecord
from gas.training.plan import FINISH
from gas.training.ranking import best_classical


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
    parser.add_argument("--validation", type=int, default=512)
    parser.add_argument("--balance", type=float, default=BALANCE)
    parser.add_argument("--work", type=Path, default=Path("runs/gas-seeds"), help="solver files and states")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gas"))
    options = parser.parse_args()
    model = gas.zoo.load(options.model)
    train, validation = read_pairs(options.pairs, model=model).split(options.validation)
    unseen = read_pairs(options.unseen, model=model)
    evaluator = Evaluator.for_model(model, unseen, feature_space(model, real=options.real))
    classical_and_teacher(options, model, evaluator)
    for nfe in options.nfe:
        for seed in range(options.seeds):
            for name, balance in (("gs", None), ("gas", options.balance), ("control", 0.0)):
                budget = Budget(
                    config=replace(FINISH, seed=seed),
                    gas=replace(GAS, seed=seed),
                    balance=BALANCE if balance is None else balance,
                )
                folder = options.work / f"{options.model}-{seed}"
                experiment = Experiment(
                    model=model, train=train, validation=validation, budget=budget, folder=folder
                )
                gs = DistilledGS(folder / "search")
                method = gs if balance is None else AdversarialMethod(name, name.upper(), gs)
                path = options.out / f"{options.model}-{nfe}-{name}-{seed}.json"
                if path.exists():
                    continue
                result = run_method(experiment, evaluator, method, nfe, Store(folder))
                write_result(path, evaluator, result, seed, balance)
                if seed == 0:
                    samples = sample_pairs(model, unseen, result.table)
                    save_file({"samples": samples}, options.work / f"{path.stem}.safetensors")


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


def classical_and_teacher(options: argparse.Namespace, model: gas.models.Model, evaluator: Evaluator) -> None:
    """Measure the teacher's own samples, and the classical solver that is best on these very seeds at every NFE."""
    pairs = evaluator.pairs
    teacher = gas.Classical(**{"t_end": model.t_end, **pairs.teacher})
    write(options.out / f"{options.model}-teacher.json", evaluator, teacher.label, pairs.target, teacher.nfe)
    for nfe in options.nfe:
        path = options.out / f"{options.model}-{nfe}-classical.json"
        if not path.exists():
            best = best_classical(model, pairs, nfe, list(SOLVERS))
            write(path, evaluator, best.classical.label, sample_pairs(model, pairs, best.table), nfe)


def write(path: Path, evaluator: Evaluator, name: str, samples: torch.Tensor, nfe: int) -> None:
    """Measure samples and write the figures, unless the file exists."""
    if not path.exists():
        write_json(path, evaluator, asdict(evaluator.measure(name, samples, nfe)))


def write_result(
    path: Path, evaluator: Evaluator, result: MethodResult, seed: int, balance: float | None
) -> None:
    """Write the figures of a learned solver with its training seed."""
    if result.metrics is None:
        raise SystemExit(f"{path.stem} diverged")
    weight = {} if balance is None else {"balance": balance}
    write_json(path, evaluator, {**asdict(result.metrics), "training_seed": seed, **weight})


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
