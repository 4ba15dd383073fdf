"""A model of one's own goes through the whole of the library: pairs, learning, file, samples."""

import warnings

import pytest
import torch
from torch import nn

import gas
from gas.evaluation.sampler import sample_pairs, sample_seeds
from gas.models.protocol import weights_hash
from gas.models.seeds import labels_of_seeds
from gas.training.initialization import StartSearch
from gas.training.loop import _implausible
from support.doubles import Gaussian, Mixture

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")


class Network(nn.Module):
    """Predicts the noise of N(0.3, 0.5^2) data exactly, bent a little so that there is something to learn."""

    def __init__(self, bend=0.3):
        super().__init__()
        self.exact = Gaussian()
        self.bend = nn.Parameter(torch.tensor(bend))

    def forward(self, x, t):
        alpha, sigma = self.exact.schedule(t[0].double())
        x0 = self.exact.denoise(x, t[0].double()) + self.bend * torch.sin(3 * x)
        return ((x - alpha * x0) / sigma).to(x.dtype)


@pytest.mark.slow
def test_pairs_learning_file_and_samples(tmp_path):
    schedule, network = gas.VPLinear(), Network().eval().requires_grad_(False)
    model = gas.OwnModel(gas.denoise.NoiseDenoiser(network, schedule), schedule, (2, 3), weights=network)
    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=model.t_end)
    spec = gas.PairsSpec(range(96), teacher.config())
    for _ in gas.write_pairs(model, teacher.table(schedule), tmp_path / "pairs", spec):
        pass
    pairs = gas.read_pairs(tmp_path / "pairs", model=model)
    *_, learned = gas.distill(model, *pairs.split(32), 3)
    assert learned.loss < learned.best_classical_loss
    gas.save(tmp_path / "own.json", learned.solver, model=model)
    artefact = gas.load(tmp_path / "own.json")
    artefact.check(model)
    x0 = gas.sample(model.bind(None), model.noise(range(4)), artefact.table(3))
    assert x0.shape == (4, 2, 3)
    other = Network(0.4).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="another model"):
        artefact.check(
            gas.OwnModel(gas.denoise.NoiseDenoiser(other, schedule), schedule, (2, 3), weights=other)
        )


def test_classes_guidance_and_no_class():
    mixture = Mixture()

    def denoise(x, t, labels):
        conditional = mixture.bind(labels.clamp(max=4))(x, t)
        return torch.where((labels == 5)[:, None], mixture.denoise(x, t), conditional)

    model = gas.OwnModel(denoise, mixture.schedule, (2,), classes=5, null=5)
    x, t = mixture.noise(range(6)), torch.tensor(0.6, dtype=torch.float64)
    labels = labels_of_seeds(5, range(6))
    torch.testing.assert_close(model.bind(labels)(x, t), mixture.bind(labels)(x, t))
    torch.testing.assert_close(model.denoise(x, t), mixture.denoise(x, t))
    guided = torch.lerp(mixture.denoise(x, t), mixture.bind(labels)(x, t), 2.0)
    torch.testing.assert_close(model.bind(labels, 2.0)(x, t), guided)
    with pytest.raises(ValueError, match="label 5 is out of range: own has 5 classes"):
        model.bind(torch.tensor([5]))
    with pytest.raises(ValueError, match="needs labels"):
        model.bind(None, 2.0)
    without = gas.OwnModel(denoise, mixture.schedule, (2,), classes=5)
    with pytest.raises(ValueError, match="no null label"):
        without.bind(labels, 2.0)
    with pytest.raises(ValueError, match="needs classes to guide towards"):
        gas.OwnModel(mixture.denoise, mixture.schedule, (2,)).bind(None, 2.0)


class Policy(nn.Module):
    """Predicts the noise of action chunks whose data are N(tanh of the observation, 0.3^2), bent a little."""

    def forward(self, x, t, observation):
        alpha, sigma = gas.VPLinear()(t[0].double())
        mean = torch.tanh(observation[:, :8]).reshape(-1, 4, 2)
        x0 = mean + alpha * 0.09 / (alpha**2 * 0.09 + sigma**2) * (x - alpha * mean) + 0.1 * torch.sin(3 * x)
        return ((x - alpha * x0) / sigma).to(x.dtype)


OBSERVATIONS = torch.randn(40, 11, generator=torch.Generator().manual_seed(5))


def policy(observations=OBSERVATIONS, **more):
    schedule, network = gas.VPLinear(), Policy().eval()
    denoiser = gas.denoise.NoiseDenoiser(network, schedule)
    arguments = {"conditions": observations, "null": torch.zeros(11), "weights": network, **more}
    return gas.OwnModel(denoiser, schedule, (4, 2), **arguments)


@pytest.mark.slow
def test_a_policy_on_observations_goes_through_pairs_learning_file_and_samples(tmp_path):
    model = policy()
    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=model.t_end)
    for _ in gas.write_pairs(model, teacher, tmp_path / "pairs", gas.PairsSpec(range(96), guidance=1.5)):
        pass
    pairs = gas.read_pairs(tmp_path / "pairs", model=model)
    assert pairs.labels.tolist() == [seed % 40 for seed in range(96)]
    assert pairs.teacher == teacher.config()
    seeds = range(5, 9)
    x0 = gas.sample(
        model.bind_conditions(OBSERVATIONS[5:9], 1.5), model.noise(seeds), teacher.table(model.schedule)
    )
    torch.testing.assert_close(pairs.target[5:9], x0, rtol=1e-4, atol=1e-5)
    solver = gas.GeneralizedSolver(model.schedule, 3, model.t_end)
    *_, record = gas.fit(solver, model, pairs, config=gas.GaussNewton(iterations=3, batch=12))
    assert record.best_loss < 0.5 * record.start_loss
    gas.save(tmp_path / "own.json", solver, model=model, guidance=pairs.guidance)
    artefact = gas.load(tmp_path / "own.json")
    artefact.check(policy(OBSERVATIONS + 1), guidance=1.5)  # a solver serves other observations; pairs do not
    fresh = torch.randn(2, 11)
    actions = gas.sample(model.bind_conditions(fresh, 1.5), model.noise(range(2)), artefact.table(3))
    assert actions.shape == (2, 4, 2)
    for other in (OBSERVATIONS + 1, OBSERVATIONS[:39], OBSERVATIONS.double(), (OBSERVATIONS,)):
        with pytest.raises(ValueError, match=r"made with another model .*conditions"):
            gas.read_pairs(tmp_path / "pairs", model=policy(other, null=None))
        with pytest.raises(ValueError, match="conditions"):
            next(gas.fit(gas.GeneralizedSolver(model.schedule, 3, 1e-3), policy(other, null=None), pairs))
        with pytest.raises(ValueError, match="conditions"):
            gas.evaluate(policy(other, null=None), pairs, teacher, gas.losses.l2)


STRUCTURES = {
    "tensor": lambda c: c,
    "pair": lambda c: (c, c[:, 0]),
    "dict": lambda c: {"observation": c, "image": c.reshape(-1, 1, 11)},
    "nested": lambda c: {"text": (c, c + 1), "mask": c > 0},
    "integers": lambda c: (100 * c).long(),
}


def flat(condition):
    if isinstance(condition, dict):
        return torch.cat([flat(condition[key]) for key in sorted(condition)], 1)
    if isinstance(condition, tuple):
        return torch.cat([flat(part) for part in condition], 1)
    return condition.reshape(len(condition), -1).float()


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_conditions_of_any_structure_are_looked_up_row_by_row(structure):
    """Bound by labels, bound directly and guided, each sample gets its own row."""
    table, null = structure(OBSERVATIONS), structure(OBSERVATIONS[:1] * 0)

    def denoise(x, t, condition):
        return 0.1 * x + flat(condition).mean(1, keepdim=True)

    model = gas.OwnModel(denoise, gas.VPLinear(), (2,), conditions=table, null=null)
    x, t, labels = model.noise(range(3)), torch.tensor(0.5).double(), torch.tensor([7, 0, 39])
    rows = structure(OBSERVATIONS[labels])
    expected, without = denoise(x, t, rows), denoise(x, t, structure(OBSERVATIONS[:3] * 0))
    assert model.classes == 40
    torch.testing.assert_close(model.bind(labels)(x, t), expected)
    torch.testing.assert_close(model.bind_conditions(rows)(x, t), expected)
    torch.testing.assert_close(model.denoise(x, t), without)
    for guided in (model.bind(labels, 2.0), model.bind_conditions(rows, 2.0)):
        torch.testing.assert_close(guided(x, t), torch.lerp(without, expected, 2.0))
    with pytest.raises(ValueError, match="label 40 is out of range"):
        model.bind(torch.tensor([40]))
    assert model.conditions_fingerprint()["rows"] == 40
    assert (
        model.conditions_fingerprint()
        != gas.OwnModel(denoise, gas.VPLinear(), (2,), conditions=rows).conditions_fingerprint()
    )


def test_conditions_and_labels_that_a_model_does_not_take_are_refused():
    plain = gas.OwnModel(lambda x, t: x, gas.VPLinear(), (2,))
    of_classes = gas.OwnModel(lambda x, t, label: x, gas.VPLinear(), (2,), classes=10)
    for model in (plain, of_classes):
        with pytest.raises(gas.UserError, match=r"has no conditions: gas\.OwnModel\(\.\.\., conditions="):
            model.bind_conditions(torch.zeros(2, 5))
    with pytest.raises(gas.UserError, match=r"^labels were given, and .* has no classes or conditions"):
        plain.bind(torch.tensor([3]))
    model = policy()
    for other in (torch.zeros(2, 12), (torch.zeros(2, 11),), {"a": torch.zeros(2, 11)}):
        with pytest.raises(gas.UserError, match=r"^conditions must be rows of \(11,\), got rows of"):
            model.bind_conditions(other)


def test_a_dictionary_is_the_same_in_any_order():
    a, b = OBSERVATIONS, OBSERVATIONS + 1
    described = [
        gas.OwnModel(lambda x, t, c: x, gas.VPLinear(), (2,), conditions=table).conditions_fingerprint()
        for table in ({"a": a, "b": b}, {"b": b, "a": a}, {"a": b, "b": a})
    ]
    assert described[0] == described[1] != described[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conditions": torch.empty(0, 3)}, "rows each and at least one"),
        ({"conditions": torch.tensor(1.0)}, "rows each"),
        ({"conditions": (torch.zeros(3, 1), torch.zeros(4, 1))}, r"got \[3, 4\] rows"),
        ({"conditions": ()}, "got no rows"),
        ({"conditions": ["a cat"]}, "tensors, or tuples or dicts of them, got str"),
        ({"conditions": lambda seeds: seeds}, "got function"),
        ({"conditions": torch.zeros(3, 2), "classes": 5}, "leave out classes=5"),
    ],
)
def test_what_are_no_conditions_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        gas.OwnModel(lambda x, t, c: x, gas.VPLinear(), (2,), **wrong)


@pytest.mark.parametrize("null", [10, 99, 0, -1, -5])
def test_any_integer_may_mean_no_class_and_reaches_the_network(null):
    labels = []

    def denoise(x, t, label):
        labels.append(label.tolist())
        return 0 * x

    model = gas.OwnModel(denoise, gas.VPLinear(), (2,), classes=10, null=null)
    x, t = model.noise(range(2)), torch.tensor(0.5)
    model.denoise(x, t)
    model.bind(torch.tensor([3, 4]), guidance=2.0)(x, t)
    assert labels[0] == [null] * 2
    assert sorted(labels[1]) == sorted([3, 4, null, null])


@pytest.mark.parametrize("null", [torch.zeros(3), 5, {"a": torch.zeros(2)}])
def test_a_null_that_is_no_row_is_refused(null):
    model = gas.OwnModel(lambda x, t, c: x, gas.VPLinear(), (2,), conditions=torch.zeros(3, 2), null=null)
    with pytest.raises(ValueError, match="null must"):
        model.bind(torch.tensor([0]))


def gaussian(network=None, schedule=None, **more):
    schedule = schedule or gas.VPLinear()
    network = network or Network().eval().requires_grad_(False)
    return gas.OwnModel(gas.denoise.NoiseDenoiser(network, schedule), schedule, (2, 3), **more)


def test_a_solver_by_name_is_taken_wherever_a_table_is(tmp_path):
    model, loss = gaussian(), gas.losses.l2
    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=model.t_end)
    table, student = teacher.table(model.schedule), gas.GeneralizedSolver(model.schedule, 3, model.t_end)
    by_table, by_name = gas.pairs.teach(model, table, range(8)), gas.pairs.teach(model, teacher, range(8))
    assert torch.equal(by_table.target, by_name.target)
    assert (by_table.teacher, by_name.teacher) == ({}, teacher.config())
    assert gas.pairs.teach(model, teacher, range(2), teacher={"a": 1}).teacher == {"a": 1}
    for solver in (teacher, student):
        as_table = gas.table.table_on(solver, model.schedule)
        assert torch.equal(
            gas.evaluate(model, by_name, solver, loss), gas.evaluate(model, by_name, as_table, loss)
        )
        assert torch.equal(sample_pairs(model, by_name, solver), sample_pairs(model, by_name, as_table))
        assert torch.equal(sample_seeds(model, solver, range(3)), sample_seeds(model, as_table, range(3)))
    for chosen, folder in {table: "a", teacher: "b"}.items():
        list(gas.write_pairs(model, chosen, tmp_path / folder, gas.PairsSpec(range(8), teacher.config())))
    list(gas.write_pairs(model, teacher, tmp_path / "c", gas.PairsSpec(range(8))))
    first, *others = (sorted((tmp_path / folder).iterdir()) for folder in "abc")
    assert all([f.read_bytes() for f in first] == [f.read_bytes() for f in other] for other in others)
    for wrong in (lambda x: x, "unipc-3-bh2", 4):
        with pytest.raises(
            ValueError, match=r"a solver is a gas\.Table, a gas\.Classical or a learned solver, got"
        ):
            gas.pairs.teach(model, wrong, range(2))


@pytest.mark.slow
def test_what_distill_yields_is_saved_with_all_that_is_known_of_it(tmp_path):
    model = gaussian()
    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=12, t_end=model.t_end)
    pairs = gas.pairs.teach(model, teacher, range(48))
    config = gas.GaussNewton(iterations=2, batch=8)
    short = {"config": config, "search": StartSearch("uniform", screening_pairs=2, validation_pairs=4)}
    learned = [list(gas.distill(model, *pairs.split(16), n, **short))[-1] for n in (2, 3)]
    for name, solvers in {"a": learned, "b": {m.nfe: m for m in learned}, "c": learned[0]}.items():
        document = gas.save(tmp_path / f"{name}.json", solvers, model=model).document
        assert (document.teacher, document.loss, document.guidance) == (teacher.config(), "l2", 1.0)
        assert document.training["pairs"] == 32 and document.training["iterations"] == 2
        assert document.solvers[0].start == learned[0].start
        assert document.solvers[0].measured["validation_loss"] == learned[0].loss
        loaded = gas.load(tmp_path / f"{name}.json")
        assert torch.equal(loaded.table(2).outputs, learned[0].table().outputs)
    saved = gas.save(
        None, learned, model=model, loss="mine", teacher={"a": 1}, training={}, guidance=2.0
    ).document
    assert (saved.loss, saved.teacher, saved.training, saved.guidance) == ("mine", {"a": 1}, {}, 2.0)
    assert torch.equal(
        gas.evaluate(model, pairs, learned[0], gas.losses.l2),
        gas.evaluate(model, pairs, learned[0].table(), gas.losses.l2),
    )
    other = gas.pairs.teach(model, gas.Classical("ddim", "log_snr", nfe=12, t_end=model.t_end), range(48))
    *_, differently = gas.distill(model, *other.split(16), 3, **short)
    with pytest.raises(ValueError, match=r"share how they were made, but their teacher differ"):
        gas.save(None, [learned[0], differently], model=model)


class Noisy(Network):
    """A network whose error is small everywhere, and magnified by 1/alpha where hardly any signal is left."""

    def forward(self, x, t):
        return super().forward(x, t) + 0.02 * torch.sin(7 * x)


LITTLE_SIGNAL = gas.VPLinear(0.1, 40.0)  # alpha is 4e-5 at t = 1, as of a cosine schedule


def test_samples_that_leave_the_range_of_the_data_are_noticed_and_a_threshold_mends_them(tmp_path):
    network = Noisy().eval().requires_grad_(False)
    network.exact = Gaussian(LITTLE_SIGNAL)
    model = gaussian(network, LITTLE_SIGNAL)
    careless = gas.Classical("dpmpp-3m", "log_snr", nfe=4, t_end=1e-3)
    with pytest.warns(
        UserWarning, match=r"root mean squares of .*noise has 1.*check_model.*StaticThreshold"
    ) as caught:
        gas.pairs.teach(model, careless, range(32))
    assert len(caught) == 1 and len(str(caught[0].message)) < 300
    with pytest.warns(UserWarning, match="StaticThreshold") as caught:
        list(gas.write_pairs(model, careless, tmp_path / "p", gas.PairsSpec(range(32), shard=8), batch=8))
    assert len(caught) == 1
    pairs = gas.pairs.teach(model, gas.Classical("unipc-3-bh2", "log_snr", 40, 1e-3), range(32))
    bounded = gas.OwnModel(gas.denoise.StaticThreshold(model.denoiser, 2.0), LITTLE_SIGNAL, (2, 3))
    gas.pairs.teach(bounded, careless, range(32))
    assert pairs.target.abs().max() < 10


@pytest.mark.slow
def test_a_solver_that_is_worse_than_a_constant_is_noticed():
    network = Noisy().eval().requires_grad_(False)
    network.exact = Gaussian(LITTLE_SIGNAL)
    model = gaussian(network, LITTLE_SIGNAL)
    pairs = gas.pairs.teach(model, gas.Classical("unipc-3-bh2", "log_snr", 40, 1e-3), range(32))
    solver = gas.GeneralizedSolver.from_table(
        LITTLE_SIGNAL, gas.Classical("dpmpp-3m", "log_snr", 4, 1e-3).table(LITTLE_SIGNAL), 1e-3
    )
    with pytest.warns(
        UserWarning, match=r"after training the loss .* is .*; the mean of the teacher's samples"
    ):
        list(gas.fit(solver, model, pairs, config=gas.Adam(iterations=1, batch=2, learning_rate=1e-9)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        easy = gaussian()
        taught = gas.pairs.teach(easy, gas.Classical("unipc-3-bh2", "log_snr", 20, 1e-3), range(16))
        for nfe in (2, 3):
            start = gas.GeneralizedSolver(easy.schedule, nfe, 1e-3)
            list(gas.fit(start, easy, taught, config=gas.GaussNewton(iterations=2, batch=4)))


def test_the_loss_of_a_constant_is_taken_where_the_model_is_and_without_gradient():
    calls = []

    def loss(x, target):
        calls.append((x.device.type, target.device.type, torch.is_grad_enabled()))
        return torch.ones(len(x))

    pairs = gas.pairs.teach(gaussian(), gas.Classical("unipc-3-bh2", "log_snr", 10, 1e-3), range(4))
    assert "the mean of the teacher's samples" in _implausible(1e3, pairs, loss, torch.device("meta"))
    assert calls == [("meta", "meta", False)]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])
def test_data_of_a_usual_scale_draw_no_warning(scale):
    data = Gaussian(mean=0.1 * scale, std=scale)
    model = gas.OwnModel(data.denoise, data.schedule, (2,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gas.pairs.teach(model, gas.Classical("unipc-3-bh2", "log_snr", 20, 1e-3), range(256))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_shape": ()}, "sample_shape must"),
        ({"t_end": 1.0}, "t_end must"),
        ({"classes": -1}, "classes must"),
        ({"weights": nn.Linear(1, 1)}, "must be frozen"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    arguments = {"sample_shape": (2,), **wrong}
    with pytest.raises(ValueError, match=message):
        gas.OwnModel(lambda x, t: x, gas.VPLinear(), **arguments)


def test_the_hash_is_of_names_shapes_and_values():
    hashes = {weights_hash(Network(bend)) for bend in (0.3, 0.4)} | {
        weights_hash(nn.Linear(1, 1, bias=False))
    }
    assert len(hashes) == 3
    assert weights_hash(Network()) == weights_hash(Network())
