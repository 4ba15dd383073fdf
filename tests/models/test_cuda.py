"""What can only be seen on a CUDA device: the same numbers as on a processor, memory, graphs, and the commands."""

import json

import pytest
import torch

import gas
from gas import zoo
from gas.classical.registry import Classical
from gas.models.runtime import CudaGraphed, CudaGraphs, allow_tf32, without_tf32
from gas.pairs.teacher import teach
from gas.sampling import sample
from gas.training.activation_checkpointing import Checkpointed
from gas.training.adam import Adam, AdamSteps
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.linearization import linearize, measure_differences
from support import commands

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def exact_products():
    with without_tf32():
        yield


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits").to("cuda")


@pytest.fixture(scope="module")
def table(digits):
    return Classical("unipc-3-bh2", "log_snr", 6, 1e-3).table(digits.schedule)


@pytest.fixture(scope="module")
def pairs(digits):
    teacher = Classical("unipc-3-bh2", "log_snr", 20, 1e-3).table(digits.schedule)
    return teach(digits, teacher, range(96))


def run(*words):
    return commands.run(*words).stdout


def test_a_seed_gives_the_sample_that_it_gives_on_a_processor(digits, table):
    other = zoo.load("digits")
    with torch.no_grad():
        on_gpu = sample(digits.bind(None), digits.noise(range(8)), table)
        on_cpu = sample(other.bind(None), other.noise(range(8)), table)
    assert torch.equal(digits.noise(range(8)).cpu(), other.noise(range(8)))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=2e-5)


def test_derivatives_are_those_of_a_processor_whatever_torch_truncates(digits, pairs, table):
    allow_tf32(True)
    solver = gas.GeneralizedSolver(digits.schedule, 4, 1e-3)
    work = GaussNewtonSteps(solver, digits, pairs, gas.losses.l2, GaussNewton(batch=24))
    work.step()
    other = zoo.load("digits")
    plain = gas.GeneralizedSolver(other.schedule, 4, 1e-3)
    reference = GaussNewtonSteps(plain, other, pairs, gas.losses.l2, GaussNewton(batch=24))
    reference.step()
    error = (work.curvature - reference.curvature).norm() / reference.curvature.norm()
    assert error < 1e-3
    with without_tf32():
        steps = measure_differences(digits.bind(None), digits.noise(range(8)), table)
        _, exact, _ = linearize(digits.bind(None), digits.noise(range(8)), table, steps)
    _, truncated, _ = linearize(digits.bind(None), digits.noise(range(8)), table, steps)
    assert (truncated - exact).norm() / exact.norm() > 1e-3  # what the guard is there for


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_graphs_answer_as_the_network_does(digits, table, precision):
    model = gas.models.precise(digits, precision)
    graphed = CudaGraphed(model.bind(None))
    for seeds in (range(8), range(8, 16)):
        x = digits.noise(seeds)
        with torch.no_grad():
            torch.testing.assert_close(sample(graphed, x, table), sample(model.bind(None), x, table))


def test_graphs_are_shared_by_batches_of_other_labels(digits, table):
    graphs, answers = CudaGraphs(digits), []
    for labels in (torch.arange(8), torch.arange(8).flip(0)):
        x = digits.noise(range(8))
        with torch.no_grad():
            answers.append(sample(graphs.bind(labels), x, table))
            torch.testing.assert_close(answers[-1], sample(digits.bind(labels), x, table))
    assert not torch.allclose(*answers)
    assert len(graphs._bound) == 1


def peak_of_training(model, pairs, nfe, checkpointing):
    solver = gas.GeneralizedSolver(model.schedule, nfe, model.t_end)
    work = AdamSteps(solver, model, pairs, gas.losses.l2, Adam(batch=48, checkpointing=checkpointing))
    work.step()
    torch.cuda.synchronize()
    begun = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - begun


def test_peak_memory_does_not_grow_with_nfe(digits, pairs):
    checkpointed, stored = (
        [peak_of_training(digits, pairs, nfe, checkpointing) for nfe in (4, 10)]
        for checkpointing in (3, "none")
    )
    assert checkpointed[1] < 1.15 * checkpointed[0]
    assert stored[1] > 2 * stored[0]


def test_gradients_with_checkpointing_are_those_of_the_stored_graph(digits, pairs):
    gradients = []
    for again in (0, 3):
        solver = gas.GeneralizedSolver(digits.schedule, 6, 1e-3)
        with without_tf32():
            samples = sample(
                Checkpointed(digits.bind(pairs.labels), again), pairs.noise.cuda(), solver().folded()
            )
            (samples - pairs.target.cuda()).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in solver.parameters()]))
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=1e-6, atol=1e-6 * float(gradients[0].abs().max())
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_at_less_precision_learns(digits, pairs, precision):
    model = gas.models.precise(digits, precision)
    solver = gas.GeneralizedSolver(digits.schedule, 4, 1e-3)
    config = Adam(iterations=40, batch=24, validate_every=40)
    *_, last = gas.fit(
        solver, model, pairs.subset(slice(0, 64)), validation=pairs.subset(slice(64, 96)), config=config
    )
    assert last.best_loss < 0.7 * last.start_loss


def test_the_commands_take_a_device(tmp_path):
    on = ["--model", "digits", "--device", "cuda"]
    run("pairs", *on, "--seeds", 160, "--out", tmp_path / "pairs")
    solver = tmp_path / "solver.json"
    run(
        "train",
        *on,
        "--pairs",
        tmp_path / "pairs",
        "--validation",
        64,
        "--nfe",
        4,
        "--cuda-graphs",
        "--out",
        solver,
    )
    output = run("evaluate", *on, "--solver", solver, "--seeds", "50000:50064", "--json")
    assert json.loads(output)
    pictures = {}
    for name, more in (("plain", []), ("graphs", ["--cuda-graphs"])):
        out = tmp_path / f"{name}.safetensors"
        run("sample", *on, "--solver", solver, "--seeds", 40, "--batch", 16, "--out", out, *more)
        pictures[name] = out.read_bytes()
    from safetensors.torch import load

    plain, graphs = (load(pictures[name])["samples"] for name in ("plain", "graphs"))
    torch.testing.assert_close(plain, graphs, rtol=0, atol=1e-3)


def test_a_critic_learns_on_the_device(digits, pairs, tmp_path):
    run("pairs", "--model", "digits", "--device", "cuda", "--seeds", 256, "--out", tmp_path / "pairs")
    words = ["train", "--model", "digits", "--device", "cuda", "--pairs", tmp_path / "pairs", "--nfe", 3]
    run(
        *words,
        "--validation",
        64,
        "--objective",
        "gas",
        "--gas-iterations",
        20,
        "--out",
        tmp_path / "gas.json",
    )
