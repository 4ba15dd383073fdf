"""Teacher pairs and training steps per second: ``python benchmarks/throughput.py --help``."""

import argparse
import time
from collections.abc import Callable

import memory
import rows
import torch

import gas


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 24, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    measurements = []
    usual = {"batch": 24, "size": 32, "nfe": options.nfe[0]}
    cells = [{**usual, "nfe": nfe} for nfe in options.nfe]
    cells += [{**usual, "batch": batch} for batch in options.batches if batch != usual["batch"]]
    cells += [{**usual, "size": size} for size in options.sizes if size != usual["size"]]
    for cell in cells:
        for mode in ("teacher pairs", "fast", "flat", "gauss-newton"):
            if mode == "teacher pairs" and cell["nfe"] != usual["nfe"]:
                continue  # a teacher has calls of its own
            settings = {"model": options.model, **cell}
            if mode == "teacher pairs":
                name, unit, of = "teacher pairs, 20 calls each", "pairs/s", cell["batch"]
            else:
                name, unit, of = f"training steps, {mode}", "steps/s", 1
            rate = of / _seconds(_work(options, mode, **cell), options.repeats, options.device)
            measurements.append(rows.row(name, rate, unit, options.device, **settings))
            print(f"{name:32} {settings} {rate:.3f} {unit}", flush=True)
    rows.write("throughput", measurements, options.device)


def _work(options: argparse.Namespace, mode: str, nfe: int, batch: int, size: int) -> Callable[[], object]:
    """What is timed: a batch of teacher pairs, or a step of training."""
    default_size = gas.zoo.load(options.model).sample_shape[-1]
    model = memory.model_at(options.model, 0 if size == default_size else size, options.device)
    if mode == "teacher pairs":
        teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end).table(model.schedule)
        return lambda: gas.pairs.teach(model, teacher, range(batch))
    return memory.steps(model, memory.random_pairs(model, batch), mode, nfe, batch).step


def _seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """The least of some runs, after at least one and at least a second that warm up."""
    warm = 0.0
    while warm < 1.0:
        warm += _timed(work, device)
    return min(_timed(work, device) for _ in range(repeats))


def _timed(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
