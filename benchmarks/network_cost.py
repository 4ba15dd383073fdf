"""Milliseconds a sample and network call of the zoo's models, forward alone: ``python benchmarks/network_cost.py``."""

import argparse
import time

import rows
import torch

from gas import zoo


def main() -> None:
    """Time every zoo model and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{rows.machine(options.device)}, float32")
    for name in zoo.names():
        model = zoo.load(name).to(options.device)
        x, t = model.noise(range(options.batch)), torch.tensor(0.5, dtype=torch.float64)
        denoise = model.bind(torch.arange(options.batch) % model.classes)
        times = []
        with torch.no_grad():
            for _ in range(options.repeats + 3):
                start = time.perf_counter()
                denoise(x, t).cpu()
                times.append((time.perf_counter() - start) / options.batch * 1e3)
        best, median = min(times[3:]), sorted(times[3:])[options.repeats // 2]
        shape = "x".join(map(str, model.sample_shape))
        print(f"{name:8} {shape:10} median {median:.2f} ms, best {best:.2f} ms per sample and call")


if __name__ == "__main__":
    main()
