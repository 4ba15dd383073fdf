"""Solvers learned for quantized copies of a model from its float32 pairs: ``python benchmarks/students.py --help``.

For every copy, on the same unseen seeds, errors to the float32 teacher: of the teacher's solver with the copy, which
is what quantization alone changes; of the best classical solver; of the table learned for float32; of the copy's own.
"""

import argparse
import time
import warnings

import torch

import gas
from gas.losses import l2
from gas.models.protocol import network_of
from gas.training.validation import evaluate

# Products of linear layers by torch's int8 kernels, which scale a whole batch's inputs alike; others are simulated.
KERNELS = "int8, torch's kernels"


def main() -> None:
    """Learn and measure every copy, and print its row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--copies", nargs="+", default=["int8", "int4"])
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=320, help="A fifth of them to choose by.")
    parser.add_argument("--unseen", type=int, default=256)
    parser.add_argument("--budget", type=int, default=16_000, help="Network evaluations of each training.")
    options = parser.parse_args()
    original = gas.zoo.load(options.model)
    grid = "time_uniform" if isinstance(original.schedule, gas.Flow) else "log_snr"
    teacher = gas.Classical("unipc-3-bh2", grid, 20, original.t_end)
    pairs = gas.evaluation.teacher_pairs(original, teacher, range(options.pairs))
    unseen = gas.evaluation.teacher_pairs(original, teacher, range(50_000, 50_000 + options.unseen))
    print("MSE to the float32 teacher x 1000, mean (median)\n", flush=True)
    print("| copy | its teacher | best classical | float32's table | own table | own / float32's own |")
    print("|---|---|---|---|---|---|", flush=True)
    table, reference, shared = None, 0.0, pairs.split(options.pairs // 5)
    for name in ["float32", *options.copies]:
        start, model = time.perf_counter(), copy_of(options.model, name)
        *_, result = gas.distill(model, *shared, options.nfe, budget=options.budget)
        table = result.table() if table is None else table
        solvers = [teacher, result.best_classical, table, result.table()]
        losses = [evaluate(model, unseen, solver, l2) for solver in solvers]
        own = float(losses[-1].mean())
        reference = reference or own
        cells = [f"{1000 * x.mean():.3g} ({1000 * x.median():.3g})" for x in losses]
        print("| " + " | ".join([name, *cells, f"{own / reference:.3f}"]) + " |", flush=True)
        seconds = time.perf_counter() - start
        print(f"<!-- {result.start}, {result.evaluations:,} evaluations, {seconds:.0f} s -->", flush=True)


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
