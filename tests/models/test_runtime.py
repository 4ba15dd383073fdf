"""Less precision rounds the network and nothing else, and whoever keeps results knows of it."""

import pytest
import torch
from typer.testing import CliRunner

import gas
from gas import zoo
from gas.classical.registry import Classical
from gas.cli.app import app
from gas.errors import UserError
from gas.learned.generalized import GeneralizedSolver
from gas.models.custom import OwnModel
from gas.models.runtime import (
    Autocast,
    CudaGraphed,
    CudaGraphs,
    PreciseModel,
    SmallBatches,
    kernel_key,
    precise,
    quantize_layers,
    without_tf32,
)
from gas.pairs.dataset import read_pairs
from gas.pairs.fingerprint import PairsSpec
from gas.pairs.teacher import teach, write_pairs
from gas.sampling import sample
from gas.training.adam import Adam
from gas.training.adversarial.losses import gradient_penalty
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.loop import fit
from support.forks import run_fresh

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
    observed = []

    def network(x, t):
        observed.append(torch.nn.functional.linear(x.flatten(1), torch.eye(64)).dtype)
        return digits.bind(None)(x, t)

    x = digits.noise(range(16))
    with torch.no_grad():
        exact = sample(digits.bind(None), x, table)
        rounded = sample(Autocast(network, gas.models.PRECISIONS[precision]), x, table)
    assert rounded.dtype == torch.float32 and set(observed) == {gas.models.PRECISIONS[precision]}
    error = float((rounded - exact).square().mean().sqrt())
    assert 0 < error < 5 * ROUNDING[precision]


def largest_batch(digits, work):
    """What work returns, and the most samples that the network saw in one call."""
    sizes = []
    hook = digits.network.register_forward_hook(lambda *call: sizes.append(len(call[2])))
    try:
        return work(), max(sizes)
    finally:
        hook.remove()


@pytest.mark.parametrize("size", [1, 3, 8, 9])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_small_batches_are_the_models_predictions(digits, table, size, guidance):
    labels, noise, small = torch.arange(8), digits.noise(range(8)), SmallBatches(digits, size)
    passes = 1 if guidance == 1 else 2
    expected = sample(digits.bind(labels, guidance), noise, table)
    samples, most = largest_batch(digits, lambda: sample(small.bind(labels, guidance), noise, table))
    torch.testing.assert_close(samples, expected, rtol=0, atol=2e-5)
    assert most == passes * min(size, 8)
    torch.testing.assert_close(
        sample(small.bind(None), noise, table), sample(digits.bind(None), noise, table), rtol=0, atol=2e-5
    )


def test_small_batches_keep_branches_and_labels(digits, table):
    labels, noise, small = torch.arange(8), digits.noise(range(8)), SmallBatches(digits, 3)
    branched, denoise = table.guided(2.0), small.bind(labels, 2.0)
    samples, most = largest_batch(digits, lambda: sample(denoise, noise, branched))
    expected = sample(digits.bind(labels, 2.0), noise, branched)
    torch.testing.assert_close(samples, expected, rtol=0, atol=2e-5)
    assert most == 3 and denoise.branches == digits.bind(labels, 2.0).branches
    with pytest.raises(UserError, match=r"evaluates the branch 'style', the denoiser has"):
        denoise.select("style")
    with pytest.raises(UserError, match=r"^8 labels are bound, and x has 4 samples$"):
        denoise(noise[:4], torch.tensor(0.5))
    with pytest.raises(UserError, match=r"^size must be from 1 to"):
        SmallBatches(digits, 0)
    with pytest.raises(UserError, match=r"^label 99 is out of range"):
        small.bind(torch.tensor([99]))
    assert small.bind(None)(noise[:0], torch.tensor(0.5)).shape == (0, *noise.shape[1:])


def test_small_batches_of_a_network_that_returns_one_buffer(table):
    buffers = {}

    def reuse(x, t):
        return buffers.setdefault(x.shape, torch.empty_like(x)).copy_(0.5 * x)

    model = OwnModel(reuse, gas.VPLinear(), (3,))
    noise = model.noise(range(4))
    expected = sample(lambda x, t: 0.5 * x, noise, table)
    torch.testing.assert_close(sample(SmallBatches(model, 2).bind(None), noise, table), expected)


def test_new_conditions_run_as_labels_do():
    seen = []

    def denoise(x, t, condition):
        seen.append((len(x), torch.is_autocast_enabled("cpu")))
        return 0.1 * x + condition.mean(1, keepdim=True)

    rows = torch.randn(5, 7)
    model = OwnModel(denoise, gas.VPLinear(), (2,), conditions=rows, null=torch.zeros(7))
    x, t = model.noise(range(5)), torch.tensor(0.5).double()
    expected = model.bind(torch.arange(5), 2.0)(x, t)
    wrapped = precise(SmallBatches(model, 2), "bf16")
    seen.clear()
    torch.testing.assert_close(wrapped.bind_conditions(rows, 2.0)(x, t), expected)
    assert seen and all(count <= 4 and autocast for count, autocast in seen)  # two of each branch
    with pytest.raises(UserError, match=r"^WrappedModel runs labels, not new conditions"):
        gas.models.WrappedModel(model).bind_conditions(rows)


def test_small_batches_train_and_are_the_same_model(digits):
    def trained(model):
        pairs = teach(model, Classical("unipc-3-bh2", "log_snr", 6, digits.t_end), range(24))
        solver = GeneralizedSolver(digits.schedule, 2, digits.t_end)
        training, validation = pairs.split(8)
        config = GaussNewton(iterations=2, batch=8)
        *_, record = fit(solver, model, training, validation=validation, config=config)
        return record.validation_loss

    small = precise(SmallBatches(digits, 5), "bf16")
    assert small.fingerprint() == precise(digits, "bf16").fingerprint()
    loss, most = largest_batch(digits, lambda: trained(SmallBatches(digits, 5)))
    assert most == 5 and loss == pytest.approx(trained(digits), rel=0.05)


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
        samples = sample(model.bind(pairs.labels), pairs.noise, solver().folded())
        (samples - pairs.target).square().mean().backward()
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
        with pytest.raises(ValueError, match=r"made with another model .*precision: 'bf16' stored"):
            read_pairs(tmp_path / "rounded", model=other)
    with pytest.raises(ValueError, match=r"pairs of other settings .*precision"):
        list(write_pairs(rounded, table, tmp_path / "exact", spec))


@pytest.mark.slow
def test_gauss_newton_asks_in_full_for_its_differences(digits, table):
    training, held = teach(digits, table, range(16)).split(4)
    ends = []
    for model in (digits, precise(digits, "bf16")):
        solver = GeneralizedSolver(digits.schedule, 2, digits.t_end)
        config = GaussNewton(iterations=2, batch=6)
        *_, last = fit(solver, model, training, validation=held, config=config)
        ends.append(last.best_loss)
    assert ends[0] == ends[1]


def small():
    """A model of one layer on images of 8 x 8: half precision is slow on processors without it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = torch.nn.Linear(64, 64).requires_grad_(False)
    return OwnModel(
        lambda x, t: torch.tanh(layer(x.flatten(1))).view_as(x), gas.VPLinear(), (1, 8, 8), weights=layer
    )


def taught(model, count):
    teacher = Classical("unipc-3-bh2", "log_snr", 8, model.t_end).table(model.schedule)
    return teach(model, teacher, range(count))


def against_a_critic(model, pairs, precision, path=None, stop=None):
    """Numbers of a solver and a critic after six steps against each other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(288, 1)
        )
    critic = gas.Critic("c", torch.nn.Sequential(network, torch.nn.Flatten(0)), precision=precision)
    solver, (training, held) = GeneralizedSolver(model.schedule, 2, model.t_end), pairs.split(4)
    config = Adam(iterations=6, validate_every=3, batch=4)
    given = {"validation": held, "config": config, "discriminators": [critic], "checkpoint": path}
    for record in fit(solver, model, training, **given):
        if record.iteration == stop:
            break
    return torch.cat([p.detach().flatten().double() for p in critic.network.parameters()])


def test_a_training_goes_on_at_its_precision_to_the_same_bits_and_at_no_other(tmp_path):
    model = small()
    training, held = taught(model, 16).split(4)
    config = Adam(iterations=4, validate_every=2, batch=4)

    def train(student, stop=None, path=None):
        solver = GeneralizedSolver(model.schedule, 2, model.t_end)
        for record in fit(
            solver, student, training, validation=held, loss="l1", config=config, checkpoint=path
        ):
            if record.iteration == stop:
                break
        return torch.cat([p.detach().flatten() for p in solver.parameters()])

    rounded = precise(model, "bf16")
    train(rounded, stop=2, path=tmp_path / "state")
    with pytest.raises(ValueError, match="run with other settings, solver, model or pairs"):
        train(model, path=tmp_path / "state")
    whole = train(rounded)
    assert torch.equal(train(rounded, path=tmp_path / "state"), whole)
    assert not torch.equal(train(model), whole)


@pytest.mark.parametrize("precision", list(ROUNDING))
def test_a_critic_of_less_precision_learns_the_same_and_goes_on_to_the_same_bits(tmp_path, precision):
    model = small()
    pairs, rounding = taught(model, 16), precise(model, precision)
    exact = against_a_critic(model, pairs, "float32")
    rounded = against_a_critic(rounding, pairs, precision)
    moved = float((exact - against_a_critic(model, pairs, "float32", stop=0)).norm())
    assert 0 < float((rounded - exact).norm()) < 0.25 * moved
    against_a_critic(rounding, pairs, precision, path=tmp_path / "state", stop=3)
    assert torch.equal(against_a_critic(rounding, pairs, precision, path=tmp_path / "state"), rounded)


def test_scaling_keeps_gradients_that_half_precision_would_lose():
    x = torch.ones(1, 4, requires_grad=True)
    weight = torch.full((4, 1), 1e-9)

    def penalty(scale):
        with torch.autocast("cpu", torch.float16):
            logits = (x @ weight.mul(1e3))[:, 0] * torch.tensor(1e-3)
        return float(gradient_penalty(logits.float(), x, scale))

    assert penalty(1.0) < 0.9 * 4e-18
    assert penalty(4096.0) == pytest.approx(4e-18, rel=0.05)


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
    custom = OwnModel(lambda x, t: 0 * x, digits.schedule, (2,))
    with pytest.raises(ValueError, match="no torch module as network or weights to compile"):
        precise(custom, compiled=True)
    graphed = CudaGraphed(digits.bind(None))
    with torch.no_grad(), pytest.raises(ValueError, match="CUDA graphs need a CUDA device, x is on cpu"):
        graphed(digits.noise(range(2)), torch.tensor(0.5))
    with pytest.raises(ValueError, match="digits is on cpu: say --device cuda"):
        CudaGraphs(digits)
    words = ["pairs", "--model", "digits", "--out", "nowhere", "--precision", "float16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "unknown precision 'float16'" in result.stderr


def layer_of(kind, width=96):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = torch.nn.Linear(width, 32) if kind == "linear" else torch.nn.Conv2d(6, 32, 4)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_int8_is_a_product_of_integers(kind):
    """To float32's rounding the layer is what int8 kernels compute: an int32 product, scaled."""
    layer, x = layer_of(kind), torch.randn(5, 3, 96) if kind == "linear" else torch.randn(5, 6, 4, 4)
    rows, weight = (x.flatten(0, 1) if kind == "linear" else x.flatten(1)), layer.weight.flatten(1)
    steps = [part.abs().amax(1, keepdim=True) / 127 for part in (rows, weight)]
    whole = [(part / step).round().int() for part, step in zip((rows, weight), steps, strict=True)]
    assert max(int(part.abs().max()) for part in whole) == 127
    product = (whole[0] @ whole[1].mT) * (steps[0] @ steps[1].mT) + layer.bias
    quantize_layers(layer, "int8")
    assert torch.allclose(layer(x).flatten(), product.flatten(), rtol=0, atol=1e-5)
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-6)  # a sample does not depend on the others


def test_int8_passes_gradients_on():
    layer = layer_of("linear")
    quantize_layers(layer, "int8")
    x = torch.randn(2, 96, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, -1), atol=1e-5)


def test_weights_are_what_4_and_8_bits_hold():
    exact, four, eight = (layer_of("linear", 100) for _ in range(3))  # 3200 weights: 50 blocks of 64
    quantize_layers(eight, "fp8")
    assert torch.equal(eight.weight, exact.weight.to(torch.float8_e4m3fn).float())
    quantize_layers(four, "int4")
    blocks, rounded = (layer.weight.reshape(-1, 64) for layer in (exact, four))
    scale = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(gas.models.runtime._NF4)
    nearest = values[(blocks[..., None] / scale[..., None] - values).abs().argmin(-1)] * scale
    assert torch.allclose(rounded, nearest) and not torch.equal(rounded, blocks)
    once = four.weight.clone()
    quantize_layers(four, "int4")
    assert torch.equal(four.weight, once)


def test_a_quantized_copy_is_another_model(table, tmp_path):
    model, other = zoo.load("digits"), zoo.load("digits")
    assert model.fingerprint() == other.fingerprint()  # hashed before its weights change
    copy = precise(model, quantize="int8")
    assert copy.fingerprint()["quantize"] == "int8"
    assert copy.fingerprint()["sha256"] == model.fingerprint()["sha256"] != other.fingerprint()["sha256"]
    gas.save(tmp_path / "a.json", table, model=copy)
    artefact = gas.load(tmp_path / "a.json")
    artefact.check(gas.models.runtime.ending_at(copy, copy.t_end))
    for wrong in (other, precise(other, quantize="int4")):
        with pytest.raises(ValueError, match="made for another model or use: sha256"):
            artefact.check(wrong)


def test_pipelines_and_other_models_take_the_same_formats():
    assert set(gas.models.QUANTIZATIONS) == set(gas.pipelines.loading.QUANTIZATIONS)
    with pytest.raises(ValueError, match="unknown quantize 'int3'"):
        precise(small(), quantize="int3")
    custom = OwnModel(lambda x, t: 0 * x, gas.VPLinear(), (2,))
    with pytest.raises(ValueError, match="no torch module as network or weights to quantize"):
        precise(custom, quantize="int8")


def test_a_recording_is_of_one_autocast():
    x, enabled = torch.zeros(2), torch.is_autocast_enabled("cuda")
    dtype, keys = torch.get_autocast_dtype("cuda"), [kernel_key(x)]
    try:
        for narrow in (torch.float16, torch.bfloat16):
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", narrow)
            keys.append(kernel_key(x))
    finally:
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)
    assert len(set(keys)) == 3 and kernel_key(x) == keys[0]


@pytest.mark.slow
def test_differences_are_taken_without_tf32_and_what_was_set_holds_again(digits, table):
    def now():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    observed, usual = set(), now()

    def network(x, t):
        observed.add(now())
        return digits.bind(None)(x, t)

    pairs = teach(digits, table, range(8))
    custom = OwnModel(network, digits.schedule, (1, 8, 8), t_end=1e-3)
    solver = GeneralizedSolver(custom.schedule, 3, custom.t_end)
    work = GaussNewtonSteps(solver, custom, unlabelled(pairs), gas.losses.l2, GaussNewton(batch=4))
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    try:
        work.step()
        assert observed == {(False, False), (True, False)}  # differences, and what only measures the step
        with pytest.raises(KeyError), without_tf32():
            raise KeyError
        assert now() == (True, False)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = usual


@pytest.mark.slow
@pytest.mark.parametrize("new", [False, True])
def test_whoever_reads_the_switches_by_torchs_old_names_still_can(new):
    """Compiling and exporting do; in a process of its own, as torch does not undo a mixture."""
    first = "torch.backends.cudnn.conv.fp32_precision = 'tf32'" if new else "pass"
    read = "torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()"
    program = [
        "import torch",
        "from gas.models.runtime import allow_tf32, without_tf32",
        first,
        "allow_tf32(True)",
        "allow_tf32(False)",
    ]
    program += [
        "with without_tf32(): pass",
        f"settings = {read}",
        "assert settings == (False, 'highest'), settings",
    ]
    if new:  # whatever can be read then, nothing of ours fails
        program = [*program[:-2], "assert torch.backends.cudnn.conv.fp32_precision in ('ieee', 'none')"]
    run_fresh("\n".join(program))


def unlabelled(pairs):
    return gas.Pairs(pairs.seeds, pairs.noise, pairs.target, None, pairs.manifest)


def test_a_network_that_a_format_would_not_change_is_refused():
    class Plain(torch.nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(UserError, match="the network has none"):
        quantize_layers(Plain(), "int4")
    normed = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2)))
    with pytest.raises(UserError, match="layer 0 computes its weight"):
        quantize_layers(normed, "int8")


def test_a_layer_that_is_called_by_keyword_rounds_its_input_too():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    quantize_layers(layer, "int8")
    x = torch.randn(4, 3)
    assert torch.equal(layer(input=x), layer(x))


def test_quantizing_under_a_wrapper_forgets_the_hash_of_the_weights_before():
    model = gas.zoo.load("digits")
    before = model.fingerprint()["sha256"]
    student = precise(precise(model, "bf16"), quantize="int4")
    assert student.fingerprint()["sha256"] != before
    assert model.fingerprint()["sha256"] != before
