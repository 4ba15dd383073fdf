"""Milliseconds a sample and network call of the zoo's models, forward alone: ``python benchmarks/network_cost.py``.

With ``--lift``, the time of a whole sample instead, and of the residuals of its last row, in turn.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import rows
import torch

import gas
from gas import zoo
from gas.training.lifting import Lifting, new_residual


def main() -> None:
    """Time every zoo model and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=zoo.names(), choices=zoo.names())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lift", nargs="+", type=int, default=[], metavar="NFE", help="time residuals")
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 6, 4], help="of residuals, of patch 1")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{rows.machine(options.device)}, float32")
    for name in options.models:
        model = zoo.load(name).to(options.device)
        for nfe in options.lift:
            residuals(model, nfe, options)
        if not options.lift:
            call(model, options)


@torch.no_grad()
def call(model: gas.models.Model, options: argparse.Namespace) -> None:
    """Time a network call."""
    x, t = model.noise(range(options.batch)), torch.tensor(0.5, dtype=torch.float64)
    denoise = model.bind(torch.arange(options.batch) % model.classes)
    times = seconds([lambda: denoise(x, t)], options)[0]
    best, median = (1e3 * seconds / options.batch for seconds in (times[0], times[len(times) // 2]))
    shape = "x".join(map(str, model.sample_shape))
    print(f"{model.name:8} {shape:10} median {median:.2f} ms, best {best:.2f} ms per sample and call")


@torch.no_grad()
def residuals(model: gas.models.Model, nfe: int, options: argparse.Namespace) -> None:
    """Time a sample, and a residual of each width by itself: what it adds is less than what samples vary by."""
    x, denoise = model.noise(range(options.batch)), model.bind(torch.arange(options.batch) % model.classes)
    table = gas.GeneralizedSolver(model.schedule, nfe, model.t_end)().detach()
    fitted = [new_residual(model.sample_shape, nfe, Lifting(width=width)) for width in options.widths]
    inputs = [torch.randn_like(x) for _ in range(nfe)]
    works = [partial(each.to(options.device), inputs, inputs) for each in fitted]
    plain, *times = (
        1e3 * each[0] / options.batch
        for each in seconds([lambda: gas.sample(denoise, x, table), *works], options)
    )
    print(f"{model.name} NFE {nfe}: {plain:.3f} ms a sample")
    for width, residual, each in zip(options.widths, fitted, times, strict=True):
        text = f"width {width}, {residual.cost(model.sample_shape).numbers} numbers: {plain + each:.3f} ms"
        print(f"    with a residual of {text}, {each * nfe / plain:.1%} of a call more", flush=True)


def seconds(works: list[Callable[[], torch.Tensor]], options: argparse.Namespace) -> list[list[float]]:
    """Return the times of each of some works, ascending; they take turns, so that a busy moment meets them all.

    On one thread of a processor it is the thread's own time, which other processes lengthen least.
    """
    clock = time.thread_time if options.device == "cpu" and options.threads == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in works]
    for turn in range(options.repeats + 3):
        for work, taken in zip(works, times, strict=True):
            start = clock()
            work().cpu()
            if turn >= 3:
                taken.append(clock() - start)
    return [sorted(taken) for taken in times]


if __name__ == "__main__":
    main()
