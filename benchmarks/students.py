"""Solvers learned for quantized copies of a model from its float32 pairs: ``python benchmarks/students.py --help``.

A solver of the float32 model is trained further for every copy, and for the float32 model itself, which has the same
budget then. Errors are to the float32 teacher, on the same unseen seeds.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch

import gas
from gas.display import significant, with_interval
from gas.losses import l2
from gas.metrics.intervals import seed_interval
from gas.models.protocol import network_of

# Products of linear layers by torch's int8 kernels, which scale a whole batch's inputs alike; others are simulated.
KERNELS = "int8, torch's kernels"


def main() -> None:
    """Learn and measure every copy, and print its row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--copies", nargs="+", default=["int8", "int4"])
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=512, help="A quarter of them to choose by.")
    parser.add_argument("--unseen", type=int, default=256)
    parser.add_argument("--budget", type=int, default=8_000, help="Network evaluations of each training.")
    parser.add_argument(
        "--folder", type=Path, default="runs", help="For the teacher's pairs, which are kept."
    )
    parser.add_argument("--original", type=Path, help="Solver file of the float32 model; default: learn one.")
    options = parser.parse_args()
    original = gas.zoo.load(options.model)
    grid = "time_uniform" if isinstance(original.schedule, gas.Flow) else "log_snr"
    teacher = gas.Classical("unipc-3-bh2", grid, 20, original.t_end)
    seeds, more = range(options.pairs), range(50_000, 50_000 + options.unseen)
    sets = stored_pairs(original, teacher, seeds, options.folder / f"{options.model}-train")
    sets = sets.split(options.pairs // 4)
    unseen = stored_pairs(original, teacher, more, options.folder / f"{options.model}-unseen")
    if options.original:
        file = gas.load(options.original)
    else:
        *_, result = gas.distill(original, *sets, options.nfe, budget=2 * options.budget)
        file = gas.save(None, result, model=original)
    table, reference = file.table(options.nfe), 0.0
    unmoved = samples(original, unseen, table)
    print("Squared error x 1000: mean ± 95% interval (median)\n", flush=True)
    print("| copy | float32's table | of that, moved by the copy | own table | own / float32's |")
    print("|---|---|---|---|---|", flush=True)
    for name in ["float32", *options.copies]:
        start, model = time.perf_counter(), copy_of(options.model, name)
        search = gas.training.StartSearch(file)
        *_, result = gas.distill(model, *sets, options.nfe, search=search, budget=options.budget)
        moved = samples(model, unseen, table)
        learned = l2(samples(model, unseen, result.table()), unseen.target)
        reference = reference or float(learned.mean())
        cells = [cell(x) for x in (l2(moved, unseen.target), l2(moved, unmoved), learned)]
        print(
            "| " + " | ".join([name, *cells, f"{float(learned.mean()) / reference:.3f}"]) + " |", flush=True
        )
        seconds = time.perf_counter() - start
        print(f"<!-- {result.evaluations:,} evaluations, {seconds:.0f} s -->", flush=True)


def stored_pairs(model: gas.models.Model, teacher: gas.Classical, seeds: range, folder: Path) -> gas.Pairs:
    """Return the teacher's pairs of seeds, which a folder keeps."""
    for _ in gas.write_pairs(model, teacher, folder, gas.PairsSpec(seeds, shard=64)):
        pass
    return gas.read_pairs(folder)


@torch.no_grad()
def samples(model: gas.models.Model, pairs: gas.Pairs, table: gas.Table) -> torch.Tensor:
    """Return samples from the noise of all pairs ``(S, *)``."""
    folded = table.folded()
    parts = (
        gas.sample(model.bind(part.labels, pairs.guidance), part.noise, folded) for part in pairs.batches()
    )
    return torch.cat(list(parts))


def cell(errors: torch.Tensor) -> str:
    """Format the mean of errors ``(S,)`` with its interval and their median."""
    mean, half = (1000 * value for value in seed_interval(errors))
    return (
        f"{with_interval(mean, mean - half, mean + half)} ({significant(1000 * float(errors.median()), 3)})"
    )


def copy_of(model: str, name: str) -> gas.models.Model:
    """Return a fresh copy of a zoo model, quantized by name."""
    copy = gas.zoo.load(model)
    if name == KERNELS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.ao.quantization.quantize_dynamic(network_of(copy), {torch.nn.Linear}, inplace=True)
        return copy
    return gas.models.precise(copy, quantize=None if name == "float32" else name)


if __name__ == "__main__":
    main()
