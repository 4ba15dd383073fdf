"""Every parameterization of the library passes its own checks, and every fault is seen."""

import pytest
import torch
from torch import nn

from gas import Table, check_table_module, classical, grids
from gas.classical.registry import Classical
from gas.learned.ld3 import LD3
from gas.schedule import VPLinear
from support.solvers import LEARNED

SCHEDULE = VPLinear()
START = classical.ddim(SCHEDULE, grids.log_snr(SCHEDULE, 3, 1e-3))


class Scaled(nn.Module):
    """DDIM whose predictions are scaled, row by row: a parameterization of three numbers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self):
        return Table(START.times, START.states, START.outputs * self.scale[:, None])


@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.parametrize("name", LEARNED)
def test_the_parameterizations_of_the_library_pass(name, nfe):
    assert check_table_module(LEARNED[name](SCHEDULE, nfe, 1e-3)) == []


def test_those_that_start_at_a_classical_solver_pass():
    start = Classical("unipc-2-bh2", "log_snr", 4, 1e-3)
    assert check_table_module(LD3(SCHEDULE, 4, 1e-3, base=start.solver, grid=start.grid)) == []
    assert check_table_module(Scaled()) == []


def frozen(solver):
    solver.scale.requires_grad_(False)


def narrow(solver):
    solver.scale.data = solver.scale.data.float()


def without_table(solver):
    solver.forward = lambda: solver.scale


def with_arguments(solver):
    solver.forward = lambda x: solver.scale


def random(solver):
    solver.forward = lambda: Table(torch.rand(3), START.states, START.outputs * solver.scale[:, None])


def detached(solver):
    solver.forward = lambda: Table(START.times, START.states, START.outputs * solver.scale.detach()[:, None])


def without_effect(solver):
    solver.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))


def wrong_nfe(solver):
    solver.nfe = 4


class Cached(Scaled):
    """Reads the parameters that it was made with."""

    def __init__(self):
        super().__init__()
        self.first = [self.scale]

    def forward(self):
        return Table(START.times, START.states, START.outputs * self.first[0][:, None])


class Steep(Scaled):
    """Has no finite derivative at its start."""

    def forward(self):
        return Table(START.times, START.states, START.outputs + (self.scale - 1).abs().sqrt().diag())


class Narrow(Scaled):
    """Has no table beside its start."""

    def forward(self):
        return Table(START.times, START.states, START.outputs + (self.scale - 1).sqrt().diag())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (frozen, "no parameter requires a gradient"),
        (narrow, "must be float64"),
        (without_table, "got Parameter"),
        (with_arguments, "without arguments"),
        (random, "two calls return different tables"),
        (detached, "does not depend on the parameters"),
        (without_effect, "unused has no effect"),
        (wrong_nfe, "nfe is 4, the table has 3 rows"),
    ],
)
def test_a_fault_is_one_line(fault, message):
    solver = Scaled()
    fault(solver)
    problems = check_table_module(solver)
    assert len(problems) == 1 and message in problems[0]


@pytest.mark.parametrize(
    ("kind", "message"), [(Cached, "without a cache"), (Steep, "is not finite"), (Narrow, "give no table")]
)
def test_a_faulty_class_is_seen(kind, message):
    assert any(message in problem for problem in check_table_module(kind()))
