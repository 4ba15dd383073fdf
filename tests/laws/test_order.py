"""Order of convergence, row by row, from exact history on a Gaussian whose flow is known in closed form.

A row of order p has a local error of h^(p+1). Global slopes mislead (warm-up rows cap them, cancellation
fakes them), so one interior row is fed exact states and exact answers and its own error is measured.
"""

import math
from itertools import pairwise

import pytest
import torch

from gas import classical
from gas.sampling import sample
from gas.schedule import VPLinear
from support.doubles import Gaussian

# Local slope expected: order + 1. UniPC's row carries the corrector of the step before, which on exact history
# cancels the leading error of its own predictor: order + 2. DPM-Solver++(3M) as published lacks a factor 2 in its
# second derivative and behaves as order 2; with the factor it is of order 3.
SLOPES = {
    "ddim": (lambda s, t: classical.ddim(s, t), 2),
    "dpmpp-2": (lambda s, t: classical.dpmpp(s, t, 2), 3),
    "dpmpp-3 as published": (lambda s, t: classical.dpmpp(s, t, 3), 3),
    "dpmpp-3 corrected": (lambda s, t: classical.dpmpp_corrected(s, t, 3), 4),
    "unipc-1-bh1": (lambda s, t: classical.unipc(s, t, 1, "bh1"), 3),
    "unipc-1-bh2": (lambda s, t: classical.unipc(s, t, 1, "bh2"), 3),
    "unipc-2-bh1": (lambda s, t: classical.unipc(s, t, 2, "bh1"), 4),
    "unipc-2-bh2": (lambda s, t: classical.unipc(s, t, 2, "bh2"), 4),
    "unipc-3-bh1": (lambda s, t: classical.unipc(s, t, 3, "bh1"), 5),
    "unipc-3-bh2": (lambda s, t: classical.unipc(s, t, 3, "bh2"), 5),
    "deis-2": (lambda s, t: classical.deis(s, t, 2), 3),
    "deis-3": (lambda s, t: classical.deis(s, t, 3), 4),
}


def local_error(build, h, *, rows=9, row=5):
    """Error of one interior row from exact history, on times h apart in half log-SNR around 0."""
    schedule = VPLinear()
    model = Gaussian(schedule)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)
    lam = -2.0 + h * (torch.arange(rows + 1, dtype=torch.float64) - row)
    t = schedule.inverse_half_log_snr(lam)
    return row_error(build(schedule, t), model, z, t, row)


def row_error(table, model, z, t, row):
    """Error of one row that is fed exact states and exact answers."""
    states = torch.stack([model.state(z, time) for time in t])
    answers = torch.stack([model.denoise(x, time) for x, time in zip(states, t, strict=True)])
    actual = table.states[row] @ states[:-1] + table.outputs[row] @ answers[:-1]
    return float((actual - states[row + 1]).abs().max())


def slope(build):
    steps = [0.08, 0.04, 0.02]
    errors = [local_error(build, h) for h in steps]
    return [math.log(a / b, 2) for a, b in pairwise(errors)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_local_order_of_ipndm(order):
    """Adams-Bashforth's weights are those of even spacing in sigma / alpha: there its order is as named."""
    schedule, model = VPLinear(), Gaussian(VPLinear())
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)

    def error(h, row=5):
        rho = 0.6 - h * (torch.arange(row + 2, dtype=torch.float64) - row)
        t = schedule.inverse_half_log_snr(-rho.log())
        return row_error(classical.ipndm(schedule, t, order), model, z, t, row)

    assert math.log(error(0.02) / error(0.01), 2) == pytest.approx(order + 1, abs=0.3)


def test_local_order_of_heun():
    """Both rows of a step, from an exact start: the second stage is the first row's own answer."""
    schedule, model = VPLinear(), Gaussian(VPLinear())
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)

    def error(h):
        t = schedule.inverse_half_log_snr(torch.tensor([-0.5, -0.5 + h], dtype=torch.float64))
        actual = sample(model.denoise, model.state(z, t[0]), classical.heun(schedule, t))
        return float((actual - model.state(z, t[1])).abs().max())

    assert math.log(error(0.04) / error(0.02), 2) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("name", SLOPES)
def test_local_order(name):
    build, expected = SLOPES[name]
    measured = slope(build)
    assert measured[-1] == pytest.approx(expected, abs=0.3), measured
