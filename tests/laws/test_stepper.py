"""Running a table: the written-out formula, at the price of a few tensor operations a row and of nothing else."""

import copy
import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solvers import GRIDS, NAMES
from torch.utils._python_dispatch import TorchDispatchMode

from gas.catalogue import SOLVERS
from gas.learned import S4S, GeneralizedSolver
from gas.sample import sample, trajectory
from gas.schedule import VPLinear
from gas.stepper import Stepper
from gas.table import Table

LEARNED = {
    "generalized": GeneralizedSolver,
    "generalized-without-theory": lambda *a: GeneralizedSolver(*a, theory=False),
    "s4s": S4S,
    "s4s-corrected": lambda *a: S4S(*a, corrector=True),
}
ENTRY = st.one_of(st.just(0.0), st.floats(-1.5, 1.5))


class Counted(TorchDispatchMode):
    """Counts every tensor operation, views among them."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


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


def written_out(denoise, x, table):
    """The definition, term by term."""
    xs, ds = [x], []
    for n in range(table.nfe):
        ds.append(denoise(xs[n], table.times[n]))
        made = torch.zeros_like(x)
        for j in range(n + 1):
            made = made + float(table.states[n, j]) * xs[j] + float(table.outputs[n, j]) * ds[j]
        xs.append(made)
    return xs


@st.composite
def tables(draw, most=6):
    n = draw(st.integers(1, most))
    lower = [[[draw(ENTRY) if j <= i else 0.0 for j in range(n)] for i in range(n)] for _ in range(2)]
    times = draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n))
    return Table(*(torch.tensor(part, dtype=torch.float64) for part in (times, *lower)))


def nonlinear(x, t):
    return torch.tanh(x + t)


@settings(max_examples=60, deadline=None)
@given(table=tables(), fold=st.sampled_from([None, False, True]), graph=st.booleans())
def test_every_table_runs_as_written_out(table, fold, graph):
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    expected = written_out(nonlinear, start, table)
    stepper, x = Stepper(table, fold=fold), start
    with torch.set_grad_enabled(graph):
        for n, t in enumerate(stepper.times):
            x = stepper.step(x, nonlinear(x, t))
            scale = 1 + max(float(state.abs().max()) for state in expected)
            # The folded form multiplies coefficients through, which grows rounding with their size.
            reach = 1 + float(table.unrolled().abs().max())
            torch.testing.assert_close(x, expected[n + 1], rtol=0, atol=1e-14 * scale * reach)


@pytest.mark.parametrize("nfe", [4, 10])
@pytest.mark.parametrize("name", [*NAMES, *LEARNED])
def test_classical_and_learned_solvers_agree_with_the_definition(name, nfe):
    table, start = table_named(name, nfe), torch.linspace(-2, 2, 9, dtype=torch.float64)
    expected = written_out(nonlinear, start, table)
    for made, state in zip(trajectory(nonlinear, start, table), expected, strict=True):
        largest = float(torch.stack([table.states, table.outputs]).abs().max())
        torch.testing.assert_close(made, state, rtol=1e-14, atol=1e-14 * max(1, largest))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("nfe", [4, 10])
@pytest.mark.parametrize("name", [*NAMES, *LEARNED])
def test_at_most_eight_tensor_operations_a_step(name, nfe, graph):
    """With everything that reading the table costs."""
    table, x = table_named(name, nfe), torch.ones(2, 3)
    answer = torch.zeros_like(x)
    with torch.set_grad_enabled(graph), Counted() as counted:
        sample(lambda x, t: answer, x, table)
    assert counted.calls.total() <= 8 * table.nfe, counted.calls


def test_a_table_is_read_once_and_again_when_it_changed():
    table, x = table_named("generalized", 4), torch.ones(3, dtype=torch.float64)
    first = sample(nonlinear, x, table)
    with Counted() as again:
        sample(lambda x, t: x, x, table)
    assert set(again.calls) == {"aten.unbind.int", "aten.mul.Tensor", "aten.add.Tensor"}
    table.outputs[3, 3] += 1
    changed = sample(nonlinear, x, table)
    assert not torch.equal(first, changed)
    torch.testing.assert_close(changed, written_out(nonlinear, x, table)[-1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("broken", ["state", "output"])
def test_what_has_weight_zero_is_not_looked_at(broken, graph):
    """A NaN of weight zero stays where it is, also where an earlier or a later row weighs it."""
    table = table_named("unipc-3-bh2", 6)
    states, outputs = table.states.clone(), table.outputs.clone()
    (states if broken == "state" else outputs)[:, 2] = 0
    clean = Table(table.times, states, outputs)
    seen = []

    def denoise(x, t):
        seen.append(x)
        return torch.full_like(x, torch.nan if broken == "output" and len(seen) == 3 else 0.5)

    stepper, x = Stepper(clean, fold=False), torch.ones(4)
    with torch.set_grad_enabled(graph):
        for n, t in enumerate(stepper.times):
            x = torch.full_like(x, torch.nan) if broken == "state" and n == 2 else x
            x = stepper.step(x, denoise(x, t))
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc-3-bh2", "generalized"])
@pytest.mark.parametrize("graph", [False, True])
def test_nothing_handed_in_or_out_changes(name, graph):
    table, start = table_named(name, 6), torch.linspace(-1, 1, 5)
    kept = []

    def denoise(x, t):
        answer = x if len(kept) % 2 else torch.tanh(x)  # its input as its own answer, too
        kept.extend((tensor, copy.deepcopy(tensor)) for tensor in (x, answer, t))
        return answer

    with torch.set_grad_enabled(graph):
        states = list(trajectory(denoise, start, table))
    assert states[0] is start
    kept.append((start, torch.linspace(-1, 1, 5)))
    for tensor, before in kept:
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "generalized", "s4s"])
def test_only_what_a_later_row_weighs_is_held(name, graph):
    table, made = table_named(name, 6), []

    def denoise(x, t):
        made.append(weakref.ref(x))
        made.append(weakref.ref(answer := x / 2))
        return answer

    folded = torch.stack([table.folded().states, table.folded().outputs], dim=2).flatten(1)
    plain = torch.stack([table.states, table.outputs], dim=2).flatten(1)
    weights = folded if int(folded.count_nonzero()) < int(plain.count_nonzero()) else plain
    start = [torch.ones(2, dtype=torch.float64)]
    with torch.set_grad_enabled(graph):
        for n, _ in enumerate(trajectory(denoise, start.pop(), table)):
            alive = {key for key, ref in enumerate(made) if ref() is not None}
            assert alive == {key for key in range(2 * n) if weights[n:, key].any()} - {2 * n}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_half_precision_states_are_rounded_once_a_step(dtype, graph, learned):
    """Each state is the float64 combination of what was there, rounded: no coefficient is rounded to the dtype."""
    table, generator = table_named("generalized", 6), torch.Generator().manual_seed(0)
    if learned:
        table = Table(table.times, table.states.clone().requires_grad_(), table.outputs)
    xs, ds = [torch.randn(500, generator=generator).to(dtype)], []
    stepper = Stepper(table, fold=False)
    with torch.set_grad_enabled(graph):
        for n in range(6):
            ds.append(torch.randn(500, generator=generator).to(dtype))
            xs.append(stepper.step(xs[n], ds[n]))
            exact = sum(table.states[n, j] * xs[j].double() for j in range(n + 1))
            exact = exact + sum(table.outputs[n, j] * ds[j].double() for j in range(n + 1))
            error = (xs[-1].double() - exact).abs()
            assert xs[-1].dtype == dtype
            assert bool((error <= exact.abs() * torch.finfo(dtype).eps / 2 + 2e-6).all())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("second", [False, True])
def test_derivatives_of_every_order_and_both_directions(second):
    table, x = table_named("generalized", 3), torch.linspace(-1, 1, 3, dtype=torch.float64)
    lower = torch.ones(3, 3, dtype=torch.float64).tril()

    def run(times, states, outputs, x, scale):
        table = Table(times, states * lower, outputs * lower)
        return sample(lambda x, t: torch.tanh(scale * x + t), x, table)

    given = [table.times, table.states, table.outputs, x, torch.tensor(0.7, dtype=torch.float64)]
    given = [part.clone().requires_grad_() for part in given]
    if second:
        assert torch.autograd.gradgradcheck(run, given)
    else:
        assert torch.autograd.gradcheck(run, given, check_forward_ad=True)


@pytest.mark.parametrize("which", ["states", "outputs"])
def test_zeros_that_are_learned_have_gradients(which):
    table = table_named("ddim", 3)
    parts = {name: getattr(table, name).clone() for name in ("times", "states", "outputs")}
    parts[which].requires_grad_()
    sample(nonlinear, torch.ones(2, dtype=torch.float64), Table(**parts)).sum().backward()
    assert bool(parts[which].grad.tril().eq(parts[which].grad).all())
    assert int(parts[which].grad.count_nonzero()) == 6


def test_memory_layout_and_device_follow_the_start():
    table = table_named("unipc-3-bh2", 4)
    x = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert sample(nonlinear, x, table).is_contiguous(memory_format=torch.channels_last)
    assert sample(lambda x, t: x / 2, torch.ones(2, 3, device="meta"), table).device.type == "meta"


def test_autocast_of_the_network_does_not_reach_the_solver():
    table, x = table_named("generalized", 6), torch.linspace(-1, 1, 64)
    expected = sample(lambda x, t: x / 2, x, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sample(lambda x, t: x / 2, x, table), expected)


def test_a_folded_solver_counts_the_start_and_the_answers_alone():
    table = table_named("generalized", 3)
    d = torch.zeros(2, dtype=torch.float64)

    def changed(fold):
        stepper, x = Stepper(table, fold=fold), torch.ones(2, dtype=torch.float64)
        for _ in stepper.times:
            x = stepper.step(x + 1, d)
        return float(x[0])

    plain = 1.0
    xs = []
    for n in range(3):
        xs.append(plain + 1)
        plain = float(sum(table.states[n, j] * xs[j] for j in range(n + 1)))
    assert changed(False) == pytest.approx(plain, rel=1e-13)
    assert changed(True) == changed(None) == pytest.approx(2 * float(table.unrolled()[-1, 0]), rel=1e-13)


def test_a_finished_stepper_says_so():
    stepper = Stepper(table_named("ddim", 2))
    x = torch.ones(2)
    for _ in stepper.times:
        x = stepper.step(x, x)
    with pytest.raises(ValueError, match="all 2 rows of the table have been run: start a new Stepper"):
        stepper.step(x, x)


def test_a_row_of_zeros_gives_zeros_of_the_right_kind():
    zero = torch.zeros(2, 2, dtype=torch.float64)
    made = sample(nonlinear, torch.ones(2, 3, dtype=torch.bfloat16), Table(torch.ones(2), zero, zero))
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, torch.zeros_like(made))
