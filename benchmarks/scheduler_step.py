"""Time of one scheduler step, ours and UniPC's, in turn on the same tensor: ``python benchmarks/scheduler_step.py``."""

import argparse
import statistics
import time

import rows
import torch
from diffusers import DDIMScheduler, SchedulerMixin, UniPCMultistepScheduler

import gas

SHAPES = {"1x4x64x64": (1, 4, 64, 64), "4x4x128x128": (4, 4, 128, 128)}


def main() -> None:
    """Print and write the median microseconds of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nfe", type=int, nargs="+", default=[6, 10])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measurements = []
    for nfe in options.nfe:
        schedulers = _schedulers(nfe)
        for size, shape in SHAPES.items():
            medians = _in_turn(list(schedulers.values()), shape, nfe, options.repeats)
            for way, seconds in zip(schedulers, medians, strict=True):
                measurements.append(
                    rows.row("scheduler step", 1e6 * seconds, "us", way=way, nfe=nfe, size=size)
                )
                print(f"{way}, {nfe} calls, {size}: {1e6 * seconds:.1f} us a step", flush=True)
    rows.write("scheduler", measurements)


def _schedulers(nfe: int) -> dict[str, SchedulerMixin]:
    """A learned solver's scheduler and diffusers' UniPC, of the same process."""
    process = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = gas.GASScheduler.from_config(process.config)
    solver = gas.GeneralizedSolver(ours.process.schedule, nfe, ours.process.t_end)
    for parameter in solver.parameters():
        parameter += 0.01  # a learned table is dense
    return {
        "GASScheduler": gas.GASScheduler.from_config(process.config, solver=solver),
        "UniPC": UniPCMultistepScheduler.from_config(process.config, solver_order=3),
    }


def _in_turn(schedulers: list, shape: tuple[int, ...], nfe: int, repeats: int) -> list[float]:
    """Median over runs of the mean seconds a step; the schedulers take turns, so that noise meets both."""
    x, output = torch.randn(2, *shape)
    means: list[list[float]] = [[] for _ in schedulers]
    for repeat in range(repeats + 5):
        for scheduler, taken in zip(schedulers, means, strict=True):
            scheduler.set_timesteps(nfe)
            state, spent = x, 0.0
            for t in scheduler.timesteps:
                start = time.perf_counter()
                state = scheduler.step(output, t, state, return_dict=False)[0]
                spent += time.perf_counter() - start
            if repeat >= 5:
                taken.append(spent / nfe)
    return [statistics.median(taken) for taken in means]


if __name__ == "__main__":
    with torch.no_grad():
        main()
