"""A solver of every guidance scale: a polynomial in the scale, that starts as one table and stays in its range."""

import pytest
import torch

import gas
from gas.learned.guidance import GuidanceBNS
from gas.schedule import Flow, VPLinear, earliest_time
from gas.training.linearization import numbers
from support.solvers import table_named


def moved(degree=2, *, schedule=None, table=None, reference=2.0, size=0.1):
    """A solver for scales 1 to 5 with all its coefficients moved."""
    schedule = VPLinear() if schedule is None else schedule
    solver = GuidanceBNS.from_table(
        schedule,
        table_named("unipc-3-bh2", 4) if table is None else table,
        1e-3,
        scales=(1.0, 5.0),
        reference=reference,
        degree=degree,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += size * torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    return solver


@pytest.mark.parametrize("name", ["ddim", "unipc-3-bh2", "heun"])
@pytest.mark.parametrize("branched", [False, True])
def test_it_starts_as_one_table_for_every_scale(name, branched):
    table = table_named(name, 4).detach()
    table = table.guided(2.0) if branched else table
    solver = GuidanceBNS.from_table(VPLinear(), table, 1e-3, scales=(1, 8), reference=2, degree=2)
    for scale in (None, 1.0, 2.0, 3.7, 8.0):
        assert torch.equal(numbers(solver(scale)), numbers(table))
        assert solver(scale).branches == table.branches


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_its_numbers_are_a_polynomial_in_the_scale(degree):
    solver = moved(degree, size=0.01)
    q = [numbers(table) for table in solver.coefficients()]
    for scale in (1.0, 2.0, 2.5, 5.0):
        u = (scale - 2.0) / 4.0
        expected = sum(u**k * part for k, part in enumerate(q))
        torch.testing.assert_close(numbers(solver(scale)), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(numbers(solver()), q[0], rtol=0, atol=0)


@pytest.mark.parametrize("schedule", [VPLinear(), Flow()])
def test_its_times_stay_where_the_network_was_trained(schedule):
    solver = moved(1, schedule=schedule)
    with torch.no_grad():
        solver.times[1] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    for scale in (1.0, 5.0):
        times = solver(scale).detach().times
        assert float(times.min()) >= earliest_time(schedule, 1e-3)
        assert float(times.max()) <= schedule.t_max


@pytest.mark.parametrize("scale", [0.9, 5.1, -1.0, float("nan"), float("inf")])
def test_a_scale_outside_of_the_range_is_refused(scale):
    with pytest.raises(gas.UserError, match=r"^guidance must lie in 1 to 5, got "):
        moved()(scale)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e9])
def test_the_ends_of_a_range_are_in_it_to_the_rounding_of_float32(size):
    first, last = 0.7 * size, 1.3 * size
    table = table_named("ddim", 2)
    solver = GuidanceBNS.from_table(VPLinear(), table, 1e-3, scales=(first, last), reference=size)
    for scale in map(float, torch.tensor([first, last])):
        assert torch.equal(solver(scale).detach().times, table.times)
    for scale in (0.999 * first, 1.001 * last):
        with pytest.raises(gas.UserError, match=r"^guidance must lie in "):
            solver(scale)


@pytest.mark.parametrize("degree", [0, -1, 9, 1.5, True])
def test_a_degree_that_no_file_holds_is_refused(degree):
    with pytest.raises(gas.UserError, match=r"^degree must be "):
        moved(degree)


@pytest.mark.parametrize("nfes", [(2, 3), ()])
def test_coefficients_of_several_nfe_are_refused(nfes):
    tables = [table_named("ddim", nfe) for nfe in nfes]
    with pytest.raises(gas.UserError, match=r"^coefficients must be tables of one NFE, got NFE "):
        GuidanceBNS(VPLinear(), tables, 1e-3, scales=(1, 5), reference=2)


@pytest.mark.parametrize(
    ("scales", "reference", "message"),
    [
        ((2.0, 2.0), 2.0, r"guidance scales must be a range, got 2 to 2"),
        ((5.0, 1.0), 2.0, r"guidance scales must be a range, got 5 to 1"),
        ((1.0, float("inf")), 2.0, r"a guidance scale must lie in \(-inf, inf\), got inf"),
        ((1.0, 5.0), 6.0, r"the reference scale must lie in \[1.0, 5.0\], got 6.0"),
    ],
)
def test_a_range_that_cannot_be_is_refused(scales, reference, message):
    with pytest.raises(gas.UserError, match=message):
        GuidanceBNS.from_table(VPLinear(), table_named("ddim", 2), 1e-3, scales=scales, reference=reference)
