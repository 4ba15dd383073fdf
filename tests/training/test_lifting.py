"""Lifting: zero steps are the table, recorded runs are those of sampling, and it is never worse where it is chosen."""

from dataclasses import replace

import pytest
import torch

from gas import zoo
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.evaluation.sampler import sample_pairs
from gas.losses import FeatureLoss, l2
from gas.pairs.teacher import teach
from gas.residual import Residual
from gas.training.adam import Adam
from gas.training.adversarial.losses import Critic
from gas.training.adversarial.setup import Adversary, FixedNoiseCriterion
from gas.training.distillation import Distilled
from gas.training.lifting import (
    LiftedSolver,
    Lifting,
    fit_lifted,
    lift,
    lifted_samples,
    record_runs,
    residual_for,
    sized,
)
from gas.training.validation import evaluate
from support.doubles import MIXTURE as MODEL, Counting, taught

CONFIG = Lifting(iterations=40, batch=16, validate_every=20, width=8)


@pytest.fixture(scope="module")
def pairs():
    return taught(range(96))


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1064))


def table_of(model, nfe=2):
    return Classical("ddim", "log_snr", nfe, model.t_end).table(model.schedule)


TABLE = table_of(MODEL)


def lifted_by(*arguments, **options):
    """The records, and the outcome."""
    training, records = fit_lifted(*arguments, **options), []
    while True:
        try:
            records.append(next(training))
        except StopIteration as stop:
            return records, stop.value


def numbers(table):
    return torch.cat([p.flatten() for p in table.residuals[table.nfe - 1].parameters()])


def shaken(residual):
    """A residual whose last layer is not zero."""
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return residual


def critic(weight=1.0):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1), torch.nn.Flatten(0)
    )
    return Critic("plane", network, weight=weight, learning_rate=1e-2)


def spread(samples):
    """A measure of samples that no network is needed for."""
    return float((samples.square().mean() - 1).abs())


def adversary(weight=1.0):
    config = Adam(iterations=10, batch=16, validate_every=5, learning_rate=1e-2)
    return Adversary(lambda: [critic(weight)], FixedNoiseCriterion(MODEL, spread, samples=64), config=config)


def test_before_any_step_it_is_the_table(pairs):
    solver = LiftedSolver(TABLE, residual_for(record_runs(MODEL, TABLE, pairs), CONFIG))
    assert torch.equal(sample_pairs(MODEL, pairs, solver()), sample_pairs(MODEL, pairs, TABLE))


@pytest.mark.parametrize("nfe", [1, 3])
def test_recorded_samples_and_losses_are_those_of_sampling(pairs, nfe):
    table = table_of(MODEL, nfe)
    runs = record_runs(MODEL, table, pairs)
    solver = LiftedSolver(table, shaken(residual_for(runs, CONFIG)))
    with torch.no_grad():
        samples = lifted_samples(solver.residual, runs)
    torch.testing.assert_close(samples, sample_pairs(MODEL, pairs, solver().detach()), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        l2(samples, pairs.target).double(),
        evaluate(MODEL, pairs, solver().detach(), l2),
        rtol=1e-5,
        atol=1e-9,
    )
    part = runs.view(slice(5, 9))
    assert torch.equal(lifted_samples(solver.residual, part), lifted_samples(solver.residual, runs)[5:9])


def test_the_network_runs_the_table_once(pairs, validation):
    Counting.rows = 0
    model = Counting(MODEL)
    _, plain = lifted_by(model, pairs, validation, TABLE, config=CONFIG)
    assert plain.evaluations == Counting.rows == 2 * (96 + 64)
    Counting.rows = 0
    against = replace(adversary(), criterion=FixedNoiseCriterion(model, spread, samples=64))
    _, gas = lifted_by(model, pairs, validation, TABLE, config=CONFIG, adversary=against)
    # Adversarial training measures its initial paired loss, and records the criterion's noise.
    assert gas.evaluations == Counting.rows == 2 * (96 + 64 + 64 + 64)


@pytest.mark.parametrize("loss", ["l2", "pseudo_huber", FeatureLoss(lambda x: x.sin())])
def test_it_learns_with_every_kind_of_loss(pairs, validation, loss):
    records, lifted = lifted_by(
        MODEL, pairs, validation, TABLE, loss=loss, config=replace(CONFIG, iterations=200)
    )
    assert float(lifted.losses.mean()) < 0.9 * records[0].validation_loss
    distance = loss if callable(loss) else None
    if distance is not None:
        measured = evaluate(MODEL, validation, lifted.table, distance)
        torch.testing.assert_close(lifted.losses, measured, rtol=1e-4, atol=1e-8)


def test_the_table_stays_where_nothing_is_surely_better(pairs, validation):
    """Targets that the noise does not decide: what is learned of them does not hold on others."""
    other = (
        replace(pairs, target=pairs.target.roll(1, 0)),
        replace(validation, target=validation.target.roll(1, 0)),
    )
    good = sample_pairs(MODEL, validation, TABLE)
    _, lifted = lifted_by(MODEL, other[0], replace(validation, target=good), TABLE, config=CONFIG)
    assert lifted.table is TABLE and float(lifted.losses.max()) == 0


def test_a_lifted_result_stays_itself_where_nothing_is_surely_better(pairs, validation):
    """Whose samples are the targets: its residuals, which every table() copies, do not make it another."""
    residual = shaken(Residual("token", channels=2, states=1, outputs=1, width=4)).frozen()
    table = replace(TABLE, residuals={0: residual})
    sets = [replace(part, target=sample_pairs(MODEL, part, table)) for part in (pairs, validation)]
    best = Classical("ddim", "log_snr", 2, MODEL.t_end)
    start = Distilled(2, table, "uniform", best, best_classical_loss=1.0, loss=0.5, evaluations=7)
    *_, kept = lift(MODEL, *sets, start, config=CONFIG)
    assert kept.solver is table and kept.loss == 0.5
    assert kept.evaluations == 7 + 2 * (96 + 64)


def test_it_repeats_and_resumes_with_the_same_bits(pairs, validation, tmp_path):
    options = {"config": CONFIG, "adversary": adversary()}
    records, whole = lifted_by(MODEL, pairs, validation, TABLE, **options)
    for stop in (2, len(records) - 1):
        state = tmp_path / str(stop)
        state.mkdir()
        training = fit_lifted(MODEL, pairs, validation, TABLE, state=state, **options)
        for _ in range(stop):
            next(training)
        training.close()
        _, resumed = lifted_by(MODEL, pairs, validation, TABLE, state=state, **options)
        assert torch.equal(numbers(resumed.table), numbers(whole.table))
        assert resumed.criterion == whole.criterion


def test_with_an_adversary_the_criterion_is_never_worse(pairs, validation):
    _, lifted = lifted_by(MODEL, pairs, validation, TABLE, config=CONFIG, adversary=adversary())
    criterion = FixedNoiseCriterion(MODEL, spread, samples=64)
    if lifted.criterion is not None:
        before, after = lifted.criterion
        assert after < before == pytest.approx(criterion(TABLE), rel=1e-5)
        assert criterion(lifted.table) == pytest.approx(after, rel=1e-4)
    else:
        assert criterion(lifted.table) >= 0


def test_the_control_has_the_adversary_s_steps_and_no_discriminator(pairs, validation):
    records, lifted = lifted_by(MODEL, pairs, validation, TABLE, config=CONFIG, adversary=adversary(0.0))
    assert [record.iteration for record in records] == [0, 20, 40, 0, 5, 10]
    assert not records[-1].logs and not lifted.stopped


def test_images_are_lifted_by_convolutions_of_a_size_within_the_bounds():
    model = zoo.load("digits")
    teacher = Classical("unipc-3-bh2", "log_snr", 4, model.t_end).table(model.schedule)
    pairs, table = teach(model, teacher, range(32)), table_of(model)
    runs = record_runs(model, table, pairs)
    solver = LiftedSolver(table, shaken(residual_for(runs, replace(CONFIG, patch=2))))
    torch.testing.assert_close(
        lifted_samples(solver.residual, runs).detach(),
        sample_pairs(model, pairs, solver().detach()),
        atol=1e-5,
        rtol=0,
    )
    config = sized(CONFIG, model, runs, share=1.0)
    assert residual_for(runs, config).cost((1, 8, 8)).numbers <= 50_000
    assert (config.iterations, config.batch) == (CONFIG.iterations, CONFIG.batch)
    with pytest.raises(UserError, match="raise share"):
        sized(CONFIG, model, runs, share=1e-9)


def test_settings_and_tables_that_do_not_fit_are_refused(pairs, validation):
    with pytest.raises(UserError, match="relax and alternate"):
        Lifting(relax=0.1)
    with pytest.raises(UserError, match="branch"):
        record_runs(MODEL, TABLE.guided(2.0), pairs)
    solver = LiftedSolver(TABLE, residual_for(record_runs(MODEL, TABLE, pairs), CONFIG))
    with pytest.raises(UserError, match="without a residual"):
        record_runs(MODEL, solver().detach(), pairs)
    with pytest.raises(UserError, match="width"):
        next(fit_lifted(MODEL, pairs, validation, TABLE, config=Lifting(width=0)))
    steps = CONFIG.optimizer(solver=solver, model=MODEL, pairs=pairs, loss=l2)
    with pytest.raises(UserError, match="recorded runs"):
        steps.step()
