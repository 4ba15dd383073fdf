"""Draws by losses are unbiased, spend their pairs where the losses are, and bound every weight."""

import math

import pytest
import torch

from gas.learned.generalized import GeneralizedSolver
from gas.losses import l2
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.importance import draw
from support.covering import covering
from support.doubles import MIXTURE as MODEL, taught


def heavy_tailed(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64).mul(1.5).exp()


@covering(size=[8, 40, 300], share=[0.1, 0.25, 0.9], outlier=[math.inf, 4.0])
def test_the_mean_over_many_draws_is_that_of_the_pool(size, share, outlier):
    losses, count = heavy_tailed(size), max(1, round(share * size))
    values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    huber = (losses.clamp(max=outlier * float(losses.median())) if outlier < math.inf else losses) / losses
    means = []
    for seed in range(3000):
        drawn = draw(losses, count, outlier, seed)
        assert len(drawn.index) == len(drawn.index.unique()) == count
        means.append(float((drawn.weights * values[drawn.index]).mean()))
    error = torch.tensor(means, dtype=torch.float64)
    exact = float((huber * values).mean())
    assert abs(float(error.mean()) - exact) < 5 * float(error.std()) / math.sqrt(len(means)) + 1e-12


def test_the_loss_of_a_draw_is_that_of_the_pool_and_of_a_uniform_one_is_not():
    losses = heavy_tailed(400)
    by_losses, uniform = [], []
    for seed in range(200):
        drawn = draw(losses, 40, math.inf, seed)
        by_losses.append(float((drawn.weights * losses[drawn.index]).mean() / losses.mean()))
        generator = torch.Generator().manual_seed(seed)
        uniform.append(float(losses[torch.randperm(400, generator=generator)[:40]].mean() / losses.mean()))
    spread, uniform_spread = torch.tensor(by_losses).std(), torch.tensor(uniform).std()
    assert float(spread) < 0.2 * float(uniform_spread)


def test_no_weight_exceeds_eleven_however_the_losses_are_spread():
    for seed in range(20):
        losses = heavy_tailed(100, seed).pow(3)
        losses[:10] = 0
        drawn = draw(losses, 25, math.inf, seed)
        assert float(drawn.weights.max()) <= 11 + 1e-9
        assert float(drawn.weights.min()) > 0


def test_all_pairs_are_drawn_where_there_are_no_more():
    losses = heavy_tailed(9)
    for count in (9, 20):
        drawn = draw(losses, count, math.inf, 0)
        assert torch.equal(drawn.index, torch.arange(9))
        assert torch.equal(drawn.weights, torch.ones(9, dtype=torch.float64))


def test_a_loss_beyond_the_bound_counts_as_if_it_were_at_it():
    losses = torch.full((9,), 0.01, dtype=torch.float64)
    losses[4] = 49
    drawn = draw(losses, 9, 4.0, 0)
    torch.testing.assert_close(drawn.weights * losses, losses.clamp(max=0.04))


@pytest.mark.parametrize("value", [0.0, 1e-300, 7.0])
def test_equal_losses_are_drawn_alike(value):
    drawn = draw(torch.full((12,), value, dtype=torch.float64), 3, 10.0, 2)
    torch.testing.assert_close(drawn.weights, torch.ones(3, dtype=torch.float64))


def test_the_same_seed_draws_the_same_pairs():
    losses = heavy_tailed(50)
    first, again, other = (draw(losses, 9, 30.0, seed).index for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_steps_estimate_the_gradient_of_all_pairs_and_count_every_evaluation():
    """Over many draws the weighted normal equations are those of the whole pool, each of a quarter of its pairs."""
    pairs = taught(range(48))
    config = GaussNewton(batch=12, growth=1.0, outlier=math.inf)
    solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
    steps = GaussNewtonSteps(solver, MODEL, pairs, l2, config)
    p, differences = steps._parameters(), steps._measured_differences()
    everything = torch.arange(48)
    (whole,) = steps._drawn(p, everything, 1.0)
    exact = steps._normal(p, whole, differences)
    gradients, losses = [], []
    for steps.iteration in range(60):
        before = steps.evaluations
        (batch,) = steps._drawn(p, everything, 0.25)
        assert steps.evaluations - before == 48 * 3 and len(batch.pairs) == 12
        normal = steps._normal(p, batch, differences)
        gradients.append(normal.gradient)
        losses.append(normal.loss)
    mean = torch.stack(gradients).mean(0)
    assert float((mean - exact.gradient).norm()) < 0.1 * float(exact.gradient.norm())
    assert float(torch.tensor(losses).std()) < 0.05 * exact.loss
    errors = [float((gradient - exact.gradient).norm()) for gradient in gradients]
    assert max(errors) > 0.05 * float(exact.gradient.norm())  # the draws differ


def test_a_step_within_a_limit_takes_no_more_than_it():
    pairs = taught(range(96))
    for room in (400, 700, 1500):
        solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
        steps = GaussNewtonSteps(solver, MODEL, pairs, l2, GaussNewton(batch=16))
        steps._measured_differences()
        limit = steps.evaluations + room
        steps.step(limit)
        assert steps.evaluations <= limit
