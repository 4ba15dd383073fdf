"""A table between two trained ones: exact for what has a form, and noise stays noise whatever it is made of."""

import math

import pytest
import torch

import gas
from gas.classical.registry import Classical
from gas.learned.generalized import GeneralizedSolver
from gas.learned.interpolation import interpolated, profile_of, table_of_profile
from gas.losses import l2
from gas.schedule import Flow, VPLinear
from gas.table import Table
from gas.training.validation import evaluate, surely_positive
from support.doubles import MIXTURE as MODEL, taught


def classical(schedule, nfe, solver="ipndm-2", grid="time_quadratic"):
    return Classical(solver, grid, nfe, 1e-3).table(schedule)


def perturbed(schedule, nfe):
    """A solver as training leaves it: other times told than its own, and rows that break both laws a little."""
    solver = GeneralizedSolver.from_table(schedule, classical(schedule, nfe), 1e-3)
    generator = torch.Generator().manual_seed(nfe)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return solver().detach()


@pytest.mark.parametrize("schedule", [VPLinear(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "unipc-3-bh2", "ipndm-3", "deis-2"])
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_a_classical_solver_is_its_form(schedule, solver, nfe):
    table = classical(schedule, nfe, solver)
    again = table_of_profile(schedule, profile_of(schedule, table, 1e-3), 1e-3)
    torch.testing.assert_close(
        again.unrolled(), table.unrolled(), rtol=1e-9, atol=1e-3 if schedule == Flow() else 1e-12
    )
    torch.testing.assert_close(again.times, table.times, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("ends", [(2, 5), (4, 6), (6, 10)])
def test_an_interpolated_table_keeps_the_moments(ends):
    schedule = MODEL.schedule
    below, above = (perturbed(schedule, nfe) for nfe in ends)
    for nfe in range(ends[0] + 1, ends[1]):
        table = interpolated(schedule, below, above, nfe, 1e-3)
        assert table.nfe == nfe
        weights = table.folded()
        alpha, sigma = schedule(torch.tensor([1.0, 1e-3], dtype=torch.float64))
        # Pure noise and pure signal come out as the schedule has them at t_end; on the way they mix as some time's do.
        noise = weights.states[:, 0] * sigma[0]
        signal = weights.states[:, 0] * alpha[0] + weights.outputs.sum(1)
        torch.testing.assert_close(noise[-1], sigma[1], rtol=1e-9, atol=0)
        torch.testing.assert_close(signal[-1], alpha[1], rtol=1e-9, atol=0)
        t = schedule.inverse_half_log_snr((signal / noise).log())
        assert bool((t.diff() < 0).all())
        torch.testing.assert_close(
            torch.stack(schedule(t)), torch.stack([signal, noise]), rtol=1e-6, atol=1e-9
        )


def test_between_two_of_a_kind_is_nearly_that_kind():
    schedule = MODEL.schedule
    below, above, between = (classical(schedule, nfe) for nfe in (6, 10, 8))
    pairs = taught(range(64))
    actual = interpolated(schedule, below, above, 8, 1e-3)
    losses = [float(evaluate(MODEL, pairs, table, l2).mean()) for table in (below, actual, between)]
    assert losses[1] < 0.8 * losses[0], losses
    assert losses[1] < 2.5 * losses[2], losses


def test_what_has_no_form_is_refused():
    states = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="no noise or no signal"):
        profile_of(MODEL.schedule, Table([1.0, 0.5], states, torch.eye(2)), 1e-3)
    back = classical(MODEL.schedule, 3)
    states = back.states.clone()
    states[0, 0], states[1] = 0.1, torch.tensor([0.9, 0.0, 0.0])
    with pytest.raises(ValueError, match="do not go from noise to signal"):
        profile_of(MODEL.schedule, Table(back.times, states, back.outputs), 1e-3)
    with pytest.raises(ValueError, match="between 3 and 5, got 5"):
        interpolated(MODEL.schedule, back, classical(MODEL.schedule, 5), 5, 1e-3)


def test_a_file_says_what_is_interpolated_and_refuses_outside(tmp_path):
    solvers = [
        GeneralizedSolver.from_table(MODEL.schedule, classical(MODEL.schedule, n), 1e-3) for n in (3, 5, 8)
    ]
    file = gas.save(tmp_path / "s.json", solvers, model=MODEL)
    assert (file.neighbours(4), file.neighbours(5), file.neighbours(6)) == ((3, 5), None, (5, 8))
    expected = interpolated(MODEL.schedule, file.table(5), file.table(8), 6, 1e-3)
    assert torch.equal(file.table(6, interpolate=True).unrolled(), expected.unrolled())
    assert torch.equal(file.table(5, interpolate=True).unrolled(), file.table(5).unrolled())
    with pytest.raises(ValueError, match="no table for NFE 4"):
        file.table(4)
    for nfe in (2, 9):
        with pytest.raises(ValueError, match=f"no table for NFE {nfe}; it has NFE 3, 5, 8"):
            file.table(nfe, interpolate=True)
    bare = gas.save(tmp_path / "t.json", [classical(MODEL.schedule, 3), classical(MODEL.schedule, 5)])
    with pytest.raises(ValueError, match="does not say its schedule"):
        bare.table(4, interpolate=True)


def surely_better(model, pairs, table, other, loss):
    return surely_positive(evaluate(model, pairs, other, loss) - evaluate(model, pairs, table, loss))


def test_better_by_chance_is_not_surely_better():
    pairs = taught(range(48))
    good, bad = classical(MODEL.schedule, 8), classical(MODEL.schedule, 3)
    assert surely_better(MODEL, pairs, good, bad, l2)
    assert not surely_better(MODEL, pairs, bad, good, l2)
    assert not surely_better(MODEL, pairs, good, good, l2)
    close = Table(good.times, good.states, good.outputs * (1 + 1e-4))
    reports = [
        surely_better(MODEL, pairs.subset(slice(0, 6)), *pair, l2) for pair in ((close, good), (good, close))
    ]
    assert reports != [True, True]


def test_a_gain_on_every_pair_is_sure_however_large_it_is_on_one_and_a_loss_as_large_is_not_hidden():
    noise = torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = 0.01 + 0.002 * noise
    ones = torch.zeros(256, dtype=torch.float64)
    ones[7] = 100.0
    assert float(small.mean()) > 0 and surely_positive(small)
    assert surely_positive(small + ones) and not surely_positive(small - ones)
    assert not surely_positive(noise - noise.mean() + 0.05) and surely_positive(noise - noise.mean() + 0.2)
    assert not surely_positive(0 * noise) and not surely_positive(torch.full_like(noise, math.nan))
    diverged = torch.where(ones > 0, math.inf, small)
    assert surely_positive(diverged) and not surely_positive(-diverged)
    assert not surely_positive(small[:1]) and not surely_positive(small[:0])


@pytest.mark.parametrize("count", [2, 4, 8, 16, 64])
def test_gains_by_chance_are_sure_in_one_case_of_forty_however_few_they_are(count):
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randn(400, count, generator=generator, dtype=torch.float64)
    assert sum(map(surely_positive, drawn)) <= 400 * 0.025 + 3 * math.sqrt(400 * 0.025)
