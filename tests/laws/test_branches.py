"""Rows that evaluate one branch of a guided denoiser: the same solvers, in forward passes."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

import gas
from gas.classical.registry import SOLVERS
from gas.denoise import ClassifierFreeGuidance
from gas.integrations.k_diffusion import sigmas_of
from gas.integrations.onnx import Unrolled
from gas.integrations.table_transforms import sigma_form
from gas.learned.bns import BNS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.interpolation import interpolated
from gas.learned.s4s import S4S
from gas.models.runtime import Autocast
from gas.sampling import Stepper, sample, trajectory
from gas.schedule import VPLinear
from gas.table import Table
from gas.training.activation_checkpointing import Checkpointed
from support.solvers import GRIDS, NAMES, SCHEDULES, nominal_times, table_named

ENTRY = st.one_of(st.just(0.0), st.floats(-1.5, 1.5))
SCALES = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(-3, 15))
START = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
LABELS = torch.tensor([0, 2, 1])
NULL = torch.tensor([3])


class Network:
    """A nonlinear conditional network of three classes and null; counts the samples of every forward pass."""

    def __init__(self):
        self.sizes, self.labels = [], []

    def __call__(self, x, t, labels):
        self.sizes.append(len(x))
        self.labels.append(labels.tolist())
        return torch.tanh(x + t) + torch.sin(labels[:, None] + x)


def guided_denoiser(scale=2.0, **others):
    return ClassifierFreeGuidance(Network(), LABELS, NULL, scale, others)


@st.composite
def tables(draw, most=5):
    n = draw(st.integers(1, most))
    lower = [[[draw(ENTRY) if j <= i else 0.0 for j in range(n)] for i in range(n)] for _ in range(2)]
    times = draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n))
    return Table(*(torch.tensor(part, dtype=torch.float64) for part in (times, *lower)))


def folds(table):
    return [table, table.folded()]


def one_by_one(denoise, x, table, fold=False):
    """Every row alone, in a loop of one's own."""
    stepper, states = Stepper(table, fold=fold), [x]
    for t, branch in zip(stepper.times, stepper.branches, strict=True):
        states.append(stepper.step(states[-1], denoise.select(branch)(states[-1].clone(), t)))
    return states


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(table=tables(), scale=SCALES)
def test_all_branches_with_the_weights_of_a_scale_are_the_guided_solver(table, scale):
    states = list(trajectory(guided_denoiser(scale), START, table))
    bound = 1e-12 * (1 + max(float(x.abs().max()) for x in states)) * (1 + abs(scale))
    bound *= 1 + float(table.unrolled().abs().max())
    for form in (*folds(table.guided(scale)), table.folded().guided(scale)):
        # The denoiser's own scale does not matter: the table's weights mix its branches.
        actual = list(trajectory(guided_denoiser(7.0), START, form))
        for n, expected in enumerate(states):
            torch.testing.assert_close(actual[2 * n], expected, rtol=0, atol=bound)
        torch.testing.assert_close(sample(guided_denoiser(), START, form), states[-1], rtol=0, atol=bound)


@settings(max_examples=40, deadline=None)
@given(table=tables(), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_outside_an_interval_only_the_condition_is_evaluated(table, ends):
    low, high = min(ends), max(ends)

    def scheduled(x, t):
        return guided_denoiser(3.0 if low < float(t) <= high else 1.0)(x, t)

    form, denoise = table.guided(3.0, interval=(low, high)), guided_denoiser()
    inside = int(((low < table.times) & (table.times <= high)).sum())
    assert form.forward_passes() == table.nfe + inside
    made, expected = sample(denoise, START, form), list(trajectory(scheduled, START, table))
    bound = (
        1e-11 * (1 + max(float(x.abs().max()) for x in expected)) * (1 + float(table.unrolled().abs().max()))
    )
    torch.testing.assert_close(made, expected[-1], rtol=0, atol=bound)
    assert sum(denoise.denoise.sizes) == form.nfe * len(START)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(table=tables(), scale=SCALES)
def test_a_batch_of_branches_is_the_rows_one_by_one(table, scale):
    for form in folds(table.guided(scale)):
        batched = list(trajectory(guided_denoiser(), START, form))
        for fold in (False, True):
            for actual, expected in zip(
                batched, one_by_one(guided_denoiser(), START, form, fold), strict=True
            ):
                size = (1 + float(expected.abs().max())) * (1 + float(form.unrolled().abs().max()))
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_moments_of_every_row(name, schedule):
    t = GRIDS["log_snr"](schedule, 4, 1e-3)
    table = SOLVERS[name](schedule, t).guided(3.5)
    alpha, sigma = (part.repeat_interleave(2) for part in schedule(nominal_times(name, schedule, t)))
    torch.testing.assert_close(table.states @ sigma[:-2], sigma[1:-1], rtol=0, atol=1e-12)
    signal = table.states @ alpha[:-2] + table.outputs.sum(1)
    torch.testing.assert_close(signal, alpha[1:-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("nfe", [2, 4, 9])
@pytest.mark.parametrize("name", ["ddim", "unipc-3-bh2", "ipndm-3", "heun", "generalized", "bns"])
def test_a_network_sees_one_batch_a_call_and_one_forward_pass_a_row(name, nfe):
    table = table_named(name, nfe).detach()
    for form in folds(table.guided(2.0)):
        denoise = guided_denoiser()
        sample(denoise, START, form)
        assert denoise.denoise.sizes == [2 * len(START)] * table.nfe
        assert denoise.denoise.labels == [[3, 3, 3, 0, 2, 1]] * table.nfe
        assert sum(denoise.denoise.sizes) == form.forward_passes() * len(START)
    assert table.forward_passes(2.0) == form.forward_passes(2.0) == 2 * table.forward_passes()


def test_rows_that_move_the_state_are_evaluated_alone():
    """Only the first prediction of each branch is at the start; the middle row asks one branch."""
    states = torch.zeros(4, 4, dtype=torch.float64)
    states[:, 0] = torch.tensor([1.0, 0.7, 0.4, 0.2])
    outputs = torch.full((4, 4), 0.1, dtype=torch.float64).tril()
    outputs[0] = 0
    names = ("unconditional", "conditional", "conditional", "unconditional")
    table = Table(torch.tensor([1.0, 1.0, 0.5, 0.2]), states, outputs, names)
    denoise = guided_denoiser()
    actual = sample(denoise, START, table)
    assert denoise.denoise.labels == [[3, 3, 3, 0, 2, 1], [0, 2, 1], [3, 3, 3]]
    assert Stepper(table).calls == [range(2), range(2, 3), range(3, 4)]
    torch.testing.assert_close(actual, one_by_one(guided_denoiser(), START, table)[-1], rtol=0, atol=1e-14)
    later = Table(
        torch.tensor([1.0, 0.9, 0.5, 0.2]), states, outputs, names
    )  # the same state at another time
    assert [len(rows) for rows in Stepper(later).calls] == [1, 1, 1, 1]


def test_a_table_without_branches_calls_the_denoiser_itself():
    table = table_named("ddim", 3)
    assert Stepper(table).branches is None
    assert [len(rows) for rows in Stepper(table).calls] == [1, 1, 1]
    denoise = guided_denoiser(1.0)
    sample(denoise, START, table)
    assert denoise.denoise.labels == [LABELS.tolist()] * 3  # scale 1 is the conditional branch alone


def test_further_branches_have_names():
    table = table_named("ddim", 3).guided(4.0, unconditional="negative")
    actual = sample(guided_denoiser(negative=torch.tensor([1])), START, table)
    negative = ClassifierFreeGuidance(Network(), LABELS, torch.tensor([1]), 4.0)
    torch.testing.assert_close(actual, sample(negative, START, table_named("ddim", 3)), rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_guided_solver():
    solver = GeneralizedSolver(VPLinear(), 3, 1e-3)
    gradients = []
    for branched in (False, True):
        start = START.clone().requires_grad_()
        table = solver().guided(2.5) if branched else solver()
        loss = sample(guided_denoiser(2.5), start, table).square().sum()
        gradients.append(torch.autograd.grad(loss, [start, *solver.parameters()]))
    for first, other in zip(*gradients, strict=True):
        torch.testing.assert_close(first, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrap", [lambda d: Autocast(d, torch.float32), Checkpointed], ids=["cast", "check"])
def test_wrappers_serve_branches(wrap):
    table = table_named("unipc-2-bh2", 3).guided(2.0)
    assert torch.equal(sample(wrap(guided_denoiser()), START, table), sample(guided_denoiser(), START, table))


def test_a_branch_that_the_denoiser_lacks_is_refused_before_the_first_call():
    table, denoise = table_named("ddim", 2).guided(2.0, unconditional="negative"), guided_denoiser()
    message = r"^the table evaluates the branch 'negative', the denoiser has unconditional, conditional$"
    with pytest.raises(gas.UserError, match=message):
        sample(denoise, START, table)
    assert not denoise.denoise.sizes
    with pytest.raises(gas.UserError, match="'negative', the denoiser has none"):
        sample(lambda x, t: x, START, table)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ab", r"branches must be 2 names, one for each row, got 'ab'"),
        (["a"], r"branches must be 2 names"),
        (["a", 3], r"branches must be names of a branch, got 3"),
        (["a", ""], r"branches must be names of a branch, got ''"),
    ],
)
def test_wrong_branches_are_refused(names, message):
    with pytest.raises(gas.UserError, match=message):
        Table(torch.ones(2), torch.zeros(2, 2), torch.zeros(2, 2), names)


def test_what_cannot_run_branches_says_so():
    schedule, table = VPLinear(), table_named("ddim", 2).guided(2.0)
    uses = {
        "guided": lambda: table.guided(2.0),
        "GeneralizedSolver": lambda: GeneralizedSolver.from_table(schedule, table, 1e-3),
        "S4S": lambda: S4S.from_table(schedule, table, 1e-3),
        "interpolation": lambda: interpolated(schedule, table, table_named("ddim", 6), 5, 1e-3),
        "k-diffusion": lambda: sigma_form(table, schedule(table.times)[0]),
        "the sampler as ONNX": lambda: Unrolled(guided_denoiser(), torch.nn.Identity(), table),
    }
    for use, call in uses.items():
        message = (
            f"^{use} takes tables without branches, got one whose rows evaluate the branches conditional, "
        )
        with pytest.raises(gas.UserError, match=message):
            call()


def test_a_file_of_branches_alone_is_refused_where_the_denoiser_is_evaluated(tmp_path):
    table, path = table_named("ddim", 2).guided(2.0), tmp_path / "s.json"
    gas.save(path, table)
    uses = {
        "k-diffusion": lambda: sigmas_of(path, schedule=VPLinear()),
        "a pipeline without a BranchGuider": lambda: gas.GASScheduler(solver=path).set_timesteps(4),
        "NFE 4": lambda: gas.load(path).table(4),
    }
    for use, call in uses.items():
        with pytest.raises(
            gas.UserError,
            match=rf"s\.json has (tables with branches only, of \[4\].* which {use}|no.* {use}; it)",
        ):
            call()


@pytest.mark.parametrize("name", ["ddim", "unipc-3-bh2", "heun"])
def test_bns_starts_at_a_table_with_branches(name):
    table = table_named(name, 4).guided(2.0)
    solver = BNS.from_table(VPLinear(), table, 1e-3)
    assert solver().branches == table.branches
    torch.testing.assert_close(solver().unrolled(), table.unrolled(), rtol=0, atol=1e-14)
