"""Validation loss over network evaluations of one recipe: ``python benchmarks/cost_to_quality.py --help``.

The official recipe (arXiv 2510.17699, section 5) starts at DPM-Solver++(3M) on the time-uniform grid and takes
10,000 steps of Adam; ours is what ``gas train`` does. Both see the same pairs. Interrupted, it goes on.

Every network evaluation counts: training, where a gradient through one call is three, validation, and for ours the
ranking of the classical solvers and the short trainings before the main one.

``--recipe budget`` trains by ours once for each of ``--budgets`` and ``--orders`` (seeds of the order of the pairs). It
chooses on 256 of the training pairs, so that the validation pairs, which it is measured on, are unseen.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import rows

import gas
from gas.losses import l2
from gas.models.runtime import allow_tf32
from gas.training.adam import PAPER
from gas.training.distillation import distill
from gas.training.initialization import StartChoice
from gas.training.loop import FitRecord
from gas.training.plan import FINISH

RECIPES = ("official", "ours", "budget")
CHOSEN_ON = 256


def main() -> None:
    """Train by one recipe and write its curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--recipe", choices=RECIPES, default="ours")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[14_400])
    parser.add_argument("--orders", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--oversampling",
        type=int,
        default=FINISH.oversampling,
        help="Of budgets; 1 takes pairs as they come.",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/cost"))
    options = parser.parse_args()
    allow_tf32(False)
    model = gas.zoo.load(options.model).to(options.device)
    pairs, validation = gas.pairs.read_pairs(options.pairs, model=model).split(options.validation)
    out = options.out / f"{options.model}-{options.nfe}-{options.recipe}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    state = Path("runs/cost") / out.stem
    state.mkdir(parents=True, exist_ok=True)
    curve = json.loads(out.read_text())["curve"] if out.exists() else []
    document = {"model": options.model, "nfe": options.nfe, "recipe": options.recipe, "pairs": len(pairs)}
    document |= {
        "validation": len(validation),
        "command": rows.command(),
        "machine": rows.machine(options.device),
    }
    if options.recipe == "budget":
        for budget, order in itertools.product(options.budgets, options.orders):
            at = budget, order, options.oversampling
            if all((point["budget"], point["order"], point["oversampling"]) != at for point in curve):
                config = replace(FINISH, seed=order, oversampling=options.oversampling)
                curve.append(_with_budget(model, pairs, validation, options.nfe, budget, config))
                out.write_text(json.dumps({**document, "curve": curve}, indent=1))
                print(curve[-1], flush=True)
        return
    spent, started = (curve[-1]["cpu_seconds"] if curve else 0.0), time.process_time()
    for evaluations, loss, best in _training(options.recipe, model, pairs, validation, options.nfe, state):
        if curve and evaluations <= curve[-1]["evaluations"]:
            continue
        seconds = round(spent + time.process_time() - started, 1)
        curve.append({"evaluations": evaluations, "loss": loss, "best": best, "cpu_seconds": seconds})
        out.write_text(json.dumps({**document, "curve": curve}, indent=1))
        print(f"{evaluations:10d} evaluations {seconds:8.1f} s  loss {loss:.6f}  best {best:.6f}", flush=True)


def _with_budget(
    model: gas.models.Model,
    pairs: gas.Pairs,
    validation: gas.Pairs,
    nfe: int,
    budget: int,
    config: gas.GaussNewton,
) -> dict:
    """Train once with a budget; return the point of the curve, measured on the validation pairs."""
    started = time.process_time()
    *_, result = distill(model, *pairs.split(CHOSEN_ON), nfe, config=config, budget=budget)
    seconds = round(time.process_time() - started, 1)
    losses = gas.evaluate(model, validation, result.table(), l2)
    classical = gas.evaluate(model, validation, result.best_classical, l2)
    return {
        "budget": budget,
        "order": config.seed,
        "oversampling": config.oversampling,
        "evaluations": result.evaluations,
        "loss": float(losses.mean()),
        "median": float(losses.median()),
        "classical": float(classical.mean()),
        "cpu_seconds": seconds,
    }


def _training(
    recipe: str, model: gas.models.Model, pairs: gas.Pairs, validation: gas.Pairs, nfe: int, state: Path
) -> Iterator[tuple[int, float, float]]:
    """Yield network evaluations so far, the validation loss now and the best so far."""
    if recipe == "official":
        solver = gas.GeneralizedSolver(model.schedule, nfe, model.t_end)
        for record in gas.fit(
            solver, model, pairs, validation=validation, config=PAPER, checkpoint=state / "adam.pt"
        ):
            yield record.evaluations, record.validation_loss, record.best_loss
        return
    before, best = 0, float("inf")
    for report in distill(model, pairs, validation, nfe, state=state):
        if isinstance(report, StartChoice):
            before, best = report.evaluations, report.best_loss
        elif isinstance(report, FitRecord):
            best = report.best_loss
            yield before + report.evaluations, report.validation_loss, best


if __name__ == "__main__":
    main()
