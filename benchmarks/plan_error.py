"""What ``gas plan`` foresees, beside what the trainings take: ``python benchmarks/plan_error.py --help``.

Pairs, full trainings and trainings of smaller budgets; the network is loaded and warm, as it is in the plan.
"""

import argparse
import time

import rows

import gas
from gas.training.distillation import distill, plan_of
from gas.training.price import measure_calls, pairs_price, training_price

VALIDATION = 256


def main() -> None:
    """Plan, then train, every model, NFE and budget; print and write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["digits", "mnist", "mnist-latent", "mnist-flow"])
    parser.add_argument("--nfe", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, default=1280)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[1.0, 0.2, 0.05], help="Of a full training."
    )
    options = parser.parse_args()
    measurements = []
    print(
        "| model | work | evaluations, planned | counted | seconds, planned | real |\n|---|---|---|---|---|---|"
    )
    for name in options.models:
        model = gas.zoo.load(name)
        teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=model.t_end)
        cost = measure_calls(model, options.nfe[0])
        price, started = pairs_price(model, cost, options.seeds, teacher.nfe), time.perf_counter()
        pairs = gas.pairs.teach(model, teacher, range(options.seeds))
        lines = [("pairs", price, len(pairs) * teacher.nfe, time.perf_counter() - started)]
        train, validation = pairs.split(VALIDATION)
        for nfe in options.nfe:
            cost = measure_calls(model, nfe)
            full = plan_of(model, len(train), len(validation), nfe)
            for share in options.shares:
                budget = None if share == 1 else int(share * full.total.evaluations)
                price = training_price(full if budget is None else full.within(budget), cost)
                started = time.perf_counter()
                *_, result = distill(model, train, validation, nfe, budget=budget)
                work = f"NFE {nfe}, " + ("full" if budget is None else f"budget {budget:,}")
                lines.append((work, price, result.evaluations, time.perf_counter() - started))
        for work, price, evaluations, seconds in lines:
            at = {"model": name, "work": work}
            values = {
                "planned evaluations": price.evaluations,
                "counted evaluations": evaluations,
                "planned seconds": price.seconds,
                "real seconds": seconds,
            }
            measurements += [rows.row(key, value, "", **at) for key, value in values.items()]
            cells = f"{price.evaluations:,} | {evaluations:,} | {price.seconds:.1f} | {seconds:.1f}"
            print(f"| `{name}` | {work} | {cells} |", flush=True)
    rows.write("plan", measurements)


if __name__ == "__main__":
    main()
