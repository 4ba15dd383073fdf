"""Running a table: the written-out formula, at the price of a few tensor operations a row and of nothing else."""

import copy
import gc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gas.learned.generalized import GeneralizedSolver
from gas.sampling import Stepper, _cached_terms, sample, trajectory
from gas.schedule import VPLinear
from gas.table import Table
from support.covering import covering
from support.solvers import LEARNED, NAMES, table_named

ENTRY = st.one_of(st.just(0.0), st.floats(-1.5, 1.5))


class Counted(TorchDispatchMode):
    """Counts every tensor operation, views among them."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def written_out(denoise, x, table):
    """The definition, term by term."""
    xs, ds = [x], []
    for n in range(table.nfe):
        ds.append(denoise(xs[n], table.times[n]))
        summed = torch.zeros_like(x)
        for j in range(n + 1):
            summed = summed + float(table.states[n, j]) * xs[j] + float(table.outputs[n, j]) * ds[j]
        xs.append(summed)
    return xs


@st.composite
def tables(draw, most=6):
    n = draw(st.integers(1, most))
    lower = [[[draw(ENTRY) if j <= i else 0.0 for j in range(n)] for i in range(n)] for _ in range(2)]
    times = draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n))
    return Table(*(torch.tensor(part, dtype=torch.float64) for part in (times, *lower)))


WRITES = {
    "in place": lambda x: x.mul_(1.5),
    "a view": lambda x: x[-1:].mul_(1.5),
    "data": lambda x: x.data.mul_(1.5),
    "array": lambda x: np.multiply(x.numpy(), 1.5, out=x.numpy()),
}


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
    for actual, state in zip(trajectory(nonlinear, start, table), expected, strict=True):
        largest = float(torch.stack([table.states, table.outputs]).abs().max())
        torch.testing.assert_close(actual, state, rtol=1e-14, atol=1e-14 * max(1, largest))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("nfe", [4, 10])
@pytest.mark.parametrize("name", [*NAMES, *LEARNED])
def test_at_most_eight_tensor_operations_a_step(name, nfe, graph):
    """And once for a table, as it is read, a few more."""
    table, x = table_named(name, nfe), torch.ones(2, 3)
    answer = torch.zeros_like(x)
    _cached_terms.cache_clear()  # whatever ran before
    for reading in (6, 0):
        with torch.set_grad_enabled(graph), Counted() as counted:
            sample(lambda x, t: answer, x, table)
        assert counted.calls.total() <= 8 * table.nfe + reading, counted.calls


def test_a_table_is_read_once_and_again_when_it_changed():
    table, x = table_named("generalized", 4), torch.ones(3, dtype=torch.float64)
    first = sample(nonlinear, x, table)
    with Counted() as again:
        sample(lambda x, t: x, x, table)
    running = {"aten.unbind.int", "aten.mul.Tensor", "aten.add.Tensor", "aten.clone.default"}
    assert set(again.calls) == {*running, "aten.detach.default"}
    for write in WRITES.values():
        write(table.outputs)
        changed = sample(nonlinear, x, table)
        assert not torch.equal(first, changed)
        torch.testing.assert_close(changed, written_out(nonlinear, x, table)[-1], rtol=1e-14, atol=1e-14)
        first = changed


@covering(size=[(64, True), (65, False), (8, True), (300, False)], fold=[False, True, None])
def test_large_tables_are_not_remembered(size, fold):
    nfe, is_remembered = size
    table = Table(torch.linspace(1, 0.1, nfe), torch.eye(nfe), 1e-3 * torch.rand(nfe, nfe).tril())
    Stepper(table, fold=fold)
    table = weakref.ref(table)
    gc.collect()
    assert (table() is not None) == is_remembered


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_table_has_numbers_of_its_own(kind, write):
    table = table_named("unipc-2-bh2", 3)
    given = [part.clone() for part in (table.times, table.states, table.outputs)]
    copied = Table(*([part.numpy() for part in given] if kind == "array" else given))
    detached, before = copied.detach(), copied.unrolled()
    for part in given:
        write(part)
    assert torch.equal(copied.unrolled(), before)
    assert torch.equal(copied.times, table.times)
    write(copied.outputs)
    assert torch.equal(detached.unrolled(), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.eye(2) * 1j, "states must be an array of real numbers: got torch.complex64 on cpu"),
        (torch.eye(2, device="meta"), "states must be an array of real numbers: got torch.float32 on meta"),
        ([[1.0, 0.0], [1.0]], "states must be an array of real numbers: expected sequence of length 2"),
        ("one", "states must be an array of real numbers: .*str"),
        (None, "states must be an array of real numbers: .*None"),
    ],
)
def test_a_table_is_of_real_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        Table([1.0, 0.5], values, torch.eye(2))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("broken", ["state", "output"])
def test_what_has_weight_zero_is_not_looked_at(broken, graph):
    """A NaN of weight zero stays where it is, also where an earlier or a later row weighs it."""
    table = table_named("unipc-3-bh2", 6)
    states, outputs = table.states.clone(), table.outputs.clone()
    (states if broken == "state" else outputs)[:, 2] = 0
    clean = Table(table.times, states, outputs)
    states_called = []

    def denoise(x, t):
        states_called.append(x)
        return torch.full_like(x, torch.nan if broken == "output" and len(states_called) == 3 else 0.5)

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
    returned = []

    def denoise(x, t):
        answer = x if len(returned) % 2 else torch.tanh(x)  # its input as its own answer, too
        returned.extend((tensor, copy.deepcopy(tensor)) for tensor in (x, answer, t))
        return answer

    with torch.set_grad_enabled(graph):
        states = list(trajectory(denoise, start, table))
    assert states[0] is start
    returned.append((start, torch.linspace(-1, 1, 5)))
    for tensor, before in returned:
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "generalized", "s4s"])
def test_no_state_and_no_answer_is_held(name, graph):
    table, references, alive = table_named(name, 6), [], []

    def denoise(x, t):
        alive.append([key for key, ref in enumerate(references) if ref() is not None])
        references.append(weakref.ref(x))
        references.append(weakref.ref(answer := x / 2))
        return answer

    with torch.set_grad_enabled(graph):
        sample(denoise, torch.ones(2, dtype=torch.float64), table)
    assert alive == [[]] * 6


@pytest.mark.parametrize("graph", [False, True])
def test_a_stepper_holds_the_sums_of_later_rows_alone(graph):
    stepper, x = Stepper(table_named("dpmpp-2m", 5)), torch.ones(2)
    with torch.set_grad_enabled(graph):
        for n, _ in enumerate(stepper.times):
            x = stepper.step(x, x / 2)
            assert set(stepper._sums) == ({n + 1} if n < 4 else set())


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


@pytest.mark.parametrize("fold", [True, None])
def test_a_folded_solver_refuses_changed_states(fold):
    stepper, x = Stepper(table_named("generalized", 3), fold=fold), torch.ones(2)
    x = stepper.step(x, x / 2)
    with pytest.raises(
        ValueError, match=r"a folded table does not weigh it: use Stepper\(table, fold=False\)"
    ):
        stepper.step(x + 1, x / 2)


def test_a_folded_solver_takes_equal_states_whose_numbers_are_no_numbers():
    table, x = table_named("generalized", 3), torch.tensor([1.0, torch.nan])
    stepper = Stepper(table, fold=True)
    for _ in stepper.times:
        x = stepper.step(x.clone(), torch.tanh(x))
    assert bool(x[0].isfinite()) and bool(x[1].isnan())


def test_a_finished_stepper_says_so():
    stepper = Stepper(table_named("ddim", 2))
    x = torch.ones(2)
    for _ in stepper.times:
        x = stepper.step(x, x)
    with pytest.raises(ValueError, match="all 2 rows of the table have been run: start a new Stepper"):
        stepper.step(x, x)


def test_a_row_of_zeros_gives_zeros_of_the_right_kind():
    zero = torch.zeros(2, 2, dtype=torch.float64)
    actual = sample(nonlinear, torch.ones(2, 3, dtype=torch.bfloat16), Table(torch.ones(2), zero, zero))
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, torch.zeros_like(actual))


def bad_answers():
    like = torch.ones(2, 3)
    return {
        "nothing": (None, "the network's prediction must be a tensor, got NoneType"),
        "a tuple": (
            (like,),
            "the network's prediction must be a tensor, got tuple: return the tensor that it holds",
        ),
        "an array": (like.numpy(), "the network's prediction must be a tensor, got ndarray"),
        "a number": (1.0, "the network's prediction must be a tensor, got float"),
        "one sample": (like[:1], r"must be of the shape of x, \(2, 3\), got \(1, 3\)"),
        "a scalar": (torch.tensor(1.0), r"must be of the shape of x, \(2, 3\), got \(\)"),
        "complex": (
            like * 1j,
            "must be of a real floating-point dtype on cpu, where x is, got torch.complex64",
        ),
        "integers": (
            like.long(),
            "must be of a real floating-point dtype on cpu, where x is, got torch.int64",
        ),
        "elsewhere": (like.to("meta"), "on cpu, where x is, got torch.float32 on meta"),
    }


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", bad_answers())
@pytest.mark.parametrize("name", ["ddim", "generalized"])
def test_what_is_no_answer_is_refused_in_one_line(name, kind, graph):
    answer, message = bad_answers()[kind]
    table, x = table_named(name, 3), torch.ones(2, 3)
    with torch.set_grad_enabled(graph):
        with pytest.raises(ValueError, match=message) as caught:
            sample(lambda x, t: answer, x, table)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=message):
            Stepper(table).step(x, answer)


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(2, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, dtype=torch.bool), "torch.bool"),
        (np.ones(2), "ndarray"),
        ([1.0, 2.0], "list"),
    ],
)
def test_what_is_no_state_is_refused_in_one_line(x, kind):
    table, message = table_named("ddim", 2), f"x must be a tensor of a real floating-point dtype, got {kind}"
    for run in (sample, lambda *given: list(trajectory(*given))):
        with pytest.raises(ValueError, match=message):
            run(nonlinear, x, table)
    with pytest.raises(ValueError, match=message):
        Stepper(table).step(x, torch.ones(2))


@pytest.mark.parametrize("wide", [torch.float64, torch.float32, torch.bfloat16])
def test_answers_of_another_precision_are_weighed_as_they_are(wide):
    table, x = table_named("unipc-2-bh2", 4), torch.linspace(-1, 1, 8)
    actual = sample(lambda x, t: nonlinear(x, t).to(wide), x, table)
    assert actual.dtype == x.dtype
    expected = written_out(lambda x, t: nonlinear(x, t).to(wide).double(), x.double(), table)[-1]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-2 if wide.itemsize == 2 else 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["states", "outputs"])
def test_weights_beyond_the_dtype_of_sums_are_refused(dtype, part):
    parts = {"states": torch.eye(2, dtype=torch.float64), "outputs": torch.zeros(2, 2, dtype=torch.float64)}
    parts[part][1, 0] = -1e39
    table, x = Table(torch.ones(2), **parts), torch.ones(2)
    with pytest.raises(
        ValueError, match=r"the table has a weight of 1e\+39, beyond the 3.4e\+38 of torch.float32"
    ):
        sample(nonlinear, x.to(dtype), table)
    actual = sample(nonlinear, x.double(), table)
    torch.testing.assert_close(actual, written_out(nonlinear, x.double(), table)[-1])


def test_a_table_too_large_to_be_folded_runs_as_written():
    states = torch.diag(torch.full((3,), 1e200, dtype=torch.float64), -1)[:3, :3] + torch.eye(3)
    table = Table(torch.ones(3), states, torch.ones(3, 3, dtype=torch.float64).tril())
    x = torch.full((2,), 1e-300, dtype=torch.float64)
    torch.testing.assert_close(sample(nonlinear, x, table), written_out(nonlinear, x, table)[-1])


def test_a_state_of_another_shape_belongs_to_another_run():
    stepper = Stepper(table_named("dpmpp-2m", 3))
    stepper.step(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(
        ValueError, match=r"first state's shape and device, \(2, 4\) on cpu, got \(1, 4\) on cpu"
    ):
        stepper.step(torch.ones(1, 4), torch.ones(1, 4))


def test_a_solver_in_place_of_its_table_is_pointed_out():
    with pytest.raises(
        ValueError, match=r"table must be a gas\.Table, got GeneralizedSolver: call a learned solver"
    ):
        sample(nonlinear, torch.ones(2), GeneralizedSolver(VPLinear(), 3, 1e-3))
