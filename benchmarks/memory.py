"""Peak memory and time of training over NFE, batch, resolution and pairs: ``python benchmarks/memory.py --help``.

On a processor every cell is a process of its own, which loads everything, takes a step of one call as a warm-up, notes
its memory, and then trains: what is told is the peak above that. On CUDA it is the allocator's peak above what the
model takes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rows
import torch

import gas
from gas.training.adam import Adam, AdamSteps
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.zoo.networks import EDMUNet

MB = 2**20


# Activation checkpointing of each mode: all calls stored, three, or one.
CHECKPOINTING = {"fast": "none", "flat": 3, "least": 1}


def main() -> None:
    """Measure every cell in its own process and print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mnist", "digits"])
    parser.add_argument("--nfe", type=int, nargs="+", default=[2, 4, 6, 8, 10])
    parser.add_argument("--modes", nargs="+", default=["fast", "flat", "least", "gauss-newton"])
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 24, 48])
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 32, 64], help="Sides of the image.")
    parser.add_argument(
        "--pairs", type=int, nargs="*", default=[1000, 20000], help="Of 3 x 32 x 32, made up."
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(_cell(**json.loads(options.cell))))
        return
    measurements = [_measured(options, cell) for cell in _cells(options)]
    rows.write("memory", [row for pair in measurements for row in pair], options.device)


def _cells(options: argparse.Namespace) -> list[dict[str, object]]:
    usual = {"batch": options.batch, "size": 0, "repeats": options.repeats, "device": options.device}
    over_nfe = [
        {**usual, "model": model, "mode": mode, "nfe": nfe}
        for model in options.models
        for mode in options.modes
        for nfe in options.nfe
    ]
    base = {**usual, "model": options.models[0], "mode": "flat", "nfe": 4}
    over_batch = [{**base, "batch": batch} for batch in options.batches if batch != options.batch]
    over_size = [{**base, "size": size} for size in options.sizes]
    read = [
        {**base, "mode": mode, "pairs": pairs}
        for pairs in options.pairs
        for mode in ("in memory", "from disk")
    ]
    return over_nfe + over_batch + over_size + read


def _measured(options: argparse.Namespace, cell: dict[str, object]) -> list[dict[str, object]]:
    """Run one cell, on a processor in a fresh process: the peak of this one would be that of all cells before."""
    if options.device == "cpu":
        call = [sys.executable, __file__, "--cell", json.dumps(cell)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
    else:
        result = _cell(**cell)
    at = {key: value for key, value in cell.items() if key not in ("device", "repeats") and value}
    print(at, f"{result['megabytes']:.1f} MB, {result['seconds']:.3f} s a step", flush=True)
    return [
        rows.row("peak training memory", result["megabytes"], "MB", options.device, **at),
        rows.row("training step", result["seconds"], "s", options.device, **at),
    ]


def _cell(
    model: str, mode: str, nfe: int, batch: int, size: int, repeats: int, device: str, pairs: int = 0
) -> dict[str, float]:
    """Train a few steps; return megabytes above the start and the least seconds of a step."""
    loaded = model_at(model, size, device)
    if pairs:
        return _reading(loaded, mode, nfe, batch, repeats, pairs)
    known = random_pairs(loaded, batch)
    steps(loaded, known, "fast", 1, min(batch, 2)).step()
    solver, begun = steps(loaded, known, mode, nfe, batch), _used(device)
    _reset(device)
    times = 1 if mode == "gauss-newton" else repeats  # its step is dozens of others'
    seconds = [_timed(solver.step, device) for _ in range(times)]
    return {"megabytes": (_peak(device) - begun) / MB, "seconds": min(seconds)}


def _reading(
    model: gas.models.Model, mode: str, nfe: int, batch: int, repeats: int, count: int
) -> dict[str, float]:
    """What the pairs themselves take: made up, of 3 x 32 x 32, read back and trained on."""
    with tempfile.TemporaryDirectory() as folder:
        wide = gas.OwnModel(lambda x, t: 0.5 * x, model.schedule, (3, 32, 32))
        table = gas.classical.ddim(model.schedule, gas.grids.log_snr(model.schedule, 1, model.t_end))
        for _ in gas.write_pairs(wide, table, folder, gas.PairsSpec(range(count), {})):
            pass
        call = [sys.executable, "-c", _READ, folder, mode, str(nfe), str(batch), str(repeats)]
        result = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    megabytes, seconds = map(float, result.split())
    return {"megabytes": megabytes, "seconds": seconds}


# A process that never made the pairs: what it holds is what reading and training take.
_READ = """
import sys, time, resource
import gas
from gas.training import Adam, AdamSteps
folder, mode, nfe, batch, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
schedule = gas.EDMasVP(t_end=1e-3, sigma_min=0.002, sigma_max=80.0)
model = gas.OwnModel(lambda x, t: 0.5 * x, schedule, (3, 32, 32))
solver = gas.GeneralizedSolver(schedule, nfe, 1e-3)
solver()
begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pairs = gas.read_pairs(folder, model=model, hold=mode == "in memory")
work = AdamSteps(solver, model, pairs, gas.losses.l2, Adam(batch=batch))
times = []
for _ in range(steps):
    start = time.perf_counter()
    work.step()
    times.append(time.perf_counter() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) / 1024, min(times))
"""


def model_at(name: str, size: int, device: str) -> gas.models.Model:
    """Return a zoo model, or one with its network on images of another size."""
    loaded = gas.zoo.load(name).to(device)
    if not size:
        return loaded
    network: EDMUNet = loaded.network
    return gas.OwnModel(
        lambda x, t: loaded.conditional(x, t, torch.full((len(x),), loaded.classes, device=x.device)),
        loaded.schedule,
        (1, size, size),
        weights=network,
    )


def random_pairs(model: gas.models.Model, count: int) -> gas.Pairs:
    """Return pairs whose targets are made up: what is measured does not depend on their values."""
    noise = model.noise(range(count)).cpu()
    labels = gas.models.labels_of_seeds(model.classes, range(count))
    return gas.Pairs(torch.arange(count), noise, noise / 80, labels, {"recipe": {"guidance": 1.0}})


def steps(
    model: gas.models.Model, pairs: gas.Pairs, mode: str, nfe: int, batch: int
) -> AdamSteps | GaussNewtonSteps:
    """Return a training that has not begun."""
    solver = gas.GeneralizedSolver(model.schedule, nfe, model.t_end)
    if mode == "gauss-newton":
        return GaussNewtonSteps(solver, model, pairs, gas.losses.l2, GaussNewton(batch=batch, growth=1.0))
    return AdamSteps(
        solver, model, pairs, gas.losses.l2, Adam(batch=batch, checkpointing=CHECKPOINTING[mode])
    )


def _timed(step: object, device: str) -> float:
    start = time.process_time() if device == "cpu" else time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter() - start
    return time.process_time() - start


def _used(device: str) -> int:
    if device != "cpu":
        return torch.cuda.memory_allocated()
    return _status("VmRSS")


def _reset(device: str) -> None:
    """Forget the peak of loading: the kernel's mark of it goes back to what is used now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device != "cpu" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
