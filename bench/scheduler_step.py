"""Time of one scheduler step, ours and UniPC's, in turn on the same tensor: ``python bench/scheduler_step.py``."""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

import gas

SHAPES = {"latent 1x4x64x64": (1, 4, 64, 64), "latent 4x4x128x128": (4, 4, 128, 128)}


def main() -> None:
    """Print rows of median microseconds a step and their ratios, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nfe", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench/scheduler.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    process = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = gas.GASScheduler.from_config(process.config)
    solver = gas.GeneralizedSolver(ours.process.schedule, options.nfe, ours.process.t_end)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += 0.01  # a learned table is dense
    ours = gas.GASScheduler.from_config(process.config, solver=solver)
    unipc = UniPCMultistepScheduler.from_config(process.config, solver_order=3)
    rows = []
    for name, shape in SHAPES.items():
        mine, theirs = _in_turn([ours, unipc], shape, options)
        for label, value, unit in [
            (f"GASScheduler step, {name}", mine * 1e6, "us"),
            (f"UniPC step, {name}", theirs * 1e6, "us"),
            (f"GASScheduler / UniPC, {name}", mine / theirs, "ratio"),
        ]:
            rows.append({"name": label, "value": round(value, 4), "unit": unit, **_told(options)})
            print(json.dumps(rows[-1]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def _in_turn(schedulers: list, shape: tuple[int, ...], options: argparse.Namespace) -> list[float]:
    """Median over runs of the mean seconds a step; the schedulers take turns, so that noise meets both."""
    x, output = torch.randn(2, *shape)
    means: list[list[float]] = [[] for _ in schedulers]
    for repeat in range(options.repeats + 5):
        for scheduler, taken in zip(schedulers, means, strict=True):
            scheduler.set_timesteps(options.nfe)
            state, spent = x, 0.0
            for t in scheduler.timesteps:
                start = time.perf_counter()
                state = scheduler.step(output, t, state, return_dict=False)[0]
                spent += time.perf_counter() - start
            if repeat >= 5:
                taken.append(spent / options.nfe)
    return [statistics.median(taken) for taken in means]


def _told(options: argparse.Namespace) -> dict[str, str]:
    return {
        "command": f"python bench/scheduler_step.py --nfe {options.nfe} --repeats {options.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    with torch.no_grad():
        main()
