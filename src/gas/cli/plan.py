"""``gas plan``: what teacher pairs and a training will cost."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import gas
from gas.cli import options
from gas.cli.app import command
from gas.cli.checks import GUIDANCE, NFE, option
from gas.cli.loading import guidance_of
from gas.cli.screen import note, print_json, print_table

# Budgets of the table, in shares of the full training.
_SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)


@command("gas plan --model digits --seeds 1280 --nfe 4,6")
def plan(
    nfe: Annotated[str, option("NFE to learn, as 4 or 3-6,8,10.", options.parse_nfes)] = "4",
    seeds: Annotated[
        str, option("Seeds of the pairs, as N or FIRST:STOP (not included).", options.parse_seeds)
    ] = ("1280"),
    teacher_nfe: Annotated[int, option("Network evaluations a pair of the teacher.", **NFE)] = 20,
    validation: options.Validation = None,
    guidance: Annotated[
        float | None, option("Guidance scale; default: as for gas pairs.", **GUIDANCE)
    ] = None,
    *,
    network: options.NetworkOptions,
    json: options.Json = False,
) -> None:
    """Estimate evaluations, time, memory and disk of gas pairs and gas train, and what smaller budgets buy.

    A few network calls and one training step are timed. Evaluations are of single samples, everything counted; gas
    train keeps to a number of them with --budget.
    """
    model, nfes = network.load(), options.parse_nfes(nfe)
    guidance = guidance_of(network.model, model, guidance)
    passes = gas.models.protocol.passes_of(model, guidance)
    count = len(options.parse_seeds(seeds))
    chosen = options.validation_count(count, validation)
    rows: list[dict[str, Any]] = []
    for n in nfes:
        cost = gas.training.measure_calls(model, n, guidance=guidance)
        if not rows:
            price = gas.training.price.pairs_price(model, cost, count, teacher_nfe)
            rows.append(_row("pairs", None, None, price, passes))
        full = gas.training.distillation.plan_of(model, count - chosen, chosen, n)
        for share in _SHARES:
            cut = full if share == 1 else full.within(int(share * full.total.evaluations))
            rows.append(_row("training", n, cut, gas.training.price.training_price(cut, cost), passes))
    if json:
        print_json(rows)
        return
    title = f"{model.name}: {count:,} pairs, {chosen:,} of them to choose by"
    if passes > 1:
        title += f"; with guidance {guidance:g}, an evaluation is two forward passes"
    print_table(title, [_cells(row) for row in rows])
    note("for each NFE the full training, then smaller budgets: gas train --budget EVALUATIONS")


def _row(
    work: str,
    nfe: int | None,
    plan: gas.training.TrainingPlan | None,
    price: gas.training.Price,
    passes: int,
) -> dict[str, Any]:
    sizes: dict[str, Any] = {"steps": None, "pairs": None, "validation": None}
    if plan is not None:
        sizes = {"steps": plan.steps, "pairs": list(plan.step_pairs), "validation": plan.validation}
    forward = {} if passes == 1 else {"forward_passes": passes * price.evaluations}
    return {"work": work, "nfe": nfe, **asdict(price), **forward, **sizes}


def _cells(row: dict[str, Any]) -> dict[str, object]:
    return {
        "": row["work"],
        "NFE": row["nfe"],
        "network evaluations": f"{row['evaluations']:,}",
        "forward passes": f"{row['forward_passes']:,}" if "forward_passes" in row else None,
        "time": str(timedelta(seconds=round(row["seconds"]))),
        "peak memory": f"{row['memory'] / 2**20:,.0f} MB" if row["memory"] else None,
        "disk": f"{row['disk'] / 2**20:,.1f} MB" if row["disk"] else None,
        "steps": row["steps"],
        "pairs a step": row["pairs"] and f"{row['pairs'][0]} to {row['pairs'][-1]}",
        "chosen on": row["validation"] and f"{row['validation']} pairs",
    }
