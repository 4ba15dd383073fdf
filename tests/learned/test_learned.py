"""The learned solvers: starts, exactness, gradients, ends; from one evaluation to twenty."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gas import classical, grids
from gas.classical.registry import SOLVERS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.s4s import S4S
from gas.learned.times import logits_of_times, times_of_logits
from gas.sampling import sample
from gas.schedule import Flow, VPLinear
from support.covering import covering, gradcheck_modes
from support.doubles import Gaussian
from support.solvers import GRIDS, NAMES, SCHEDULES


def randomised(solver, seed=0, size=0.02):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return solver


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 7, 20])
def test_a_new_solver_is_dpmpp_of_order_3_on_the_uniform_grid(nfe, schedule):
    t = grids.time_uniform(schedule, nfe, 1e-3)
    table = GeneralizedSolver(schedule, nfe, 1e-3)().detach()
    expected = classical.dpmpp(schedule, t, order=3)
    torch.testing.assert_close(table.times, expected.times, rtol=0, atol=1e-14)
    torch.testing.assert_close(table.unrolled(), expected.unrolled(), rtol=1e-10, atol=1e-11)


@covering(name=NAMES, grid=GRIDS.keys(), schedule={"vp": VPLinear(), "flow": Flow()}, theory=[True, False])
def test_it_starts_exactly_at_any_classical_table(name, grid, schedule, theory):
    table = SOLVERS[name](schedule, GRIDS[grid](schedule, 3 if name == "heun" else 5, 1e-3))
    start = GeneralizedSolver.from_table(schedule, table, 1e-3, theory=theory)().detach()
    torch.testing.assert_close(start.times, table.times, rtol=0, atol=1e-14)
    torch.testing.assert_close(start.states, table.states, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(start.outputs, table.outputs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("theory", [True, False])
def test_nominal_times_and_table_determine_the_solver(theory):
    schedule = VPLinear()
    solver = randomised(GeneralizedSolver(schedule, 5, 1e-3))
    again = GeneralizedSolver.from_table(schedule, solver(), 1e-3, t=solver.t.detach(), theory=theory)
    torch.testing.assert_close(again().unrolled(), solver().unrolled(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(again.xi, solver.xi)
    torch.testing.assert_close(again.t, solver.t)
    if theory:
        for n in range(5):
            torch.testing.assert_close(again.states[: n + 1, n], solver.states[: n + 1, n], rtol=0, atol=1e-9)
            torch.testing.assert_close(
                again.outputs[: n + 1, n], solver.outputs[: n + 1, n], rtol=0, atol=1e-9
            )


def test_without_theory_coefficients_do_not_follow_the_times():
    for theory in (True, False):
        solver = GeneralizedSolver(VPLinear(), 4, 1e-3, theory=theory)
        before = solver.nominal().outputs.detach()
        with torch.no_grad():
            solver.theta += 0.3
        assert torch.equal(solver.nominal().outputs.detach(), before) is not theory


@gradcheck_modes
@pytest.mark.parametrize("family", [GeneralizedSolver, S4S])
@pytest.mark.parametrize("schedule", [VPLinear(), Flow()], ids=["vp", "flow"])
def test_gradients_of_every_parameter(family, schedule, fast_mode):
    solver = randomised(family(schedule, 4, 1e-3))
    names = [name for name, _ in solver.named_parameters()]

    def table(*values):
        actual = torch.func.functional_call(solver, dict(zip(names, values, strict=True)))
        return actual.times, actual.states, actual.outputs

    values = [p.detach().clone().requires_grad_() for p in solver.parameters()]
    assert torch.autograd.gradcheck(table, values, atol=1e-6, rtol=1e-4, fast_mode=fast_mode)


def test_corrections_reach_every_entry_that_a_step_can_use():
    solver = randomised(GeneralizedSolver(VPLinear(), 5, 1e-3))
    table = solver()
    for matrix, parameter in ((table.states, solver.states), (table.outputs, solver.outputs)):
        for n in range(5):
            (gradient,) = torch.autograd.grad(matrix[n].square().sum(), parameter, retain_graph=True)
            assert gradient[: n + 1, n].all()
            assert not gradient[n + 1 :].any()


def test_gradients_flow_through_the_whole_run():
    schedule = VPLinear()
    model = Gaussian(schedule)
    solver = randomised(GeneralizedSolver(schedule, 4, 1e-3))
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    sample(model.denoise, z, solver()).square().sum().backward()
    for name, parameter in solver.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_shift_changes_what_the_network_is_told_not_the_algebra(schedule):
    """The table, against the method's own words: ask at tau, read a noise estimate there, and turn it into an
    estimate of x_0 at the nominal time."""
    solver = randomised(GeneralizedSolver(schedule, 5, 1e-2), size=0.05)
    table, nominal, t = solver().detach(), solver.nominal().detach(), solver.t.detach()
    model = Gaussian(schedule)
    x = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    states, estimates = [x], []
    for n in range(5):
        tau = table.times[n]
        assert (float(tau) == float(t[n])) == (isinstance(schedule, Flow) and n == 0)
        (alpha, sigma), (alpha_tau, sigma_tau) = schedule(t[n]), schedule(tau)
        answer = model.denoise(states[n], tau)
        noise = (states[n] - alpha_tau * answer) / sigma_tau
        estimates.append((states[n] - sigma * noise) / alpha if alpha > 0 else answer)
        states.append(
            sum(nominal.states[n, j] * states[j] + nominal.outputs[n, j] * estimates[j] for j in range(n + 1))
        )
    torch.testing.assert_close(sample(model.denoise, x, table), states[-1], rtol=1e-10, atol=1e-11)


@settings(max_examples=50, deadline=None)
@given(logits=st.lists(st.floats(-8, 8), max_size=19), t_end=st.sampled_from([0.0, 1e-4, 1e-3, 0.1]))
def test_any_logits_are_a_grid_and_back(logits, t_end):
    logits = torch.tensor(logits, dtype=torch.float64)
    t = times_of_logits(logits, t_end)
    assert len(t) == len(logits) + 2
    assert (float(t[0]), float(t[-1])) == (1.0, t_end)
    assert bool((t.diff() < 0).all()) or len(logits) > 2  # the squeeze of many extreme logits underflows
    if len(logits) <= 3:
        torch.testing.assert_close(times_of_logits(logits_of_times(t), t_end), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [-5.0, 5.0])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_wild_shifts_stay_where_the_schedule_means_something(schedule, shift):
    solver = GeneralizedSolver(schedule, 4, 1e-3)
    with torch.no_grad():
        solver.xi += shift
    table = solver().detach()
    assert torch.isfinite(table.unrolled()).all()
    assert float(table.times.min()) > 0
    if isinstance(schedule, Flow):
        assert float(table.times.max()) <= 1
        assert float(table.times[0]) == 1


def test_order_limits_the_history():
    table = randomised(GeneralizedSolver(VPLinear(), 6, 1e-3, order=2))().detach()
    for n in range(6):
        assert not table.states[n, : max(0, n - 1)].any()
        assert not table.outputs[n, : max(0, n - 1)].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nfe": 0, "t_end": 1e-3}, "nfe .* from 1 to 1,000, got 0"),
        ({"nfe": 4, "t_end": 1.0}, r"t_end must lie in \[0, 1\), got 1.0"),
        ({"nfe": 4, "t_end": 1e-3, "order": 0}, "order .* must be from 1 to .*, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GeneralizedSolver(VPLinear(), **arguments)


def test_numbers_of_another_size_are_refused():
    numbers = {
        "mu_logit": [0.0] * 2,
        "t_couple": [0.0] * 4,
        "a_diff": [[0.0] * 4] * 4,
        "c_diff": [[0.0] * 4] * 4,
    }
    with pytest.raises(ValueError, match=r"theta .* shape \(3,\), got \(2,\)"):
        GeneralizedSolver.from_official(VPLinear(), t_end=1e-3, **numbers)
    with pytest.raises(ValueError, match=r"theta .* shape \(3,\), got \(2,\)"):
        S4S.from_official(VPLinear(), t_end=1e-3, **numbers)


def test_s4s_without_corrector_starts_at_the_base():
    t = grids.time_uniform(VPLinear(), 5, 1e-3)
    table = S4S(VPLinear(), 5, 1e-3)().detach()
    torch.testing.assert_close(
        table.unrolled(), classical.dpmpp(VPLinear(), t, 3).unrolled(), rtol=1e-9, atol=1e-10
    )
