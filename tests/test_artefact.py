"""The solver file: same bits back, small, readable without us, and one clear line for anything else."""

import functools
import importlib.util
import json
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import Mixture
from hypothesis import example, given, settings
from hypothesis import strategies as st
from solvers import NAMES, SCHEDULES

from gas import grids
from gas.artefact import load, save
from gas.catalogue import SOLVERS
from gas.files import write_text
from gas.learned import S4S, GeneralizedSolver
from gas.sample import sample
from gas.schedule import EDMasVP, Flow, VPLinear
from gas.table import Table

EXAMPLE = Path(__file__).parent.parent / "examples" / "numpy_sampler.py"
FIELDS = ("times", "states", "outputs")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def learned(schedule, nfe=4, seed=0, size=0.1):
    """A Generalized Solver with every number moved: times and corrections by ``size``, shifts by a fifth of it."""
    solver, generator = GeneralizedSolver(schedule, nfe, 1e-3), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in solver.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (size / 5 if name == "xi" else size) * noise
    return solver


def bits(table):
    return [getattr(table, name).detach().numpy().tobytes() for name in FIELDS]


def same(a, b, tolerance):
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)


@functools.cache
def text():
    """A small file with something in every field."""
    solver = learned(EDMasVP(1e-3), 2)
    document = save_document(solver, Mixture(schedule=solver.schedule))
    return json.dumps(document)


def save_document(solver, model):
    path = Path(os.devnull)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.json"
        save(path, solver, model=model, **METADATA)
        return json.loads(path.read_text())


METADATA = {
    "guidance": 1.5,
    "teacher": {"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 40, "guidance": 1.5},
    "loss": "pseudo_huber",
    "training": {"iterations": 1000, "learning_rate": 2e-3, "ema": 0.99, "seed": 0, "pairs": 512},
    "starts": {n: "unipc-2-bh2/log_snr" for n in range(1, 11)},
    "measured": {n: {"validation": 0.012345678901234567, "mse": 1e-9, "psnr": 41.5} for n in range(1, 11)},
}
