"""No sample depends on who writes where: networks that work in place or reuse a buffer, callers who edit states."""

import copy
import warnings

import numpy as np
import pytest
import torch

import gas
from gas.integrations.k_diffusion import sample_gas, sigmas_of
from gas.sampling import Stepper, sample, trajectory
from gas.training.linearization import linearize, measure_differences
from gas.training.ranking import rank_classical
from gas.training.trajectory_grid import gits
from support.covering import covering, thinned
from support.solvers import LEARNED, NAMES, table_named

NFE = 4
SCHEDULE = gas.VPLinear()
ALL = [*NAMES, *LEARNED]


def pure(x, t):
    return torch.tanh(x + t) * 0.9


class Reused:
    """Writes every answer over the last."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __call__(self, x, t):
        return self.buffer.copy_(pure(x, t))


class ReusedArray:
    """Likewise, behind torch's back: each answer is a new tensor of version 0, on the same memory."""

    def __init__(self, like):
        self.array = like.numpy().copy()

    def __call__(self, x, t):
        np.copyto(self.array, pure(x, t).numpy())
        return torch.from_numpy(self.array)


def in_place(x, t):
    return x.add_(t).tanh_().mul_(0.9)


def in_place_view(x, t):
    return in_place(x, t).view(x.shape)


def in_data(x, t):
    x.data.copy_(pure(x, t))
    return x


def in_array(x, t):
    np.copyto(x.numpy(), pure(x, t).numpy())
    return x


def in_array_elsewhere(x, t):
    return torch.from_numpy(in_array(x, t).numpy())


def spoils_input(x, t):
    d = pure(x, t)
    x.mul_(1e3)
    return d


def spoils_array(x, t):
    d = pure(x, t)
    np.multiply(x.numpy(), 1e3, out=x.numpy())
    return d


def spoils_time(x, t):
    d = pure(x, t)
    t.mul_(1e3)
    return d


REUSE = {"buffer": Reused, "array": ReusedArray}
# What answers in the memory of its input, and what spoils its input beside the answer.
ANSWERS_IN_PLACE = [in_place, in_place_view, in_data, in_array, in_array_elsewhere]
SPOILS = [spoils_input, spoils_array]


def denoisers(like):
    """Every denoiser of the same answers that is not pure."""
    known = [kind(torch.empty_like(like)) for kind in REUSE.values()]
    return [*known, *ANSWERS_IN_PLACE, *SPOILS, spoils_time]


EDITS = {
    "in place": lambda x: x.mul_(0.9),
    "a view": lambda x: x[:].mul_(0.9),
    "data": lambda x: x.data.mul_(0.9),
    "array": lambda x: np.multiply(x.numpy(), 0.9, out=x.numpy()),
    "another": lambda x: x * 0.9,
}


def edited(edit, x):
    edited_state = EDITS[edit](x)
    return edited_state if edit == "another" else x


@pytest.fixture(params=thinned(ALL, 3))
def table(request):
    return table_named(request.param, NFE)


@pytest.fixture
def x():
    return torch.linspace(-1.5, 1.5, 8, dtype=torch.float64).reshape(2, 4)


def scheduler_of(table):
    scheduler = gas.GASScheduler(prediction_type="sample", solver=table)
    scheduler.set_timesteps(table.nfe)
    return scheduler


class ByStepper:
    def __init__(self, table):
        self.stepper = Stepper(table)
        self.times = self.stepper.times

    def step(self, d, n, x):
        return self.stepper.step(x, d)


class ByScheduler:
    def __init__(self, table):
        self.scheduler = scheduler_of(table)
        self.times = table.times.clone().unbind()

    def step(self, d, n, x):
        return self.scheduler.step(d, self.scheduler.timesteps[n], x, return_dict=False)[0]


BY_HAND = [ByStepper, ByScheduler]


def by_hand(kind, table, denoise, x, edit=None):
    """A loop of the caller's own, who may edit each state."""
    way = kind(table)
    for n, t in enumerate(way.times):
        x = way.step(denoise(x, t), n, x)
        x = x if edit is None else edited(edit, x)
    return x


def by_k_diffusion(table, denoise, x, edit=None):
    time_of_sigma = dict(
        zip(sigmas_of(table, schedule=SCHEDULE).tolist(), table.times.clone().unbind(), strict=False)
    )

    def edits(step):
        if edit is not None:
            edited(edit, step["x"])

    def model(x, sigma):
        return denoise(x, time_of_sigma[float(sigma[0].float())])

    return sample_gas(
        model,
        x,
        sigmas_of(table, schedule=SCHEDULE),
        callback=edits,
        disable=True,
        solver=table,
        schedule=SCHEDULE,
    )


@pytest.mark.parametrize(
    "run", [sample, lambda *given: list(trajectory(*given))[-1]], ids=["sample", "trajectory"]
)
def test_what_a_denoiser_does_in_place_changes_no_sample(run, table, x):
    expected, start, numbers = run(pure, x, table), x.clone(), table.times.clone()
    for denoise in denoisers(x):
        assert torch.equal(run(denoise, x, table), expected), denoise
        assert torch.equal(x, start), denoise
        assert torch.equal(table.times, numbers), denoise
    assert torch.equal(run(Reused(start), start, table), expected)  # the start itself as the buffer


def test_what_is_done_to_a_trajectory_changes_it_not(table, x):
    expected = list(trajectory(pure, x, table))
    for edit in EDITS:
        start = x.clone()
        for state, right in zip(trajectory(pure, start, table), expected, strict=True):
            assert torch.equal(state, right)
            edited(edit, state)
    yielded = list(trajectory(in_place, x, table))
    assert all(torch.equal(state, right) for state, right in zip(yielded, expected, strict=True))


@covering(step=3, kind=BY_HAND, table=ALL, indirect=["table"])
def test_a_buffer_used_again_changes_no_sample_of_a_loop_by_hand(kind, table, x):
    expected = by_hand(kind, table, pure, x)
    for reuse in REUSE.values():
        assert torch.equal(by_hand(kind, table, reuse(x.clone()), x), expected)
    assert torch.equal(by_hand(kind, table, spoils_time, x), expected)


@covering(step=3, kind=BY_HAND, denoise=ANSWERS_IN_PLACE, table=ALL, indirect=["table"])
def test_an_answer_in_the_memory_of_the_state_is_right_or_refused(kind, denoise, table, x):
    expected = by_hand(kind, table, pure, x)
    with pytest.raises(
        ValueError, match="the network's output lies in the memory of x, which was changed in place"
    ):
        by_hand(kind, table, denoise, x.clone())
    copied = by_hand(kind, table, lambda x, t: denoise(x.clone(), t), x)
    assert torch.equal(copied, expected)


@covering(step=3, kind=BY_HAND, table=ALL, indirect=["table"])
def test_a_network_may_return_its_input(kind, table, x):
    expected = by_hand(kind, table, lambda x, t: x.clone(), x)
    for same in (lambda x, t: x, lambda x, t: x[:], lambda x, t: x.view(x.shape)):
        assert torch.equal(by_hand(kind, table, same, x), expected)


@covering(step=3, kind=BY_HAND, table=ALL, indirect=["table"])
def test_a_state_counts_as_it_is_handed_in(kind, table, x):
    """However it was edited; a network that spoils its input edits the state."""
    expected = by_hand(kind, table, pure, x, "another")
    for edit in EDITS:
        assert torch.equal(by_hand(kind, table, pure, x, edit), expected), edit
    spoiled = by_hand(kind, table, lambda x, t: pure(x / 1e3, t), 1e3 * x)
    torch.testing.assert_close(by_hand(kind, table, spoils_input, x.clone()).isfinite(), spoiled.isfinite())


@pytest.mark.parametrize("fold", [True, None])
@pytest.mark.parametrize("edit", EDITS)
def test_a_folded_stepper_refuses_an_edited_state(fold, edit, x):
    stepper = Stepper(table_named("generalized", NFE), fold=fold)
    x = stepper.step(x, pure(x, stepper.times[0]))
    with pytest.raises(ValueError, match="x is not the state that step returned"):
        stepper.step(edited(edit, x), pure(x, stepper.times[1]))


@covering(step=3, kind=BY_HAND, table=ALL, indirect=["table"])
def test_states_that_are_slices_of_a_larger_tensor(kind, table, x):
    expected = by_hand(kind, table, pure, x)
    latents, way = torch.cat([x, torch.ones_like(x)], dim=1), kind(table)
    for n, t in enumerate(way.times):
        latents[:, :4] = way.step(pure(latents[:, :4], t), n, latents[:, :4])
    assert torch.equal(latents[:, :4], expected)
    assert bool((latents[:, 4:] == 1).all())


@covering(step=3, kind=BY_HAND, table=ALL, indirect=["table"])
def test_frames_with_a_run_each_in_one_tensor(kind, table, x):
    """As pipelines of diffusion forcing run: a scheduler a frame, one behind the other, all in one tensor."""
    starts = [x, x.flip(0), -x]
    expected = [by_hand(kind, table, pure, start) for start in starts]
    latents, ways, shared = torch.stack(starts, dim=2), [kind(table) for _ in starts], Reused(x.clone())
    for turn in range(table.nfe + len(ways) - 1):
        for frame, way in enumerate(ways):
            n = turn - frame
            if 0 <= n < table.nfe:
                answer = shared(latents[:, :, frame], way.times[n])
                latents[:, :, frame] = way.step(answer, n, latents[:, :, frame])
    for frame, right in enumerate(expected):
        assert torch.equal(latents[:, :, frame], right)


def test_k_diffusion_form_with_models_and_callbacks_that_write_in_place(table, x):
    if not bool((table.times.diff() < 0).all()):
        pytest.skip("sigmas of this table repeat")
    expected, start = by_k_diffusion(table, pure, x), x.clone()
    for denoise in denoisers(x):
        assert torch.equal(by_k_diffusion(table, denoise, x), expected), denoise
    right = by_k_diffusion(table, pure, x, "in place")
    assert not torch.equal(right, expected)
    for edit in ("a view", "data", "array"):
        assert torch.equal(by_k_diffusion(table, pure, x, edit), right), edit
    assert torch.equal(x, start)


def wrapped(network):
    """Every wrapper of a network, which needs the state after it has asked."""
    process = gas.GASScheduler(num_train_timesteps=100).process
    kinds = ("NoiseDenoiser", "ScoreDenoiser", "VelocityDenoiser", "EDMDenoiser")
    return [
        *(getattr(gas.denoise, kind)(network, SCHEDULE) for kind in kinds),
        gas.denoise.FlowDenoiser(network),
        process.denoiser(network),
        gas.denoise.ClassifierFreeGuidance(
            lambda x, t, c: network(x, t[None]), torch.ones(2), torch.zeros(2), 2.0
        ),
    ]


def test_a_network_inside_a_wrapper_may_work_in_place(x):
    def network(x, t):
        return torch.tanh(x) * 0.5

    def works_in_place(x, t):
        return x.tanh_().mul_(0.5)

    t, start = torch.tensor(0.4, dtype=torch.float64), x.clone()
    for plain, hasty in zip(wrapped(network), wrapped(works_in_place), strict=True):
        assert torch.equal(hasty(x, t), plain(x, t))
        assert torch.equal(x, start)
    for denoise in wrapped(works_in_place)[:2]:
        with pytest.raises(ValueError, match="the network changed its input in place"):
            denoise(x.clone().requires_grad_() * 1, t)


@pytest.mark.parametrize("denoise", [Reused(torch.empty(2, 4)), in_place])
def test_training_asks_a_network_that_writes_over_its_answers(denoise):
    def model(denoise):
        return gas.OwnModel(denoise, SCHEDULE, (4,), name="toy")

    def results(model):
        table = table_named("generalized", NFE)
        denoise = model.bind(None)
        steps = measure_differences(denoise, pairs.noise, table)
        computed, columns, _ = linearize(denoise, pairs.noise, table, steps)
        ranked = rank_classical(model, pairs, NFE, lambda a, b: (a - b).square().mean(1), entries=entries)
        return [computed, columns, *(measured.loss for measured in ranked), gits(model, pairs, NFE, steps=8)]

    table = table_named("unipc-2-bh2", 8)
    entries = [
        (gas.Classical(name, "log_snr", NFE, 1e-3), table_named(name, NFE)) for name in ("ddim", "ipndm-3")
    ]
    pairs = gas.pairs.teach(model(pure), table, range(2))
    for right, actual in zip(results(model(pure)), results(model(denoise)), strict=True):
        assert torch.equal(torch.as_tensor(actual), torch.as_tensor(right))


@pytest.mark.parametrize("name", ["unipc-2-bh2", "ipndm-3", "generalized"])
@pytest.mark.parametrize("learned", [False, True])
def test_gradients_are_right_or_refused(name, learned, x):
    table, start = table_named(name, NFE), x.requires_grad_()
    if learned:
        table = gas.Table(table.times, table.states.requires_grad_(), table.outputs.requires_grad_())
    wanted = [start, table.states, table.outputs] if learned else [start]

    def gradients(denoise):
        computed = sample(denoise, start, table)
        return torch.autograd.grad(computed.sum(), wanted)

    def moves_input(x, t):
        return torch.tanh(x.add_(t)) * 0.9

    expected = gradients(pure)
    actual = gradients(lambda x, t: moves_input(x * 1, t))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    start = start * 1  # a leaf refuses by itself
    with pytest.raises(
        ValueError, match="the network changed its input in place, which gradients flow through"
    ):
        gradients(moves_input)
    for n in range(2):  # the start is refused as the states after it are
        states = trajectory(pure, start * 1, table)
        for _ in range(n):
            next(states)
        next(states).mul_(0.9)
        with pytest.raises(ValueError, match="a state that gradients flow through was changed in place"):
            next(states)
    assert next(trajectory(pure, start, table)) is start


def test_answers_written_over_have_the_gradients_of_the_table_all_the_same(x):
    table = table_named("generalized", NFE)

    def gradient(denoise):
        parts = [part.clone().requires_grad_() for part in (table.states, table.outputs)]
        sample(denoise, x, gas.Table(table.times, *parts)).sum().backward()
        return [part.grad for part in parts]

    def frozen(denoise):
        return lambda x, t: denoise(x.detach(), t.detach())

    expected = gradient(frozen(pure))
    for denoise in (Reused(x.clone()), ReusedArray(x)):
        actual = gradient(frozen(denoise))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_scheduler_says_that_two_runs_share_it(table, x):
    scheduler, other = scheduler_of(table), x + 1
    t = scheduler.timesteps
    if t[0] == t[1]:
        pytest.skip("this solver asks twice at one time")
    first = scheduler.step(pure(x, t[0]), t[0], x, return_dict=False)[0]
    with pytest.warns(UserWarning, match="a scheduler serves one run at a time"):
        scheduler.step(pure(other, t[0]), t[0], other, return_dict=False)
    scheduler.set_timesteps(table.nfe)
    scheduler.step(pure(x, t[0]), t[0], x)
    with pytest.raises(ValueError, match="one Stepper, or scheduler, serves one run at a time"):
        scheduler.step(pure(other, t[1])[:1], t[1], other[:1])
    assert first.shape == x.shape


def test_a_scheduler_says_that_a_run_goes_on_which_another_took_the_place_of(x):
    table = table_named("ipndm-3", NFE)
    scheduler, other = scheduler_of(table), x + 1
    t = scheduler.timesteps
    first = scheduler.step(pure(x, t[0]), t[0], x, return_dict=False)[0]
    scheduler.set_timesteps(NFE)
    scheduler.step(pure(other, t[0]), t[0], other)
    with pytest.warns(UserWarning, match="a sample of another run came"):
        scheduler.step(pure(first, t[1]), t[1], first)


def test_a_scheduler_is_silent_about_one_run(table, x):
    """Edited states, states elsewhere, copies of the scheduler in the middle, a run after a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler, expected = scheduler_of(table), by_hand(ByScheduler, table, pure, x)
        for _ in range(2):
            state = x
            for n, t in enumerate(scheduler.timesteps):
                scheduler = copy.deepcopy(scheduler)
                answer = pure(state, table.times[n])
                state = scheduler.step(answer, t, state.clone(), return_dict=False)[0]
            assert torch.equal(state, expected)
