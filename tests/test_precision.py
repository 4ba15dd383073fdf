"""Less precision rounds the network and nothing else, and whoever keeps results knows of it."""

import pytest
import torch
from typer.testing import CliRunner

import gas
from gas import zoo
from gas.catalogue import Classical
from gas.cli import app
from gas.cuda_graphs import CudaGraphed
from gas.fit import fit
from gas.learned import GeneralizedSolver
from gas.optimizers import Adam, GaussNewton
from gas.own import OwnModel
from gas.pairs import PairsSpec, read_pairs, teach, write_pairs
from gas.precision import Autocast, PreciseModel, precise
from gas.sample import sample

# Machine epsilon of each: what one rounding of the network's activations is about.
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits")


@pytest.fixture(scope="module")
def table(digits):
    return Classical("unipc-3-bh2", "log_snr", 6, 1e-3).table(digits.schedule)


@pytest.mark.parametrize("precision", list(ROUNDING))
def test_samples_move_by_a_rounding_of_the_network_and_stay_float32(digits, table, precision):
    seen = []

    def network(x, t):
        seen.append(torch.nn.functional.linear(x.flatten(1), torch.eye(64)).dtype)
        return digits.bind(None)(x, t)

    x = digits.noise(range(16))
    with torch.no_grad():
        exact = sample(digits.bind(None), x, table)
        rounded = sample(Autocast(network, gas.precision.PRECISIONS[precision]), x, table)
    assert rounded.dtype == torch.float32 and set(seen) == {gas.precision.PRECISIONS[precision]}
    error = float((rounded - exact).square().mean().sqrt())
    assert 0 < error < 5 * ROUNDING[precision]


def test_float32_changes_nothing(digits, table):
    x = digits.noise(range(4))
    with torch.no_grad():
        assert torch.equal(
            sample(Autocast(digits.bind(None), torch.float32), x, table), sample(digits.bind(None), x, table)
        )
    assert precise(digits) is digits


def test_coefficients_stay_exact_around_a_rounded_network(digits):
    schedule, x, t = digits.schedule, digits.noise(range(4)), torch.tensor(0.7, dtype=torch.float64)
    blind = gas.denoise.NoiseDenoiser(lambda x, t: torch.zeros_like(x, dtype=torch.bfloat16), schedule)
    assert torch.equal(Autocast(blind, torch.bfloat16)(x, t), x / schedule(t)[0])


def test_gradients_reach_the_solver_through_a_rounded_network(digits):
    pairs = teach(digits, Classical("unipc-3-bh2", "log_snr", 8, 1e-3).table(digits.schedule), range(8))
    ends = []
    for model in (digits, precise(digits, "bf16")):
        solver = GeneralizedSolver(digits.schedule, 3, digits.t_end)
        made = sample(model.bind(pairs.labels), pairs.noise, solver().folded())
        (made - pairs.target).square().mean().backward()
        ends.append(torch.cat([p.grad.flatten() for p in solver.parameters()]))
        assert ends[-1].dtype == torch.float64
    assert 0 < float((ends[1] - ends[0]).norm()) < 0.05 * float(ends[0].norm())


def test_pairs_know_the_precision_they_were_made_at(digits, table, tmp_path):
    rounded, spec = precise(digits, "bf16"), PairsSpec(range(6), {})
    list(write_pairs(digits, table, tmp_path / "exact", spec))
    list(write_pairs(rounded, table, tmp_path / "rounded", spec))
    assert len(read_pairs(tmp_path / "exact", model=digits)) == 6
    assert len(read_pairs(tmp_path / "exact", model=rounded)) == 6  # the better teacher serves every student
    assert len(read_pairs(tmp_path / "rounded", model=rounded)) == 6
    for other in (digits, precise(digits, "fp16")):
        with pytest.raises(ValueError, match=r"made with another model .*precision: 'bf16' there"):
            read_pairs(tmp_path / "rounded", model=other)
    with pytest.raises(ValueError, match=r"pairs of other settings .*precision"):
        list(write_pairs(rounded, table, tmp_path / "exact", spec))


def test_a_training_goes_on_at_its_precision_to_the_same_bits_and_at_no_other(digits, table, tmp_path):
    kept, held = teach(digits, table, range(6)).split(2)
    config = Adam(iterations=2, validate_every=1, batch=2)

    def train(model, stop=None, path=None):
        solver = GeneralizedSolver(digits.schedule, 2, digits.t_end)
        for record in fit(solver, model, kept, validation=held, loss="l1", config=config, checkpoint=path):
            if record.iteration == stop:
                break
        return torch.cat([p.detach().flatten() for p in solver.parameters()])

    rounded = precise(digits, "bf16")
    train(rounded, stop=1, path=tmp_path / "state")
    with pytest.raises(ValueError, match="run with other settings, solver, model or pairs"):
        train(digits, path=tmp_path / "state")
    whole = train(rounded)
    assert torch.equal(train(rounded, path=tmp_path / "state"), whole)
    assert not torch.equal(train(digits), whole)


def test_gauss_newton_asks_in_full_for_its_differences(digits, table):
    kept, held = teach(digits, table, range(16)).split(4)
    ends = []
    for model in (digits, precise(digits, "bf16")):
        solver = GeneralizedSolver(digits.schedule, 2, digits.t_end)
        config = GaussNewton(iterations=2, batch=6)
        *_, last = fit(solver, model, kept, validation=held, config=config)
        ends.append(last.best_loss)
    assert ends[0] == ends[1]


def test_a_solver_file_serves_every_precision(digits, table, tmp_path):
    rounded = precise(digits, "bf16")
    gas.save(tmp_path / "a.json", table, model=rounded)
    artefact = gas.load(tmp_path / "a.json")
    for model in (digits, rounded, precise(digits, "fp16")):
        artefact.check(model)
    assert rounded.features is not None and rounded.reference is digits.reference


def test_what_cannot_be_is_refused(digits):
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        PreciseModel(digits, "half")
    own = OwnModel(lambda x, t: 0 * x, digits.schedule, (2,))
    with pytest.raises(ValueError, match="no torch module as network or weights to compile"):
        precise(own, compiled=True)
    graphed = CudaGraphed(digits.bind(None))
    with torch.no_grad(), pytest.raises(ValueError, match="CUDA graphs need a CUDA device, x is on cpu"):
        graphed(digits.noise(range(2)), torch.tensor(0.5))
    words = ["pairs", "--model", "digits", "--out", "nowhere", "--precision", "float16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "unknown precision 'float16'" in result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_answer_as_the_network_does(table):
    model = zoo.load("digits").to("cuda")
    graphed = CudaGraphed(model.bind(None))
    for seeds in (range(8), range(8, 16)):
        x = model.noise(seeds)
        with torch.no_grad():
            torch.testing.assert_close(sample(graphed, x, table), sample(model.bind(None), x, table))
