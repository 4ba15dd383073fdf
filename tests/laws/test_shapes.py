"""Shapes and dtypes of the core hold for every size, and a wrong one is seen."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

from gas import grids
from gas.classical.dpmpp import dpmpp
from gas.denoise import NoiseDenoiser
from gas.schedule import Flow, VPDiscrete, VPLinear
from gas.training.linearization import linearize, measure_differences, normal_equations
from support.shapes import SCHEDULE, checked

SCHEDULES = [VPLinear(), VPDiscrete(torch.linspace(0.999, 0.01, 50)), Flow()]


@given(shape=st.lists(st.integers(0, 3), max_size=3), index=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_a_schedule_keeps_the_shape_of_its_times(shape, index):
    schedule, t = SCHEDULES[index], torch.full(shape, 0.5)
    schedule(t)
    schedule.inverse_half_log_snr(schedule.half_log_snr(t))


@pytest.mark.slow
@given(
    nfe=st.integers(1, 6), batch=st.integers(1, 3), shape=st.lists(st.integers(1, 3), min_size=1, max_size=3)
)
@settings(max_examples=20, deadline=None)
def test_a_linearization_has_a_tangent_for_each_number_of_the_table(nfe, batch, shape):
    schedule = VPLinear()
    table = dpmpp(schedule, grids.log_snr(schedule, nfe, 1e-3), order=min(nfe, 3))
    denoise, x = NoiseDenoiser(lambda x, t: x.tanh(), schedule), torch.randn(batch, *shape)
    differences = measure_differences(denoise, x, table)
    linearize(denoise, x, table, differences)
    normal_equations(lambda part: denoise, x, torch.zeros_like(x), table, differences)


def widened(self, t):
    return t[None].double(), t.double()


def narrowed(self, t):
    return t.float(), t.float()


@pytest.mark.parametrize("function", [widened, narrowed])
def test_a_wrong_shape_or_dtype_is_seen(function):
    with pytest.raises(TypeCheckError):
        checked(function, SCHEDULE["__call__"])(None, torch.full((2,), 0.5))
