"""Flat memory: the same gradients, and a graph that does not grow with the network's activations."""

import pytest
import torch

from gas import zoo
from gas.catalogue import Classical
from gas.fit import fit
from gas.learned import GeneralizedSolver
from gas.memory import Recomputed, available_bytes, fits, saved_bytes
from gas.optimizers import Adam
from gas.pairs import teach
from gas.sample import sample


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits")


@pytest.fixture(scope="module")
def pairs(digits):
    return teach(digits, Classical("unipc-3-bh2", "log_snr", 8, 1e-3).table(digits.schedule), range(16))


def kept_bytes(denoise, x, nfe, model):
    """Bytes of different storages that a run of a learned solver keeps for its backward pass."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    solver = GeneralizedSolver(model.schedule, nfe, model.t_end)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample(denoise, x, solver().folded())
    return sum(size for size, _ in kept.values())


def gradients(denoise, pairs, nfe, model):
    solver = GeneralizedSolver(model.schedule, nfe, model.t_end)
    made = sample(denoise, pairs.noise, solver().folded())
    (made - pairs.target).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in solver.parameters()])


@pytest.mark.parametrize("nfe", [1, 4])
def test_gradients_are_those_of_the_stored_graph(digits, pairs, nfe):
    denoise = digits.bind(pairs.labels)
    stored = gradients(denoise, pairs, nfe, digits)
    again = gradients(Recomputed(denoise), pairs, nfe, digits)
    assert float((again - stored).norm()) <= 1e-6 * float(stored.norm())


def test_what_is_kept_grows_by_a_state_a_call_not_by_a_network(digits, pairs):
    denoise = digits.bind(pairs.labels)
    flat = [kept_bytes(Recomputed(denoise), pairs.noise, nfe, digits) for nfe in (4, 10)]
    fast = [kept_bytes(denoise, pairs.noise, nfe, digits) for nfe in (4, 10)]
    weights = sum(p.numel() * p.element_size() for p in digits.network.parameters())
    assert flat[1] < 0.05 * fast[1]
    # What the whole of training holds: the weights, one call's activations, and the rest of the graph.
    one = saved_bytes(denoise, pairs.noise, torch.tensor(0.5, dtype=torch.float64))
    assert weights + one + flat[1] < 1.15 * (weights + one + flat[0])
    assert fast[1] - weights > 2 * (fast[0] - weights)


def test_a_denoiser_is_asked_plainly_without_gradients(digits, pairs):
    asked = []

    def denoise(x, t):
        asked.append(torch.is_grad_enabled())
        return x * t.float()

    with torch.no_grad():
        Recomputed(denoise)(pairs.noise, torch.tensor(0.5))
    assert asked == [False]


def test_a_graph_fits_or_it_does_not(digits, pairs, monkeypatch):
    denoise, t = digits.bind(pairs.labels), torch.tensor(0.5, dtype=torch.float64)
    one = saved_bytes(denoise, pairs.noise, t)
    assert one > 100 * pairs.noise.numel() * 4
    assert available_bytes(torch.device("cpu")) > 2**20
    monkeypatch.setattr("gas.memory.available_bytes", lambda device: 2 * one * 5 + 1)
    assert fits(denoise, pairs.noise, t, 5)
    assert not fits(denoise, pairs.noise, t, 6)


def test_training_ends_with_the_same_solver_and_counts_the_calls_made_again(digits, pairs):
    kept, held = pairs.split(4)
    ends = {}
    for memory in ("fast", "flat"):
        solver = GeneralizedSolver(digits.schedule, 3, digits.t_end)
        config = Adam(iterations=3, validate_every=3, batch=6, memory=memory)
        *_, last = fit(solver, digits, kept, validation=held, loss="l1", config=config)
        ends[memory] = (torch.cat([p.detach().flatten() for p in solver.parameters()]), last.evaluations)
    torch.testing.assert_close(ends["flat"][0], ends["fast"][0], rtol=1e-4, atol=1e-6)
    assert [ends[memory][1] for memory in ("fast", "flat")] == [3 * 6 * 3 * 3, 3 * 6 * 3 * 4]
    with pytest.raises(ValueError, match="memory must be"):
        Adam(memory="small")
