"""Activation checkpointing: the same gradients, and a graph that does not grow with the network's activations."""

import gc

import pytest
import torch

from gas import zoo
from gas.classical.registry import Classical
from gas.learned.generalized import GeneralizedSolver
from gas.pairs.teacher import teach
from gas.sampling import sample
from gas.training.activation_checkpointing import Checkpointed, available_bytes, saved_bytes, stored_calls
from gas.training.adam import Adam
from gas.training.loop import fit
from gas.zoo.networks import EDMUNet


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits")


@pytest.fixture(scope="module")
def pairs(digits):
    return teach(digits, Classical("unipc-3-bh2", "log_snr", 8, 1e-3).table(digits.schedule), range(16))


def stored_bytes(denoise, x, nfe, model):
    """Bytes of different storages that a run of a learned solver keeps for its backward pass."""
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    solver = GeneralizedSolver(model.schedule, nfe, model.t_end)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample(denoise, x, solver().folded())
    return sum(size for size, _ in saved.values())


def gradients(denoise, pairs, nfe, model):
    solver = GeneralizedSolver(model.schedule, nfe, model.t_end)
    actual = sample(denoise, pairs.noise, solver().folded())
    (actual - pairs.target).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in solver.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(("nfe", "again"), [(1, None), (4, None), (4, 1), (4, 0)])
def test_gradients_are_those_of_the_stored_graph(digits, pairs, nfe, again):
    denoise = digits.bind(pairs.labels)
    stored = gradients(denoise, pairs, nfe, digits)
    remade = gradients(Checkpointed(denoise, again), pairs, nfe, digits)
    assert float((remade - stored).norm()) <= 1e-6 * float(stored.norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    "blind",
    [lambda network, x, t: network(x, t.detach()), lambda network, x, t: 0.5 * x.detach()],
    ids=["not told the time", "without a gradient"],
)
def test_answers_that_do_not_depend_on_what_is_learned_have_its_gradients_too(digits, pairs, blind):
    network = digits.bind(pairs.labels)

    def denoise(x, t):
        return blind(network, x, t)

    stored = gradients(denoise, pairs, 4, digits)
    remade = gradients(Checkpointed(denoise), pairs, 4, digits)
    assert float(stored.norm()) > 0
    assert float((remade - stored).norm()) <= 1e-6 * float(stored.norm())


def test_a_call_is_made_again_under_the_autocast_it_was_made_under(digits, pairs):
    batches, network = [], digits.bind(pairs.labels)

    def denoise(x, t):
        batches.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return network(x, t)

    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            actual = Checkpointed(denoise)(
                pairs.noise.clone().requires_grad_(), torch.tensor(0.5, dtype=torch.float64)
            )
        actual.sum().backward()
    assert [each[0] for each in batches] == [True, True, False, False]
    assert len({each[1] for each in batches}) == 1


@pytest.mark.slow
def test_what_is_kept_grows_by_a_state_a_call_not_by_a_network(digits, pairs):
    denoise = digits.bind(pairs.labels)
    flat = [stored_bytes(Checkpointed(denoise), pairs.noise, nfe, digits) for nfe in (4, 10)]
    fast = [stored_bytes(denoise, pairs.noise, nfe, digits) for nfe in (4, 10)]
    weights = sum(p.numel() * p.element_size() for p in digits.network.parameters())
    assert flat[1] < 0.05 * fast[1]
    # What the whole of training holds: the weights, one call's activations, and the rest of the graph.
    bytes_a_call = saved_bytes(denoise, pairs.noise, torch.tensor(0.5, dtype=torch.float64))
    assert weights + bytes_a_call + flat[1] < 1.15 * (weights + bytes_a_call + flat[0])
    assert fast[1] - weights > 2 * (fast[0] - weights)
    # And a call's own share has no weights in it.
    assert bytes_a_call == pytest.approx((fast[1] - weights) / 10, rel=0.1)


def test_the_calls_kept_are_the_last_ones(digits, pairs):
    denoise = digits.bind(pairs.labels)
    bytes_a_call = saved_bytes(denoise, pairs.noise, torch.tensor(0.5, dtype=torch.float64))
    weights = sum(p.numel() * p.element_size() for p in digits.network.parameters())
    some = [
        stored_bytes(Checkpointed(denoise, nfe - 3), pairs.noise, nfe, digits) - weights for nfe in (4, 10)
    ]
    assert some == pytest.approx([3 * bytes_a_call, 3 * bytes_a_call], rel=0.1)
    calls = []

    def counted(x, t):
        calls.append(float(t.detach()))
        return denoise(x, t)

    gradients(Checkpointed(counted, 2), pairs, 4, digits)
    assert calls[4:] == [calls[1], calls[0]]


def test_states_are_kept_in_the_dtype_they_are_computed_in(digits, pairs):
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    solver = GeneralizedSolver(digits.schedule, 6, digits.t_end)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample(lambda x, t: x / 2, pairs.noise, solver().folded())
    # Coefficients are float64 and learned; nothing of a state's size is.
    assert {tensor.dtype for tensor in saved if tensor.numel() >= pairs.noise.numel()} == {torch.float32}


def test_training_makes_no_second_network(digits, pairs):
    def networks():
        return sum(type(thing) is EDMUNet for thing in gc.get_objects())

    before, training = networks(), pairs.split(4)
    solver = GeneralizedSolver(digits.schedule, 2, digits.t_end)
    config = Adam(iterations=1, validate_every=1, batch=4, checkpointing=1)
    for _ in fit(solver, digits, training[0], validation=training[1], loss="l1", config=config):
        assert networks() == before > 0


def test_a_denoiser_is_asked_plainly_without_gradients(digits, pairs):
    calls = []

    def denoise(x, t):
        calls.append(torch.is_grad_enabled())
        return x * t.float()

    with torch.no_grad():
        Checkpointed(denoise)(pairs.noise, torch.tensor(0.5))
    assert calls == [False]


def test_a_call_that_is_made_again_builds_its_graph_once(digits, pairs):
    """With what does not ask for a gradient left alone: the first call's state, of a fixed start."""
    calls = []

    def denoise(x, t):
        calls.append((torch.is_grad_enabled(), x.requires_grad, t.requires_grad))
        return x * t.float()

    t = torch.tensor(0.5, requires_grad=True)
    Checkpointed(denoise)(pairs.noise, t).sum().backward()
    assert calls == [(False, False, True), (True, False, True)]
    torch.testing.assert_close(t.grad, pairs.noise.sum())


def test_as_many_graphs_are_kept_as_fit(digits, pairs, monkeypatch):
    denoise, t = digits.bind(pairs.labels), torch.tensor(0.5, dtype=torch.float64)
    bytes_a_call = saved_bytes(denoise, pairs.noise, t)
    assert bytes_a_call > 100 * pairs.noise.numel() * 4
    assert available_bytes(torch.device("cpu")) > 2**20
    monkeypatch.setattr(
        "gas.training.activation_checkpointing.available_bytes", lambda device: 2 * bytes_a_call * 5 + 1
    )
    stored_by_nfe = {nfe: stored_calls("auto", denoise, pairs.noise, t, nfe) for nfe in (1, 5, 6, 20)}
    assert stored_by_nfe == {1: 1, 5: 5, 6: 5, 20: 5}
    monkeypatch.setattr("gas.training.activation_checkpointing.available_bytes", lambda device: 0)
    assert stored_calls("auto", denoise, pairs.noise, t, 8) == 1
    assert [stored_calls(mode, denoise, pairs.noise, t, 8) for mode in ("none", 3, 1)] == [8, 3, 1]
    assert stored_calls(3, denoise, pairs.noise, t, 2) == 2


@pytest.mark.slow
def test_training_ends_with_the_same_solver_and_counts_the_calls_made_again(digits, pairs):
    training, held = pairs.split(4)
    ends = {}
    for checkpointing in ("none", 1):
        solver = GeneralizedSolver(digits.schedule, 3, digits.t_end)
        config = Adam(iterations=3, validate_every=3, batch=6, checkpointing=checkpointing)
        *_, last = fit(solver, digits, training, validation=held, loss="l1", config=config)
        ends[checkpointing] = (
            torch.cat([p.detach().flatten() for p in solver.parameters()]),
            last.evaluations,
        )
    torch.testing.assert_close(ends[1][0], ends["none"][0], rtol=1e-4, atol=1e-6)
    validated = 2 * len(held) * 3
    assert ends["none"][1] == 3 * 6 * 3 * 3 + validated
    assert ends[1][1] == 3 * 6 * (3 * 3 + 2) + validated
    with pytest.raises(ValueError, match="checkpointing must be"):
        Adam(checkpointing="small")
