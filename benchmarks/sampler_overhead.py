"""The solver's own time, with a network that costs nothing: ``python benchmarks/sampler_overhead.py``.

Every run samples with a denoiser that returns a stored answer, here and through diffusers' UniPC and DPM-Solver++
schedulers, in turn and on one thread; a row is the fastest of many runs. Beside them stand the number of tensor
operations a step, and how far each is from memory bandwidth: from reading once every history tensor that a row weighs.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import diffusers
import rows
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gas

SHAPES = [(8, 3, 32, 32), (8, 4, 64, 64), (1, 16, 128, 128)]
NFES = [4, 10, 20]
SCHEDULERS = {
    "UniPC": diffusers.UniPCMultistepScheduler,
    "DPM++ multistep": diffusers.DPMSolverMultistepScheduler,
}


@dataclass(frozen=True)
class Loop:
    """Something to time, and what must be done before each time."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Counted(TorchDispatchMode):
    """Counts every tensor operation, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count and go on."""
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Time every loop at every size, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, measurements = torch.device(options.device), []
    for shape in SHAPES:
        for nfe in NFES:
            size = "x".join(map(str, shape))
            for name, way, value, unit in measured(shape, nfe, device, options.repeats):
                measurements.append(rows.row(name, value, unit, options.device, way=way, nfe=nfe, size=size))
                print(f"{way}, {nfe} calls, {size}: {name} {value:.4g} {unit}", flush=True)
    rows.write("sampler", measurements, options.device)


@torch.no_grad()
def measured(
    shape: tuple[int, ...], nfe: int, device: torch.device, repeats: int
) -> Iterator[tuple[str, str, float, str]]:
    """Yield what was measured of which way to sample, value and unit: every figure of one size."""
    x, known = torch.randn(shape, device=device), tables(nfe)
    answers = [torch.randn_like(x) for _ in range(nfe)]
    loops = {name: Loop(ours(table, x, answers)) for name, table in known.items()}
    loops |= {f"diffusers' {name}": theirs(kind, x, answers) for name, kind in SCHEDULERS.items()}
    reading = {f"{name}'s history read once": Loop(reads(table, answers)) for name, table in known.items()}
    for way, milliseconds in fastest({**loops, **reading}, device, repeats).items():
        yield "solver time", way, milliseconds, "ms"
    for way, loop in loops.items():
        loop.prepare()
        with Counted() as counted:
            loop.run()
        yield "tensor operations a step", way, counted.calls.total() / nfe, ""


def tables(nfe: int) -> dict[str, gas.Table]:
    """A learned table, dense as training leaves it, and two classical ones."""
    schedule = gas.VPLinear()
    grid = gas.grids.log_snr(schedule, nfe, 1e-3)
    solver, generator = gas.GeneralizedSolver(schedule, nfe, 1e-3), torch.Generator().manual_seed(0)
    for parameter in solver.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return {
        "GS": solver().detach(),
        "UniPC-3": gas.classical.unipc(schedule, grid, 3, "bh2"),
        "DPM-Solver++(3M)": gas.classical.dpmpp(schedule, grid, order=3),
    }


def ours(table: gas.Table, x: torch.Tensor, answers: list[torch.Tensor]) -> Callable[[], object]:
    """One run of a table."""

    def run() -> torch.Tensor:
        left = iter(answers)
        return gas.sample(lambda x, t: next(left), x, table)

    return run


def theirs(kind: type, x: torch.Tensor, answers: list[torch.Tensor]) -> Loop:
    """One run of a diffusers scheduler, as pipelines run it; placing its timesteps is not timed."""
    scheduler = kind(solver_order=3, prediction_type="sample")

    def run() -> None:
        state = x
        for t, answer in zip(scheduler.timesteps, answers, strict=True):
            state = scheduler.step(answer, t, state, return_dict=False)[0]

    return Loop(run, lambda: scheduler.set_timesteps(len(answers), device=x.device))


def reads(table: gas.Table, answers: list[torch.Tensor]) -> Callable[[], object]:
    """The least that any solver does: each row reads as many tensors as the shorter form has terms, and writes one.

    A sum reads a tensor at memory bandwidth, a fill writes one.
    """
    forms = [
        torch.stack([form.states, form.outputs]).count_nonzero(dim=(0, 2)) for form in (table, table.folded())
    ]
    terms = min(forms, key=lambda counts: int(counts.sum())).tolist()

    def run() -> None:
        for n, count in enumerate(terms):
            for j in range(count):
                answers[n - j].sum()
            torch.zeros_like(answers[0])

    return run


def fastest(loops: dict[str, Loop], device: torch.device, repeats: int) -> dict[str, float]:
    """Milliseconds of the fastest of many runs of each, taken in turn so that a busy moment meets them all."""
    best = dict.fromkeys(loops, math.inf)
    for turn in range(repeats + 5):
        for name, loop in loops.items():
            loop.prepare()
            wait(device)
            started = time.perf_counter()
            loop.run()
            wait(device)
            if turn >= 5:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - started))
    return best


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
