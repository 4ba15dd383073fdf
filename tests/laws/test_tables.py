"""Laws of every classical table: moments, probing, folding, gradients, finite ends."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gas import classical
from gas.classical.registry import SOLVERS
from gas.sampling import sample, trajectory
from gas.schedule import Flow, VPLinear
from gas.table import Table
from support.covering import covering, gradcheck_modes
from support.doubles import Gaussian
from support.solvers import GRIDS, MULTISTEP, NAMES, SCHEDULES, nominal_times


def spread(shares):
    """A strictly decreasing grid from 1 to 1e-3 out of positive shares."""
    shares = torch.tensor(shares, dtype=torch.float64)
    gone = torch.cat([torch.zeros(1, dtype=torch.float64), shares.cumsum(0) / shares.sum()])
    return 1 - gone * (1 - 1e-3)


def probed(table):
    """Read a table's matrix from outside: the network's n-th answer is the n-th unit vector."""
    n = table.nfe
    evaluated = []

    def denoise(x, t):
        evaluated.append(float(t))
        answer = torch.zeros_like(x)
        answer[:, len(evaluated)] = 1
        return answer

    start = torch.zeros(1, n + 1, dtype=torch.float64)
    start[0, 0] = 1
    return torch.cat(list(trajectory(denoise, start, table))), evaluated


@covering(name=NAMES, grid=GRIDS.keys(), schedule=SCHEDULES)
def test_moments(name, grid, schedule):
    """Pure noise stays noise and pure signal stays signal: the two consistency conditions of every row."""
    t = GRIDS[grid](schedule, 6, 1e-3)
    table = SOLVERS[name](schedule, t)
    alpha, sigma = schedule(nominal_times(name, schedule, t))
    torch.testing.assert_close(table.states @ sigma[:-1], sigma[1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(table.states @ alpha[:-1] + table.outputs.sum(1), alpha[1:], rtol=0, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(MULTISTEP),
    shares=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=8),
)
def test_moments_hold_on_any_grid(name, shares):
    schedule, t = VPLinear(), spread(shares)
    table = SOLVERS[name](schedule, t)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(table.states @ sigma[:-1], sigma[1:], rtol=0, atol=1e-10)
    scale = 1 + float(table.outputs.abs().max())
    error = table.states @ alpha[:-1] + table.outputs.sum(1) - alpha[1:]
    assert float(error.abs().max()) < 1e-11 * scale


@pytest.mark.parametrize("name", NAMES)
def test_probing_reads_the_table(name):
    schedule = VPLinear()
    table = SOLVERS[name](schedule, GRIDS["log_snr"](schedule, 5, 1e-3))
    matrix, evaluated = probed(table)
    torch.testing.assert_close(matrix, table.unrolled(), rtol=1e-12, atol=1e-12)
    assert evaluated == table.times.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_folding_keeps_the_solver_and_needs_only_the_start(name):
    schedule = VPLinear()
    table = SOLVERS[name](schedule, GRIDS["time_quadratic"](schedule, 6, 1e-3))
    folded = table.folded()
    torch.testing.assert_close(folded.unrolled(), table.unrolled(), rtol=1e-12, atol=1e-12)
    assert not folded.states[:, 1:].any()


@gradcheck_modes
@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_the_times(name, fast_mode):
    schedule = VPLinear()

    def build(interior):
        ends = torch.tensor([1.0, 1e-3], dtype=torch.float64)
        table = SOLVERS[name](schedule, torch.cat([ends[:1], interior, ends[1:]]))
        return table.times, table.states, table.outputs

    interior = torch.tensor([0.7, 0.45, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(build, interior, atol=1e-6, rtol=1e-4, fast_mode=fast_mode)


@covering(name=NAMES, grid=GRIDS.keys(), t_end=[0.0, 1e-3])
def test_flow_ends_are_finite_with_finite_gradients(name, grid, t_end):
    t = GRIDS[grid](Flow(), 6, t_end).requires_grad_()
    ends = torch.tensor([True, *[False] * 5, True])
    # The ends are constants, as when learning.
    table = SOLVERS[name](Flow(), torch.where(ends, t.detach(), t))
    unrolled = table.unrolled()
    assert torch.isfinite(unrolled).all()
    unrolled.square().sum().backward()
    assert torch.isfinite(t.grad).all()
    assert t.grad[1:-1].all()


@pytest.mark.parametrize("name", NAMES)
def test_flow_reaches_clean_data_exactly(name):
    """At sigma = 0 the last state is a combination of answers alone: weights of x_T vanish, answers sum to 1."""
    last = SOLVERS[name](Flow(), GRIDS["time_uniform"](Flow(), 5, 0.0)).unrolled()[-1]
    assert abs(float(last[0])) < 1e-12
    assert float(last[1:].sum()) == pytest.approx(1, abs=1e-9)


@covering(step=3, name=NAMES, schedule=SCHEDULES)
def test_all_solvers_converge_to_the_exact_flow(name, schedule):
    """On a Gaussian the flow is known: 160 steps come close to it, and 4 times as many as 40 come closer."""
    model = Gaussian(schedule)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]

    def error(steps):
        t = GRIDS["time_uniform"](schedule, steps, 1e-2)
        actual = sample(model.denoise, model.state(z, t[0]), SOLVERS[name](schedule, t))
        return float((actual - model.state(z, t[-1])).abs().max())

    coarse, fine = error(40), error(160)
    assert fine < 2e-2
    assert fine < coarse / 3.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_follow_x(dtype):
    table = classical.unipc(VPLinear(), GRIDS["log_snr"](VPLinear(), 4, 1e-3))
    for shape in [(2,), (2, 3), (2, 3, 4, 5, 6)]:
        out = sample(lambda x, t: x / 2, torch.ones(shape, dtype=dtype), table)
        assert out.dtype == dtype
        assert out.shape == shape


@pytest.mark.slow
def test_history_is_dropped_once_it_is_not_needed():
    """Only live states and answers are held: DDIM needs one of each, whatever the number of steps."""
    import gc
    import weakref

    answers, states = [], []

    def denoise(x, t):
        answer = x / 2
        answers.append(weakref.ref(answer))
        states.append(weakref.ref(x))
        return answer

    table = classical.ddim(VPLinear(), GRIDS["log_snr"](VPLinear(), 10, 1e-3))
    for _ in trajectory(denoise, torch.ones(2, dtype=torch.float64), table):
        gc.collect()
        for alive in (answers, states):
            assert sum(ref() is not None for ref in alive) <= 2


@pytest.mark.parametrize(
    ("times", "states", "outputs", "message"),
    [
        ([], [], [], "at least one time"),
        ([1.0], [[1.0, 2.0]], [[1.0]], r"states must have shape \(1, 1\)"),
        ([1.0, 0.5], [[1, 0], [0, 1]], [[1.0]], r"outputs must have shape \(2, 2\)"),
        ([float("nan")], [[1.0]], [[1.0]], "times must be finite"),
        ([1.0], [[float("inf")]], [[1.0]], "states must be finite"),
        ([1.0, 0.5], [[1, 1], [0, 1]], [[1, 0], [0, 1]], "lower triangular"),
    ],
)
def test_bad_tables_are_refused(times, states, outputs, message):
    with pytest.raises(ValueError, match=message):
        Table(torch.tensor(times), torch.tensor(states), torch.tensor(outputs))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_integrates_its_polynomials_exactly(order):
    """Against adaptive quadrature of the definition: int L_j(t) (d rho / dt) dt, rho = sigma / alpha."""
    from scipy.integrate import quad

    schedule = VPLinear()
    t = GRIDS["time_quadratic"](schedule, 5, 1e-3)
    table, n = classical.deis(schedule, t, order), 3
    alpha, sigma = schedule(t)
    used = [n - i for i in range(order)]

    def rho_slope(time):
        time = torch.tensor(time, dtype=torch.float64, requires_grad=True)
        a, s = schedule(time)
        (slope,) = torch.autograd.grad(s / a, time)
        return float(slope)

    for j in used:

        def integrand(time, j=j):
            lagrange = 1.0
            for i in used:
                if i != j:
                    lagrange *= float((time - t[i]) / (t[j] - t[i]))
            return lagrange * rho_slope(time)

        integral, _ = quad(integrand, float(t[n]), float(t[n + 1]), epsabs=1e-12)
        expected = -float(alpha[n + 1] * alpha[j] / sigma[j]) * integral
        assert float(table.outputs[n, j]) == pytest.approx(expected, rel=1e-9)
