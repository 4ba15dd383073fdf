"""Adversarial training: losses are their formulas, no weight is no critic, and it brings distributions closer."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gas import zoo
from gas.classical.registry import Classical
from gas.errors import Diverged
from gas.evaluation.sampler import sample_pairs
from gas.learned.generalized import GeneralizedSolver
from gas.losses import loss_by_name
from gas.metrics.frechet import FrechetCriterion
from gas.pairs.teacher import teach
from gas.sampling import sample
from gas.training.adam import Adam, AdamSteps
from gas.training.adversarial.losses import Critic, classic, gradient_penalty, objective_by_name, relativistic
from gas.training.adversarial.r3gan import DIGITS, MNIST, R3GANDiscriminator
from gas.training.adversarial.setup import Adversary, FixedNoiseCriterion, adversary_for, fit_adversarial
from gas.training.adversarial.updates import DiscriminatorUpdates
from gas.training.distillation import distill
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import StartSearch
from gas.training.loop import fit
from gas.training.validation import evaluate
from support.doubles import MIXTURE as MODEL, Mixture, taught

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")


@pytest.fixture(scope="module")
def pairs():
    return taught(range(400))


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1200))


@pytest.fixture(scope="module")
def labelled():
    return taught(range(60), labelled=True)


def new(nfe=2):
    return GeneralizedSolver(MODEL.schedule, nfe, MODEL.t_end)


class Logit(nn.Sequential):
    """A small critic of the plane."""

    def __init__(self, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(
                nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0)
            )


def parameters(solver):
    return torch.cat([p.detach().flatten() for p in solver.parameters()])


def test_objectives_are_their_formulas():
    fake, real = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 5.0])
    for got, wanted in zip(relativistic(fake, real), (-(fake - real), -(real - fake)), strict=True):
        torch.testing.assert_close(got, torch.log1p(wanted.exp()))
    torch.testing.assert_close(classic(fake, real)[0], -torch.sigmoid(fake).log())
    torch.testing.assert_close(
        classic(fake, real)[1], -torch.sigmoid(real).log() - (1 - torch.sigmoid(fake)).log()
    )
    # A game: what the relativistic generator loses when sides are changed is what the critic loses.
    torch.testing.assert_close(relativistic(fake, real)[0], relativistic(real, fake)[1])
    with pytest.raises(ValueError, match="did you mean 'relativistic'"):
        objective_by_name("relativist")


def test_the_penalty_is_the_squared_gradient_of_each_sample():
    weight = torch.randn(3, 4)
    x = torch.randn(5, 3, 4, requires_grad=True)
    logits = (x * weight).sum(dim=(1, 2)).square() / 2
    expected = (x * weight).sum(dim=(1, 2)).square() * weight.square().sum()
    torch.testing.assert_close(gradient_penalty(logits, x), expected)


@pytest.mark.parametrize("objective", ["relativistic", "classic"])
def test_one_step_is_the_loss_by_hand(objective):
    torch.manual_seed(0)
    fake, real = torch.randn(8, 2), torch.randn(8, 2) + 1
    critic = Critic("plane", Logit(), weight=0.3, objective=objective, penalty=0.2, learning_rate=1e-3)
    steps, twin = DiscriminatorUpdates([critic]), Logit()
    steps.update(fake, real, (None, None))

    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, betas=(0.0, 0.99))
    f, r = fake.clone().requires_grad_(), real.clone().requires_grad_()
    df, dr = twin(f), twin(r)
    loss = (F.softplus(df - dr) if objective == "relativistic" else F.softplus(-dr) + F.softplus(df)).mean()
    for answer, x in ((df, f), (dr, r)):
        (gradient,) = torch.autograd.grad(answer.sum(), x, create_graph=True)
        loss = loss + 0.1 * gradient.square().sum(1).mean()
    loss.backward()
    optimizer.step()
    for ours, wanted in zip(critic.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted)

    fake.requires_grad_()
    total = steps.generator_loss(0, fake, real, (None, None))
    logits = (twin(fake), twin(real))
    torch.testing.assert_close(total, 0.3 * objective_by_name(objective)(*logits)[0].mean())
    total.backward()
    assert float(fake.grad.abs().sum()) > 0
    assert all(p.grad is None or not p.requires_grad for p in critic.network.parameters())
    logs = steps.report()
    assert set(logs) == {
        f"plane.{name}" for name in ("r1", "r2", "discriminator", "real_above_fake", "generator")
    }
    assert steps.report() == {}


def trained(pairs, validation, critics, *, iterations=6, **options):
    solver = new()
    config = Adam(iterations=iterations, validate_every=3, batch=16)
    records = list(
        fit(solver, MODEL, pairs, validation=validation, config=config, discriminators=critics, **options)
    )
    return parameters(solver), records


def test_without_weight_or_say_it_is_training_without_critics_bit_for_bit(pairs, validation):
    plain, _ = trained(pairs, validation, [])
    for critic in (
        Critic("none", Logit(), weight=0.0),
        Critic("late", Logit(), weight=1.0, warmup=6, learning_rate=1e-2),
    ):
        before = parameters(critic.network)
        numbers, _ = trained(pairs, validation, [critic])
        assert torch.equal(numbers, plain)
        assert torch.equal(parameters(critic.network), before) == (critic.name == "none")
    influenced, _ = trained(pairs, validation, [Critic("heard", Logit(), weight=10.0)])
    assert not torch.equal(influenced, plain)


def test_fakes_and_reals_are_of_different_noise(pairs):
    steps = AdamSteps(new(), MODEL, pairs, None, Adam(batch=100))
    for steps.iteration in range(12):
        batch = pairs.subset(steps._indices())
        other = steps._others(steps._indices(), 0)
        assert len(other) == 100
        assert not bool(torch.isin(batch.seeds, other.seeds).any())


def test_the_authors_pairing_lets_the_critic_learn_on_noise_of_no_pair(pairs):
    batches, model = [], Mixture()

    class Spy(Logit):
        def forward(self, x):
            batches.append(x.detach().clone())
            return super().forward(x)

    steps = AdamSteps(
        new(),
        model,
        pairs,
        lambda a, b: (a - b).abs().mean(1),
        Adam(batch=10),
        [Critic("spy", Spy())],
        "paired",
    )
    batch = pairs.subset(steps._indices())
    steps.step()
    fake, real, of_real, of_fake = batches
    assert torch.equal(real, batch.target)
    assert torch.equal(of_real, batch.target)
    samples = sample_pairs(MODEL, batch, new()().detach())
    torch.testing.assert_close(of_fake, samples)  # the solver hears of its own batch
    assert not torch.isin(fake, samples).any()  # the critic has learned on other students
    with pytest.raises(ValueError, match="pairing must be"):
        AdamSteps(new(), model, pairs, None, Adam(), [], "both")


def test_several_critics_each_with_a_view_and_labels(labelled, validation):
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.requests = []

        def forward(self, x, labels):
            self.requests.append(labels)
            return (x * self.table(labels)).sum(1)

    conditional = Conditional()
    critics = [
        Critic("plane", Logit(), weight=0.5),
        Critic(
            "lifted",
            conditional,
            weight=2.0,
            conditional=True,
            view=lambda x: torch.cat([x, x[:, :1] ** 2], dim=1),
        ),
    ]
    _, records = trained(labelled, validation, critics)
    assert len(conditional.requests) == 6 * 4
    assert all(labels.shape == (16,) for labels in conditional.requests)
    assert {"plane.generator", "lifted.generator", "lifted.r1"} <= set(records[-1].logs)
    with pytest.raises(ValueError, match="different names"):
        DiscriminatorUpdates([critics[0], critics[0]])


def test_an_interrupted_run_ends_with_the_same_bits(pairs, validation, tmp_path):
    def go(checkpoint, reports=None):
        solver, critic = new(), Critic("plane", Logit(), weight=1.0, learning_rate=1e-3)
        config = Adam(iterations=9, validate_every=3, batch=16)
        running = fit(
            solver,
            MODEL,
            pairs,
            validation=validation,
            config=config,
            checkpoint=checkpoint,
            discriminators=[critic],
        )
        records = list(itertools.islice(running, reports))
        running.close()
        return parameters(solver), parameters(critic.network), records[-1]

    expected = go(tmp_path / "whole.pt")
    go(tmp_path / "broken.pt", reports=3)
    resumed = go(tmp_path / "broken.pt")
    assert torch.equal(resumed[0], expected[0])
    assert torch.equal(resumed[1], expected[1])
    assert resumed[2] == expected[2]


def test_a_broken_critic_is_reported_and_the_solver_keeps_its_best(pairs, validation):
    class Broken(Logit):
        def forward(self, x):
            return super().forward(x) * float("nan")

    solver = new()
    before = parameters(solver)
    config = Adam(iterations=6, validate_every=3)
    with pytest.raises(Diverged):
        list(
            fit(
                solver,
                MODEL,
                pairs,
                validation=validation,
                config=config,
                discriminators=[Critic("broken", Broken(), penalty=0.0)],
            )
        )
    assert torch.equal(parameters(solver), before)


def test_a_critic_that_wins_outright_is_reported(pairs, validation):
    class Sure(nn.Module):
        """Knows the teacher's samples by heart."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.isin(x, pairs.target).all(1).to(x) * self.scale + 0 * x.sum(1)

    with pytest.raises(Diverged, match="discriminator 'sure' wins outright"):
        trained(pairs, validation, [Critic("sure", Sure())], iterations=9)


def test_settings_and_critics_that_do_not_fit_are_refused(pairs, validation):
    for setting, value in (
        ("weight", -1.0),
        ("penalty", float("nan")),
        ("warmup", -1),
        ("learning_rate", 0.0),
    ):
        with pytest.raises(ValueError, match=f"{setting} of discriminator 'plane' must"):
            Critic("plane", Logit(), **{setting: value})
    with pytest.raises(ValueError, match=r"two batches of pairs \(500\), got 400"):
        AdamSteps(new(), MODEL, pairs, None, Adam(batch=250), [Critic("plane", Logit())])
    with pytest.raises(ValueError, match="unknown objective"):
        Critic("plane", Logit(), objective="wgan")
    with pytest.raises(ValueError, match=r"one logit a sample, \(16,\), got \(16, 2\)"):
        trained(pairs, validation, [Critic("plane", nn.Linear(2, 2))])
    with pytest.raises(ValueError, match=r"discriminators need config=gas\.Adam"):
        next(
            fit(
                new(),
                MODEL,
                pairs,
                validation=validation,
                config=GaussNewton(),
                discriminators=[Critic("plane", Logit())],
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["relativistic", "classic"])
def test_the_solver_goes_where_its_critics_point(pairs, validation, objective):
    class Wide(nn.Module):
        """Likes samples far from the middle."""

        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.slope * x.square().sum(1)

    def place(critics):
        numbers, _ = trained(
            pairs,
            validation,
            critics,
            iterations=30,
            criterion=lambda table: -float(sample_pairs(MODEL, validation, table).mean()),
        )
        solver = new()
        nn.utils.vector_to_parameters(numbers, solver.parameters())
        return float(sample_pairs(MODEL, validation, solver().detach()).square().sum(1).mean())

    critic = Critic("wide", Wide(), weight=3.0, objective=objective, learning_rate=1e-9)
    assert place([critic]) > place([]) + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("network", [Logit, None], ids=["critic", "broken critic"])
def test_distilling_against_a_critic_goes_on_from_gs_and_keeps_what_is_nearest(pairs, validation, network):
    class Broken(Logit):
        def forward(self, x):
            return super().forward(x) * float("nan")

    def nearness(table):
        batches.append(float((sample_pairs(MODEL, validation, table) - validation.target).square().mean()))
        return -batches[-1]  # farther is better: what the paired loss would never choose

    batches = []
    adversary = Adversary(
        lambda: [Critic("plane", (network or Broken)(), weight=5.0, penalty=0.0)],
        nearness,
        Adam(iterations=6, batch=16, validate_every=3),
    )
    search = StartSearch(validation_pairs=16, candidates=1, steps=2)
    options = {"search": search, "config": GaussNewton(iterations=3)}
    gs = list(distill(MODEL, pairs, validation, 3, **options))[-1]
    gas = list(distill(MODEL, pairs, validation, 3, **options, adversary=adversary))[-1]
    if network is None:
        assert "loss nan" in gas.stopped
        assert torch.equal(gas.table().unrolled(), gs.table().unrolled())
    else:
        assert gas.stopped == ""
        assert gas.loss == pytest.approx(max(batches), rel=1e-4)
        assert gas.loss >= gs.loss
        validated = 2 * len(validation)  # the paired loss before and after; the criterion says of no samples
        assert gas.evaluations == gs.evaluations + (6 * 16 * 3 + validated) * 3 + 16


def test_critics_of_their_own_size_are_made_afresh_for_every_solver():
    model = zoo.load("digits")
    pairs = teach(model, Classical("ddim", "log_snr", 2, 1e-3).table(model.schedule), range(20))
    adversary = adversary_for(model, pairs, weight=0.1, seed=3)
    (first,), (second,) = adversary.discriminators(), adversary.discriminators()
    assert first.network is not second.network
    assert torch.equal(parameters(first.network), parameters(second.network))
    assert first.logits(pairs.target, None).shape == (20,)
    assert adversary.criterion.measure(pairs.target) == pytest.approx(0.0, abs=1e-9)
    assert (adversary.criterion.labelled, adversary.criterion.guidance) == (True, 1.0)
    with pytest.raises(ValueError, match="for samples of shape 2, only for square ones of side 8, 16"):
        adversary_for(MODEL, pairs)
    with pytest.raises(ValueError, match="a discriminator needs pairs to learn from, got none: make some"):
        adversary_for(model, pairs.subset(slice(0, 0)))
    with pytest.raises(ValueError, match="warmup must be below the 250 iterations, got 400"):
        adversary_for(model, pairs, warmup=400)
    assert (first.warmup, first.penalty) == (100, 2.0)
    assert not adversary_for(model, pairs, weight=0.0).has_weight()


def test_the_criterion_is_a_distance_of_distributions(validation):
    x = validation.target
    criterion = FrechetCriterion(lambda x: x, x)
    # Another sample for every noise, the same set.
    assert criterion(x.flip(0)) == pytest.approx(0.0, abs=1e-9)
    assert criterion(x * 0.5) > 0.01
    assert criterion(torch.full_like(x, float("nan"))) == float("inf")


def test_a_criterion_watches_the_same_fresh_noise_of_every_solver(labelled):
    table = new()().detach()
    seeds = range(2**41, 2**41 + 70)  # more than a batch
    labels = torch.arange(2**41, 2**41 + 70) % MODEL.classes
    with torch.no_grad():
        expected = sample(MODEL.bind(labels), MODEL.noise(seeds), table)
    criterion = FixedNoiseCriterion(MODEL, lambda x: x, samples=70)
    torch.testing.assert_close(criterion(table), expected)
    torch.testing.assert_close(criterion(table.folded()), expected)
    unlabelled = FixedNoiseCriterion(MODEL, lambda x: x, samples=70, labelled=False)
    torch.testing.assert_close(unlabelled(table), sample(MODEL.bind(None), MODEL.noise(seeds), table))


def test_weights_in_units_of_the_paired_loss_do_not_change_with_its_scale(pairs, validation):
    critic = [Critic("plane", Logit(), weight=40.0), Critic("other", Logit(1), weight=1.0)]
    relative = Adversary(lambda: critic, lambda table: 0.0, unit="paired")
    assert [c.weight for c in relative.weighted(0.01)] == pytest.approx([0.4, 0.01])
    absolute = Adversary(lambda: critic, lambda table: 0.0)
    assert [c.weight for c in absolute.weighted(0.01)] == [40.0, 1.0]
    with pytest.raises(ValueError, match="unit must be 'absolute' or 'paired', got 'pairs'"):
        Adversary(lambda: critic, lambda table: 0.0, unit="pairs")

    # The critics' weight in the solver's loss is the given one times the loss that GS ends with.
    def after(unit, weight):
        solver, config = new(), Adam(iterations=2, batch=16, validate_every=1)
        adversary = Adversary(
            lambda: [Critic("plane", Logit(), weight=weight)], lambda table: 0.0, config, unit=unit
        )
        last = [record.train_loss for record in fit_adversarial(adversary, solver, MODEL, pairs, validation)][
            -1
        ]
        return last

    start = float(evaluate(MODEL, validation, new()().detach(), loss_by_name("l2")).mean())
    assert after("paired", 40.0) == after("absolute", 40.0 * start) != after("absolute", 40.0)


def test_a_critic_may_take_several_steps_for_one_of_the_solver(pairs):
    class Recorder(DiscriminatorUpdates):
        def update(self, fake, real, labels, turn=0, share=1.0):
            updates.append((fake, real, turn))
            super().update(fake, real, labels, turn, share)

    updates, critics = [], [Critic("slow", Logit()), Critic("fast", Logit(1), steps=3, learning_rate=1e-3)]
    for pairing in ("independent", "paired"):
        updates.clear()
        config = Adam(iterations=2, batch=16)
        steps = AdamSteps(new(), MODEL, pairs, F.mse_loss, config, critics, pairing)
        steps.discriminators = Recorder(critics)
        steps.step()
        assert [turn for *_, turn in updates] == [0, 1, 2]
        changing = 0 if pairing == "paired" else 1  # fresh fakes, or other reals
        assert not torch.equal(updates[0][changing], updates[1][changing])
        taken = [len(steps.discriminators.logs[f"{name}.discriminator"]) for name in ("slow", "fast")]
        assert taken == [1, 3]
    with pytest.raises(ValueError, match="steps of discriminator 'none' must be from 1 to"):
        Critic("none", Logit(), steps=0)


def test_a_pretrained_critic_is_copied_and_must_fit_the_samples():
    model = zoo.load("digits")
    pairs = teach(model, Classical("ddim", "log_snr", 2, 1e-3).table(model.schedule), range(20))
    network = R3GANDiscriminator(**DIGITS)
    adversary = adversary_for(model, pairs, network=network, steps=2)
    (critic,) = adversary.discriminators()
    assert (critic.steps, critic.penalty) == (2, 0.2)
    assert critic.network is not network
    assert torch.equal(parameters(critic.network), parameters(network))
    with pytest.raises(ValueError, match=r"takes x of shape \(B, 1, 32, 32\), got \(1, 1, 8, 8\)"):
        adversary_for(model, pairs, network=R3GANDiscriminator(**MNIST))
