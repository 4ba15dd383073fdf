"""How near the shipped iterate of a training is to the best one: ``python benchmarks/iterates.py --help``.

Trains as ``gas train`` does, and once more from the same start with every iterate measured on unseen seeds: "best" is
the least mean of all of them, which no choice on other pairs can know, "least on validation" the iterate that a choice
by the mean loss on the validation pairs would ship. Squared errors to the teacher, times 1000.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from forwards import spread
from torch import Tensor

import gas
from gas.cli.options import parse_seeds
from gas.learned.registry import kind_by_name
from gas.losses import l2
from gas.training.distillation import distill
from gas.training.initialization import StartChoice, StartSearch
from gas.training.plan import FINISH
from gas.training.validation import PairLosses


def main() -> None:
    """Train with every seed; print a row for each NFE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--validation", type=int, default=256)
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unseen", type=parse_seeds, default=range(50_000, 52_048))
    options = parser.parse_args()
    model = gas.zoo.load(options.model)
    pairs = gas.pairs.read_pairs(options.pairs, model=model)
    teacher = gas.Classical.from_config(pairs.teacher)
    unseen = gas.pairs.teach(model, teacher, options.unseen, guidance=pairs.guidance)
    train, validation = pairs.split(options.validation)
    print("| NFE | best | shipped / best | least on validation / best |\n|---|---|---|---|")
    for nfe in options.nfe:
        best, ratios = [], []
        for seed in range(options.seeds):
            config = replace(FINISH, seed=seed)
            *reports, result = distill(model, train, validation, nfe, config=config)
            choice = next(report for report in reports if isinstance(report, StartChoice))
            tables, validated = _iterates(model, train, validation, choice, config)
            losses = PairLosses(model, unseen, l2, 64)
            means = [1000 * float(losses.losses(table).mean()) for table in tables]
            shipped = 1000 * float(losses.losses(result.table()).mean())
            best.append(min(means))
            ratios.append((shipped / min(means), means[int(validated.argmin())] / min(means)))
        cells = [spread(list(column), ".3f") for column in zip(*ratios, strict=True)]
        print(f"| {nfe} | {fmean(best):.3g} | {' | '.join(cells)} |", flush=True)


def _iterates(
    model: gas.models.Model,
    pairs: gas.Pairs,
    validation: gas.Pairs,
    choice: StartChoice,
    config: gas.GaussNewton,
) -> tuple[list[gas.Table], Tensor]:
    """Return the table of every iterate from a start, and the mean losses of them on the validation pairs."""
    tables: list[gas.Table] = []
    validated: list[float] = []
    losses = PairLosses(model, validation, l2, 64)

    def criterion(table: gas.Table) -> Tensor:
        tables.append(table.detach())
        values = losses.losses(table)
        validated.append(float(values.mean()))
        return values

    solver = StartSearch().solver(choice, model.schedule, kind_by_name("gs"))
    config = replace(config, validate_every=1)
    for _ in gas.fit(solver, model, pairs, validation=validation, config=config, criterion=criterion):
        pass
    return tables, torch.tensor(validated)


if __name__ == "__main__":
    main()
