"""Every solver, grid and schedule that the laws are tested over."""

from __future__ import annotations

from itertools import pairwise

import torch

from gas import grids
from gas.classical.registry import SOLVERS
from gas.learned.bns import BNS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.s4s import S4S
from gas.schedule import EDMasVP, Flow, VPDiscrete, VPLinear


def scaled_linear():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return VPDiscrete(torch.cumprod(1 - betas, 0))


SCHEDULES = {
    "vp_linear": VPLinear(0.1, 20.0),
    "vp_discrete": scaled_linear(),
    "edm_vp": EDMasVP(1e-3),
    "flow": Flow(),
}
GRIDS = grids.GRIDS
NAMES = list(SOLVERS)
MULTISTEP = [name for name in NAMES if name != "heun"]


def nominal_times(name, schedule, t):
    """The time each state of a table stands for, ending with the last: Heun's stages repeat the end of a step."""
    if name != "heun":
        return t
    evaluated = [t[0]]
    for start, end in pairwise(t):
        euler = bool(torch.isinf(schedule.half_log_snr(torch.stack([start, end]))).any())
        evaluated += [end] if euler else [end, end]
    return torch.stack(evaluated)


LEARNED = {
    "generalized": GeneralizedSolver,
    "generalized-without-theory": lambda *a: GeneralizedSolver(*a, theory=False),
    "s4s": S4S,
    "bns": BNS,
    "s4s-corrected": lambda *a: S4S(*a, corrector=True),
}


def table_named(name, nfe):
    """A fresh table of any solver; learned ones with corrections everywhere."""
    schedule = VPLinear()
    if name in LEARNED:
        solver, generator = LEARNED[name](schedule, nfe, 1e-3), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in solver.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.01 * noise)
            return solver().detach()
    return SOLVERS[name](schedule, GRIDS["log_snr"](schedule, nfe // 2 if name == "heun" else nfe, 1e-3))
