"""The price of teacher pairs and of a training, estimated from a few measured network calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch

from gas.classical.registry import Classical
from gas.learned.generalized import GeneralizedSolver
from gas.losses import l2
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs
from gas.training.gauss_newton import GaussNewtonSteps
from gas.training.plan import FINISH, Phase, TrainingPlan

# Sizes of measured batches: that of validation and of the teacher, and a step's.
_LARGE, _SMALL = 64, 8

# Bytes of a number in a shard of pairs, float32, and of the seed and the label of a pair.
_NUMBER, _ROW = 4, 16


@dataclass(frozen=True)
class CallCost:
    """A network call on a batch of B takes ``call + row * B`` seconds; ``memory`` is the peak of one, in bytes.

    A Gauss-Newton step takes ``step`` seconds besides its calls, to solve for the parameters.
    """

    call: float
    row: float
    memory: int
    step: float = 0.0

    def seconds(self, phase: Phase) -> float:
        """Return how long a phase's calls take."""
        return self.call * phase.calls + self.row * phase.evaluations


@dataclass(frozen=True)
class Price:
    """Network evaluations of single samples, seconds, peak memory and disk in bytes."""

    evaluations: int
    seconds: float
    memory: int
    disk: int = 0


def measure_calls(model: Model, nfe: int, *, guidance: float = 1.0, repeats: int = 5) -> CallCost:
    """Time network calls on large and small batches, and a Gauss-Newton step.

    Args:
        model: whose denoiser to call; a call with guidance counts as one evaluation.
        nfe: network evaluations of the solver that the step trains.
        guidance: scale of classifier-free guidance.
        repeats: calls of each batch size, of which the median counts.
    """
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    pairs = _pairs(model, guidance)
    parts = [pairs.subset(slice(0, n)) for n in (_SMALL, _LARGE)]
    small, large = (median(call_times(model, part, repeats)) for part in parts)
    row = max(0.0, (large - small) / (_LARGE - _SMALL))
    cost = CallCost(call=max(0.0, small - _SMALL * row), row=row, memory=0)
    start = Classical("unipc-2-bh2", "log_snr", nfe, model.t_end).table(model.schedule)
    solver = GeneralizedSolver.from_table(model.schedule, start, model.t_end)
    config = replace(FINISH, batch=_SMALL)
    steps = GaussNewtonSteps(solver, model, pairs.subset(slice(0, _SMALL)), l2, config)
    steps.step()  # warms up: the first one in a process takes several times as long
    before = steps.evaluations
    seconds = seconds_of(steps.step, model)
    evaluations = steps.evaluations - before
    calls = Phase(evaluations // _SMALL, evaluations)
    return replace(cost, step=max(0.0, seconds - cost.seconds(calls)), memory=_peak_memory(model))


def pairs_price(model: Model, cost: CallCost, count: int, nfe: int) -> Price:
    """Return the price of so many pairs of a teacher of this NFE."""
    phase = Phase.of(nfe, count)
    disk = count * (_NUMBER * math.prod(model.sample_shape) + _ROW)
    return Price(phase.evaluations, cost.seconds(phase), cost.memory, disk)


def training_price(plan: TrainingPlan, cost: CallCost) -> Price:
    """Return the price of a planned training."""
    total = plan.total
    return Price(
        evaluations=total.evaluations,
        seconds=cost.seconds(total) + cost.step * plan.steps,
        memory=cost.memory,
    )


@torch.no_grad()
def _pairs(model: Model, guidance: float) -> Pairs:
    """Return pairs whose target is not the sample of any solver, so that a step has something to do."""
    seeds = range(_LARGE)
    noise = model.noise(seeds).cpu()
    labels = labels_of_seeds(model.classes, seeds)
    manifest = {"recipe": {"guidance": guidance, "teacher": {}}}
    return Pairs(torch.tensor(seeds), noise, 0.5 * noise, labels, manifest)


@torch.no_grad()
def call_times(model: Model, pairs: Pairs, repeats: int) -> list[float]:
    """Return the times of network calls on a batch of pairs, after one that warms up."""
    denoise, x = model.bind(pairs.labels, pairs.guidance), pairs.noise.to(model.device)
    t = torch.tensor(0.5, dtype=torch.float64)
    return [seconds_of(lambda: denoise(x.clone(), t), model) for _ in range(repeats + 1)][1:]


def seconds_of(work: Callable[[], object], model: Model) -> float:
    """Return how long some work takes, with what it leaves running on the device."""
    started = time.perf_counter()
    work()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - started


def _peak_memory(model: Model) -> int:
    """Return the peak memory so far: of the device, or of the process; 0 where the system does not tell."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
