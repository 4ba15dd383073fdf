"""Whether losses are better by more than chance, and what is typical of a few of them."""

import math

import pytest
import torch

from gas.classical.registry import Classical
from gas.learned.registry import kind_by_name
from gas.losses import ROUNDING
from gas.training.initialization import _best_starts
from gas.training.ranking import RankedSolver
from gas.training.validation import surely_better, surely_positive, typical
from support.doubles import MIXTURE as MODEL


def heavy_tailed(count, seed, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return 1e-3 * torch.randn(count, generator=generator, dtype=torch.float64).mul(scale).exp()


def test_typical_losses_are_geometric_means():
    losses = heavy_tailed(20, 0)
    assert typical(losses) == pytest.approx(float(losses.prod()) ** (1 / 20))
    assert typical(torch.tensor([0.0, 1.0])) == pytest.approx(math.sqrt(ROUNDING))
    for bad in (math.inf, math.nan):
        assert typical(torch.tensor([1e-3, bad])) == math.inf


def test_one_bad_pair_of_a_grid_does_not_rule_it_out_as_a_start():
    usual, spoiled = torch.full((8,), 2e-3), torch.full((8,), 1e-3)
    spoiled[3] = 0.1
    ranked = []
    for grid, losses in (("log_snr", usual), ("time_cubic", spoiled), ("time_uniform", 3 * usual)):
        solver = Classical("ipndm-2", grid, 4, MODEL.t_end)
        ranked.append(RankedSolver(solver, solver.table(MODEL.schedule), losses))
    assert spoiled.mean() > usual.mean()
    starts = _best_starts(ranked, 2, kind_by_name("gs"))
    assert [start.grid for start in starts] == ["time_cubic", "log_snr"]


def test_a_gain_of_nearly_all_pairs_is_sure_although_one_pair_leaves_the_mean_unsure():
    than = heavy_tailed(128, 1)
    losses = than / 3
    losses[0] = than[0] + 0.45 * float((than - losses)[1:].sum())
    assert not surely_positive(than - losses)
    assert surely_better(losses, than)


def test_a_mean_that_is_higher_or_hardly_lower_is_not_better_whatever_the_typical_pair_gains():
    than = heavy_tailed(128, 1)
    for share in (0.9, 1.1):  # of all that the others gain
        losses = than / 3
        losses[0] = than[0] + share * float((than - losses)[1:].sum())
        assert (losses.mean() < than.mean()) == (share < 1)
        assert not surely_better(losses, than)
    assert not surely_better(than, than)
    assert not surely_better(torch.full_like(than, math.nan), than)


def test_a_gain_of_the_mean_is_sure_although_the_typical_pair_loses():
    than = torch.ones(256, dtype=torch.float64)
    than[::8] = 20.0
    losses = 1.1 * than
    losses[::8] = 16.0
    assert not surely_positive((than / losses).log())
    assert surely_better(losses, than)


def test_chance_is_rarely_taken_for_a_gain():
    """Two solvers whose losses are drawn alike."""
    drawn = [(heavy_tailed(64, 2 * seed), heavy_tailed(64, 2 * seed + 1)) for seed in range(400)]
    mistaken = sum(surely_better(losses, than) for losses, than in drawn)
    assert mistaken <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05)
