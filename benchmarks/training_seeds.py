"""Learned against classical, by mean and by median: ``python benchmarks/training_seeds.py runs/digits-?.json``.

Squared errors to the teacher, times 1000, on unseen seeds, of solver files that differ in the seed of their training.
All classical solvers run on the first 64 of these very seeds; the eight best by mean and the eight best by median run
on all, and the best in each is the one to beat, which favors them. Exit code 1 if a file loses in either.
"""

import argparse
from pathlib import Path

import torch
from forwards import pairs_of, spread
from torch import Tensor

import gas
from gas.classical.registry import candidates
from gas.cli.options import parse_seeds
from gas.losses import l2
from gas.training.validation import PairLosses

SCREENING, FINALISTS = 64, 8


def main() -> None:
    """Print a Markdown table, a row for each NFE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("solvers", type=Path, nargs="+")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seeds", type=parse_seeds, default=range(50_000, 52_048))
    options = parser.parse_args()
    model, solvers = gas.zoo.load(options.model), [gas.load(path) for path in options.solvers]
    unseen = pairs_of(solvers[0], model, options.seeds)
    print(f"`{options.model}`, {len(unseen)} samples, {len(solvers)} training seeds\n")
    print(
        "| NFE | best classical, mean | GS, mean | best classical, median | GS, median | network evaluations |"
    )
    print("|---|---|---|---|---|---|")
    lost = []
    for nfe in solvers[0].nfes:
        mean, median = classical(model, unseen, nfe)
        losses = [1000 * gas.evaluate(model, unseen, solver.table(nfe), l2) for solver in solvers]
        evaluations = [solver.entry(nfe).measured["evaluations"] for solver in solvers]
        print(
            f"| {nfe} | {mean[0]:.3g} ({mean[1]}) | {spread([float(x.mean()) for x in losses], '.3g')} "
            f"| {median[0]:.3g} ({median[1]}) | {spread([float(x.median()) for x in losses], '.3g')} "
            f"| {sum(evaluations) / len(evaluations):,.0f} |",
            flush=True,
        )
        lost += [nfe for x in losses if float(x.mean()) >= mean[0] or float(x.median()) >= median[0]]
    if lost:
        raise SystemExit(
            f"a file loses to the best classical solver at NFE {', '.join(map(str, sorted(set(lost))))}"
        )


def classical(model: gas.models.Model, unseen: gas.Pairs, nfe: int) -> tuple[tuple[float, str], ...]:
    """Return the least mean and the least median of classical solvers, times 1000, each with its solver's label."""
    screening = PairLosses(model, unseen.view(slice(0, SCREENING)), l2, SCREENING)
    tables = {solver.label: table for solver, table in candidates(model.schedule, nfe, model.t_end)}
    screened = {label: screening.losses(table) for label, table in tables.items()}
    finalists = set()
    for statistic in (Tensor.mean, Tensor.median):
        values = {label: float(statistic(losses).nan_to_num(torch.inf)) for label, losses in screened.items()}
        finalists |= set(sorted(values, key=lambda label: values[label])[:FINALISTS])
    whole = PairLosses(model, unseen, l2, SCREENING)
    losses = {label: 1000 * whole.losses(tables[label]) for label in finalists}
    return tuple(
        min((float(statistic(values)), label) for label, values in losses.items())
        for statistic in (Tensor.mean, Tensor.median)
    )


if __name__ == "__main__":
    main()
