"""Gauss-Newton: its Jacobian is the true one, its steps are least squares, and it needs far fewer network calls."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from gas.classical.registry import Classical
from gas.errors import Diverged
from gas.learned.bns import BNS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.s4s import S4S
from gas.losses import FeatureLoss, l1, l2
from gas.sampling import sample, trajectory
from gas.schedule import Flow
from gas.table import Table
from gas.training.adam import Adam
from gas.training.batching import visited
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.linearization import (
    evaluations_of,
    linearize,
    measure_differences,
    normal_equations,
    numbers,
)
from gas.training.loop import fit
from support.covering import covering
from support.doubles import MIXTURE as MODEL, guided_mixture, taught
from support.quick import quick_gauss_newton


@pytest.fixture(scope="module")
def pairs():
    return taught(range(160))


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1064))


def table_of(z, nfe):
    """The inverse of ``numbers``."""
    times, states, outputs, place = [], [], [], 0
    for n in range(nfe):
        row = z[place : place + n + 3]
        place += n + 3
        times.append(row[0])
        states.append(torch.cat([row[1:2], torch.zeros(nfe - 1, dtype=z.dtype)]))
        outputs.append(torch.cat([row[2:], torch.zeros(nfe - n - 1, dtype=z.dtype)]))
    return Table(torch.stack(times), torch.stack(states), torch.stack(outputs))


@pytest.mark.parametrize("nfe", [1, 2, 5])
@pytest.mark.parametrize("solver", ["unipc-3-bh2", "ipndm-3"])
def test_numbers_are_the_whole_solver(solver, nfe):
    table = Classical(solver, "karras", nfe, 1e-3).table(MODEL.schedule)
    z = numbers(table)
    assert len(z) == nfe * (nfe + 5) // 2
    again = table_of(z, nfe)
    torch.testing.assert_close(again.unrolled(), table.unrolled(), rtol=1e-12, atol=1e-12)
    assert torch.equal(again.times, table.times)


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_the_jacobian_is_the_one_of_automatic_differentiation(nfe):
    table = Classical("unipc-3-bh2", "karras", nfe, 1e-3).table(MODEL.schedule)
    x = MODEL.noise(range(6)).double()
    differences = measure_differences(MODEL.denoise, x, table)
    actual, columns, spent = linearize(MODEL.denoise, x, table, differences)
    exact = torch.autograd.functional.jacobian(
        lambda z: sample(MODEL.denoise, x, table_of(z, nfe)), numbers(table)
    ).movedim(-1, 0)
    torch.testing.assert_close(actual, sample(MODEL.denoise, x, table))
    for column, true in zip(columns, exact, strict=True):
        assert float((column - true).norm()) <= 2e-5 * float(true.norm()) + 1e-9
    # One call a row, one for its time, and one for every number of the rows before it.
    assert spent == len(x) * sum(2 + n * (n + 5) // 2 for n in range(nfe)) == len(x) * evaluations_of(nfe)


def test_rows_that_evaluate_branches_are_differentiated_one_forward_pass_each():
    table = Classical("unipc-2-bh2", "karras", 2, 1e-3).table(MODEL.schedule).guided(2.0)
    x, denoise = MODEL.noise(range(6)).double(), guided_mixture().bind(torch.arange(6) % 5)
    differences = measure_differences(denoise, x, table)
    actual, columns, spent = linearize(denoise, x, table, differences)
    exact = torch.autograd.functional.jacobian(
        lambda z: sample(denoise, x, replace(table_of(z, 4), branches=table.branches)), numbers(table)
    ).movedim(-1, 0)
    torch.testing.assert_close(actual, sample(denoise, x, table))
    for column, true in zip(columns, exact, strict=True):
        assert float((column - true).norm()) <= 2e-5 * float(true.norm()) + 1e-9
    # At x_T both branches have no tangent of the state before them.
    assert spent <= len(x) * evaluations_of(4)


def test_a_flow_is_differentiated_inside_its_times():
    schedule, times_called = Flow(), []

    def denoise(x, t):
        times_called.append(float(t))
        return x * (1 - t)

    table = Classical("dpmpp-2m", "time_uniform", 3, 0.0).table(schedule)
    x = torch.randn(2, 3)
    differences = measure_differences(denoise, x, table)
    for error in (0.0, 1.0):  # forward, central
        linearize(denoise, x, table, replace(differences, error=error))
    assert min(times_called) > 0
    assert max(times_called) <= 1


def test_the_normal_equations_of_parts_are_those_of_the_whole(monkeypatch):
    table = Classical("ipndm-2", "log_snr", 3, 1e-3).table(MODEL.schedule)
    x, target = MODEL.noise(range(10)).double(), torch.randn(10, 2, dtype=torch.float64)

    def doubled(y):
        return torch.cat([y, y], dim=1)

    differences = measure_differences(MODEL.denoise, x, table, doubled)

    def normal(features=None):
        return normal_equations(lambda part: MODEL.denoise, x, target, table, differences, features)

    whole = normal()
    featured = normal(doubled)
    monkeypatch.setattr("gas.training.linearization._TANGENT_BYTES", 1000)
    parts = normal()
    actual, columns, _ = linearize(MODEL.denoise, x, table, differences)
    assert whole.loss == pytest.approx(float((actual - target).square().mean()), rel=1e-9)
    slope = (columns * (actual - target)).mean(dim=(1, 2))
    torch.testing.assert_close(whole.gradient, slope, rtol=1e-6, atol=1e-9)
    for other, rtol in ((parts, 1e-4), (featured, 1e-4)):  # a difference's step depends on its batch
        assert other.loss == pytest.approx(whole.loss, rel=1e-9)
        torch.testing.assert_close(other.gradient, whole.gradient, rtol=rtol, atol=1e-6)
        torch.testing.assert_close(other.curvature, whole.curvature, rtol=rtol, atol=1e-6)


def test_normal_equations_weigh_every_pair():
    table = Classical("ipndm-2", "log_snr", 3, 1e-3).table(MODEL.schedule)
    x, weights = MODEL.noise(range(9)).double(), torch.linspace(0.5, 3, 9, dtype=torch.float64)
    differences = measure_differences(MODEL.denoise, x, table)
    actual, columns, _ = linearize(MODEL.denoise, x, table, differences)
    target = actual + torch.linspace(0.1, 1, 9, dtype=torch.float64)[:, None]
    normal = normal_equations(lambda part: MODEL.denoise, x, target, table, differences, weights=weights)
    losses = (actual - target).square().mean(1)
    torch.testing.assert_close(normal.losses, losses)
    assert normal.loss == pytest.approx(float((weights * losses).mean()))
    slope = ((columns * (actual - target)).mean(2) * weights).mean(1)
    torch.testing.assert_close(normal.gradient, slope, rtol=1e-6, atol=1e-9)
    curvature = torch.einsum("pbr,qbr,b->pq", columns, columns, weights) / (9 * 2)
    torch.testing.assert_close(normal.curvature, curvature, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_one_broken_pair_hardly_moves_the_solver(pairs):
    """A target that nothing can reach, as where a teacher fell to another mode, is not what the others pay for."""
    broken = replace(pairs, target=pairs.target.clone())
    broken.target[visited(len(pairs), 0, 1, 0)] += 100
    left = []
    for taught_by, outlier in ((pairs, 10.0), (broken, 10.0), (broken, math.inf)):
        solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
        steps = GaussNewtonSteps(solver, MODEL, taught_by, l2, GaussNewton(outlier=outlier))
        with quick_gauss_newton():
            for _ in range(3):
                steps.step()
        left.append(float(l2(sample(MODEL.denoise, pairs.noise, solver().detach()), pairs.target).mean()))
    clean, robust, plain = left
    assert robust < 1.5 * clean < 0.5 * plain


class LastRow(nn.Module):
    """A solver whose last row alone is learned: its samples are linear in its parameters."""

    def __init__(self):
        super().__init__()
        ddim = Classical("ddim", "time_uniform", 3, MODEL.t_end).table(MODEL.schedule).folded()
        # Asked nearer the data than DDIM would, so that the answers are no multiples of x_T.
        self.base = Table(torch.tensor([0.6, 0.4, 0.2]), ddim.states, ddim.outputs)
        self.row = nn.Parameter(torch.cat([self.base.states[2, :1], self.base.outputs[2]]))

    def forward(self):
        states = torch.cat([self.base.states[:2], nn.functional.pad(self.row[:1], (0, 2))[None]])
        return Table(self.base.times, states, torch.cat([self.base.outputs[:2], self.row[None, 1:]]))


@pytest.mark.parametrize("forgetting", [0.0, 0.6])
def test_with_linear_samples_every_step_ends_at_the_least_squares_of_all_pairs_so_far(pairs, forgetting):
    solver = LastRow()
    plain = {"damping": 1e-12, "seed": 3, "outlier": math.inf, "oversampling": 1}
    config = GaussNewton(batch=20, growth=1.0, forgetting=forgetting, **plain)
    steps = GaussNewtonSteps(solver, MODEL, pairs, FeatureLoss(lambda x: x), config)
    steps.damping = 0.0
    rows, targets = [], []
    for k in range(4):
        chosen = pairs.subset(visited(len(pairs), 20 * k, 20, 3))
        history = [chosen.noise]
        states = itertools.islice(trajectory(MODEL.denoise, chosen.noise, solver.base), 3)
        for state, t in zip(states, solver.base.times, strict=True):
            history.append(MODEL.denoise(state, t))
        fade = forgetting**0.5 if k else 1.0
        rows = [fade * r for r in rows] + [torch.stack(history, -1).flatten(0, 1).double()]
        targets = [fade * t for t in targets] + [chosen.target.flatten().double()]
        steps.step()
        steps.damping = 0.0
        matrix, wanted = torch.cat(rows), torch.cat(targets)
        least = (matrix @ torch.linalg.lstsq(matrix, wanted).solution - wanted).square().sum()
        reached = (matrix @ solver.row.detach() - wanted).square().sum()
        assert float(least) <= float(reached) <= 1.01 * float(least)


@covering(
    start={
        f"{start[0]}, NFE {start[2]}": start
        for start in (("ipndm-2", "time_uniform", 3), ("deis-2", "time_cubic", 4), ("ddim", "log_snr", 4))
    },
    theory=[True, False],
)
def test_a_short_step_does_not_depend_on_how_a_solver_is_parameterised(pairs, theory, start):
    """GS can be any table, as BNS can, whose parameters are the numbers: from one table both step to the same one.

    Long steps part ways where one of them stops short of the model's minimum, at an edge of its own.
    """
    table, moved = Classical(*start, MODEL.t_end).table(MODEL.schedule), []
    kinds = (partial(GeneralizedSolver.from_table, theory=theory), BNS.from_table)
    for new in kinds:
        solver = new(MODEL.schedule, table, MODEL.t_end)
        before = numbers(solver().detach())
        steps = GaussNewtonSteps(solver, MODEL, pairs, l2, GaussNewton(batch=24, growth=1.0, damping=1e3))
        for _ in range(2):
            steps.step()
        moved.append(numbers(solver().detach()) - before)
    assert float(moved[1].norm()) > 0.01
    assert float((moved[0] - moved[1]).norm() / moved[1].norm()) < 1e-3


def test_a_turn_or_a_loss_in_which_nothing_can_move_leaves_the_solver_as_it_is(pairs):
    solver = GeneralizedSolver(MODEL.schedule, 1, MODEL.t_end)
    solver.xi.requires_grad_(False)
    blind = FeatureLoss(lambda x: (x - 1e4).relu())
    for learned, loss, config in (
        (solver, l2, GaussNewton(alternate=1)),
        (GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end), blind, GaussNewton()),
    ):
        steps = GaussNewtonSteps(learned, MODEL, pairs, loss, config)
        before = numbers(learned().detach())
        steps.step()
        moved = numbers(learned().detach()) - before
        assert bool(moved.isfinite().all()) and (loss is l2 or not moved.any())


@pytest.mark.slow
@pytest.mark.parametrize(
    "new",
    [
        lambda: GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end),
        lambda: GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end, theory=False),
        lambda: S4S(MODEL.schedule, 3, MODEL.t_end),
    ],
    ids=["GS", "GS without theory", "S4S"],
)
def test_it_reaches_with_a_fifth_of_the_network_calls_what_adam_reaches(pairs, validation, new):
    """For two of three orders of the pairs: which minimum is found is a matter of the first steps."""
    adam = Adam(iterations=120, validate_every=120)
    slow = list(fit(new(), MODEL, pairs, validation=validation, loss="l2", config=adam))
    good = 0
    for seed in range(3):
        config = GaussNewton(iterations=6, seed=seed)
        with quick_gauss_newton():
            first, *_, last = fit(new(), MODEL, pairs, validation=validation, config=config)
        assert last.evaluations < slow[-1].evaluations / 5
        good += last.best_loss < min(1.25 * slow[-1].best_loss, 0.2 * first.validation_loss)
        if good == 2:
            return
    pytest.fail(f"it got there in {good} of 3 orders")


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(pairs, validation, tmp_path):
    def run(checkpoint, reports=None):
        solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
        config = GaussNewton(iterations=4)
        with quick_gauss_newton():
            running = fit(solver, MODEL, pairs, validation=validation, config=config, checkpoint=checkpoint)
            records = list(itertools.islice(running, reports))
            running.close()
        return solver, records[-1]

    whole, expected = run(tmp_path / "whole.pt")
    run(tmp_path / "broken.pt", reports=2)
    resumed, last = run(tmp_path / "broken.pt")
    assert last == expected
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_loss_that_is_no_sum_of_squares_is_refused(pairs):
    solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
    with pytest.raises(ValueError, match="sum of squares"):
        GaussNewtonSteps(solver, MODEL, pairs, l1, GaussNewton())


def test_numbers_that_are_no_table_are_as_bad_as_can_be(pairs):
    solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
    steps = GaussNewtonSteps(solver, MODEL, pairs, FeatureLoss(lambda x: x), GaussNewton())
    p = torch.full_like(steps._parameters(), float("nan"))
    assert steps._loss_at(p, [pairs], torch.ones(len(pairs))) == float("inf")


@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_walk_visits_every_pair_once_an_epoch(count):
    walk = torch.cat([visited(10, before, count, 5) for before in range(0, 30, count)])[:30]
    for epoch in walk.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(walk[:10], walk[10:20])


def test_the_number_of_pairs_grows_and_never_overflows():
    config = GaussNewton(batch=24, growth=1.15, largest=192)
    assert [config.pairs_of(i, 10_000) for i in (0, 1, 5, 14, 15, 10**9)] == [24, 27, 48, 169, 192, 192]
    assert config.pairs_of(0, 10) == 10
    capped = GaussNewton(batch=64, growth=1.0, budget=3000)
    assert [capped.pairs_of(0, 10_000, cost) for cost in (30, 100, 1000)] == [64, 30, 8]


def test_gauss_newton_says_when_samples_are_not_finite_and_leaves_what_is_frozen(pairs):
    solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
    solver.theta.requires_grad_(False)
    before = solver.theta.clone()
    steps = GaussNewtonSteps(solver, MODEL, pairs, l2, GaussNewton())
    steps.step()
    assert torch.equal(solver.theta, before)
    assert float(solver.xi.detach().abs().max()) > 0
    curvature = steps.curvature.clone()
    steps.pairs = replace(pairs, noise=pairs.noise * float("nan"))
    with pytest.raises(Diverged, match=r"iteration 1: .* not finite"):
        steps.step()
    assert torch.equal(steps.curvature, curvature)
