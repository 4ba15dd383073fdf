"""Whether losses are better by more than chance, and what is typical of a few of them."""

import math

import pytest
import torch

from gas.losses import ROUNDING
from gas.training.validation import surely_better, surely_positive, typical


def heavy_tailed(count, seed, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return 1e-3 * torch.randn(count, generator=generator, dtype=torch.float64).mul(scale).exp()


def test_typical_losses_are_geometric_means():
    losses = heavy_tailed(20, 0)
    assert typical(losses) == pytest.approx(float(losses.prod()) ** (1 / 20))
    assert typical(torch.tensor([0.0, 1.0])) == pytest.approx(math.sqrt(ROUNDING))
    for bad in (math.inf, math.nan):
        assert typical(torch.tensor([1e-3, bad])) == math.inf


def test_a_gain_of_nearly_all_pairs_is_sure_although_one_pair_carries_the_mean():
    than = heavy_tailed(128, 1)
    losses = than / 3
    losses[0] = than[0] + 0.6 * float((than - losses)[1:].sum())
    assert losses.mean() < than.mean()
    assert not surely_positive(than - losses)
    assert surely_better(losses, than)


def test_a_higher_mean_is_never_better():
    than = heavy_tailed(128, 1)
    losses = than / 3
    losses[0] = 2 * float(than.sum())
    assert not surely_better(losses, than)
    assert not surely_better(than, than)
    assert not surely_better(torch.full_like(than, math.nan), than)


def test_a_gain_of_the_mean_alone_is_sure_where_the_typical_pair_loses():
    than = heavy_tailed(256, 2, scale=0.3)
    losses = 1.02 * than
    losses[::2] = 0.5 * than[::2]
    assert surely_better(losses, than)


def test_chance_is_rarely_taken_for_a_gain():
    """Two solvers whose losses are drawn alike: by 2.5 % each of two ways, and both ways agree often."""
    drawn = [(heavy_tailed(64, 2 * seed), heavy_tailed(64, 2 * seed + 1)) for seed in range(400)]
    mistaken = sum(surely_better(losses, than) for losses, than in drawn)
    assert mistaken <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05)
