"""Laws of the metrics: closed forms, invariances, an independent oracle, and errors that teach."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st

from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance
from gas.metrics.intervals import mean_interval
from gas.metrics.paired import l1, mean_psnr, mse, psnr

seeds = st.integers(0, 2**31 - 1)
quick = settings(max_examples=20, deadline=None)


def gaussian(seed: int, size: int = 4, rank: int | None = None) -> FeatureStatistics:
    """A random mean with a random covariance of the given rank."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, rank or size, generator=g, dtype=torch.float64)
    return FeatureStatistics(torch.randn(size, generator=g, dtype=torch.float64), root @ root.T, count=100)


def oracle(p: FeatureStatistics, q: FeatureStatistics) -> float:
    """The textbook formula with SciPy's Schur method, which shares nothing with ours."""
    root = scipy.linalg.sqrtm((p.cov @ q.cov).numpy())
    gap = float((p.mean - q.mean).square().sum())
    return gap + float(p.cov.trace() + q.cov.trace()) - 2 * float(np.trace(root).real)


# --- Fréchet: closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_gaussian_is_at_distance_zero_from_itself(rank):
    p = gaussian(0, rank=rank)
    assert frechet_distance(p, p) == pytest.approx(0, abs=1e-12)


def test_equal_covariances_leave_the_distance_of_the_means():
    p = gaussian(1)
    q = FeatureStatistics(p.mean + torch.tensor([3.0, 0, 4, 0]), p.cov, 7)
    assert frechet_distance(p, q) == pytest.approx(25, rel=1e-12)


@quick
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 10), st.floats(0, 10))
def test_in_one_dimension_it_is_the_distance_of_means_and_deviations(m, n, s, t):
    p = FeatureStatistics(torch.tensor([m]), torch.tensor([[s**2]], dtype=torch.float64), 2)
    q = FeatureStatistics(torch.tensor([n]), torch.tensor([[t**2]], dtype=torch.float64), 2)
    gap = float(p.mean - q.mean) ** 2
    assert frechet_distance(p, q) == pytest.approx(gap + (s - t) ** 2, abs=1e-11)


@quick
@given(st.lists(st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)), min_size=1, max_size=6), seeds)
def test_commuting_covariances_add_up_over_their_common_axes(deviations, seed):
    s, t = torch.tensor(deviations, dtype=torch.float64).T
    g = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(len(s), len(s), generator=g, dtype=torch.float64))
    p, q = (FeatureStatistics(torch.zeros(len(s)), axes * d.square() @ axes.T, 9) for d in (s, t))
    assert frechet_distance(p, q) == pytest.approx(float((s - t).square().sum()), rel=1e-8, abs=1e-9)


def test_orthogonal_supports_have_no_cross_term():
    p = FeatureStatistics(torch.zeros(3), torch.diag(torch.tensor([4.0, 0, 0])), 5)
    q = FeatureStatistics(torch.zeros(3), torch.diag(torch.tensor([0.0, 9, 0])), 5)
    assert frechet_distance(p, q) == pytest.approx(13, rel=1e-14)


# --- Fréchet: invariances and the oracle --------------------------------------------------------------------


@quick
@given(seeds, seeds, st.integers(1, 5))
def test_symmetric_nonnegative_and_blind_to_rotation(a, b, size):
    p, q = gaussian(a, size), gaussian(b, size)
    g = torch.Generator().manual_seed(a ^ b)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))
    distance = frechet_distance(p, q)
    turned = [FeatureStatistics(turn @ s.mean, turn @ s.cov @ turn.T, s.count) for s in (p, q)]
    assert distance >= 0
    assert frechet_distance(q, p) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-9, abs=1e-9)


@quick
@given(seeds, st.floats(0.01, 100))
def test_scaling_the_features_scales_it_by_the_square(seed, c):
    p, q = gaussian(seed), gaussian(seed + 1)
    scaled = [FeatureStatistics(c * s.mean, c * c * s.cov, s.count) for s in (p, q)]
    assert frechet_distance(*scaled) == pytest.approx(c * c * frechet_distance(p, q), rel=1e-9)


@quick
@given(seeds, st.integers(1, 8))
def test_agrees_with_scipy_on_positive_definite_covariances(seed, size):
    p, q = gaussian(seed, size, size + 2), gaussian(seed + 1, size, size + 2)
    assert frechet_distance(p, q) == pytest.approx(oracle(p, q), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 5), (3, 3), (8, 2)])
def test_agrees_with_scipy_on_rank_deficient_covariances(ranks):
    p, q = gaussian(5, 8, ranks[0]), gaussian(6, 8, ranks[1])
    # SciPy is given a full-rank neighbour: its root is not defined to be good on a singular matrix.
    near = [FeatureStatistics(s.mean, s.cov + 1e-12 * torch.eye(8), s.count) for s in (p, q)]
    assert frechet_distance(p, q) == pytest.approx(oracle(*near), rel=1e-4)


def test_few_samples_of_many_features_are_no_trouble():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(10, 40, generator=g)
    p, q = feature_statistics(x), feature_statistics(x + 1)
    assert frechet_distance(p, q) == pytest.approx(40, rel=1e-6)


def test_samples_of_one_law_come_together_and_those_of_two_go_to_the_closed_form():
    g = torch.Generator().manual_seed(0)
    draw = lambda n: feature_statistics(torch.randn(n, 3, generator=g))  # noqa: E731
    near = [frechet_distance(draw(n), draw(n)) for n in (50, 500, 5000)]
    assert near[0] > near[1] > near[2] and near[2] < 0.01
    far = feature_statistics(3 * torch.randn(20_000, 3, generator=g) + 1)
    assert frechet_distance(draw(20_000), far) == pytest.approx(3 + 3 * 4, rel=0.03)


# --- statistics ---------------------------------------------------------------------------------------------


@quick
@given(seeds, st.integers(2, 9), st.integers(1, 4))
def test_statistics_are_numpys(seed, n, size):
    x = torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + 50
    s = feature_statistics(x)
    assert s.mean.dtype == s.cov.dtype == torch.float64 and s.count == n
    np.testing.assert_allclose(s.mean, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(s.cov, np.cov(x.double().numpy().T).reshape(size, size), atol=1e-10)


def test_extract_is_the_network_in_slices_without_gradient():
    layer, sizes = torch.nn.Linear(6, 3), []

    def features(x):
        sizes.append(len(x))
        return layer(x.flatten(1))

    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    answer = extract(features, x, batch=3)
    assert sizes == [3, 3, 1] and not answer.requires_grad
    torch.testing.assert_close(answer, layer(x.flatten(1)).detach())


# --- paired errors ------------------------------------------------------------------------------------------


def test_paired_errors_by_hand():
    a, b = torch.tensor([[[1.0, -1.0]], [[0.5, 0.5]]]), torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])
    assert mse(a, b).tolist() == [2.5, 0.0]
    assert l1(a, b).tolist() == [1.5, 0.0]
    assert psnr(a, b)[0].item() == pytest.approx(10 * math.log10(4 / 2.5))
    assert psnr(a, b)[1].item() == math.inf
    assert psnr(a, b, data_range=1.0)[0].item() == pytest.approx(-10 * math.log10(2.5))


def test_a_few_bad_samples_do_not_decide_a_mean_psnr():
    errors = torch.full((200,), 1e-4, dtype=torch.float64)
    assert mean_psnr(errors, 2.0) == pytest.approx(10 * math.log10(4 / 1e-4))
    heavy = errors.clone()
    heavy[:2] = 1e-2  # 1% of the samples carry half of the mean squared error
    assert float(heavy.mean()) == pytest.approx(2 * float(errors.mean()), rel=0.02)
    assert mean_psnr(heavy, 2.0) == pytest.approx(mean_psnr(errors, 2.0), abs=0.25)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    assert mean_psnr(mse(a, b), 1.0) == pytest.approx(float(psnr(a, b, data_range=1.0).mean()))
    assert mean_psnr(errors, None) is None
    assert mean_psnr(torch.zeros(3), 2.0) is None


@pytest.mark.parametrize("error", [mse, l1, psnr])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
def test_paired_errors_are_per_sample_symmetric_float64(error, dtype):
    g = torch.Generator().manual_seed(0)
    a, b = ((torch.rand(5, 2, 3, generator=g) * 200).to(dtype) for _ in range(2))
    answer = error(a, b)
    assert answer.shape == (5,) and answer.dtype == torch.float64
    assert torch.equal(answer, error(b, a))
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(error(a[order], b[order]), answer[order])


def test_a_diverged_sample_spoils_only_itself():
    a = torch.zeros(3, 2)
    a[1, 0] = math.nan
    assert torch.isfinite(mse(a, torch.zeros(3, 2))).tolist() == [True, False, True]


def test_mean_interval_by_hand_and_from_any_sequence():
    mean, half = mean_interval([1, 2, 3, 4])
    assert mean == 2.5 and half == pytest.approx(1.959964 * math.sqrt(5 / 3) / 2, rel=1e-6)
    assert mean_interval(torch.tensor([1.0, 2, 3, 4])) == (mean, half)
    assert mean_interval([1, 2, 3, 4], level=0.5)[1] < half
    assert mean_interval([7.0] * 5) == (7.0, 0.0)


def test_mean_interval_covers_as_often_as_it_says():
    draws = torch.randn(1000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hits = [abs(mean) <= half for mean, half in (mean_interval(row, 0.9) for row in draws)]
    assert sum(hits) / len(hits) == pytest.approx(0.9, abs=0.03)


# --- errors that teach --------------------------------------------------------------------------------------

P = gaussian(0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: frechet_distance(P, gaussian(0, 3)), r"one feature network, got 4 and 3 features"),
        (lambda: feature_statistics(torch.zeros(1, 3)), r"at least 2 vectors for a covariance, got 1"),
        (lambda: feature_statistics(torch.zeros(3)), r"shape \(N, F\), one vector a sample, got \(3,\)"),
        (lambda: feature_statistics(torch.tensor([[0.0], [math.nan]])), r"features must be finite, got 1"),
        (lambda: FeatureStatistics(torch.zeros(1, 2), torch.eye(2), 2), r"mean must be a vector \(F,\)"),
        (lambda: FeatureStatistics(torch.zeros(2), torch.eye(3), 2), r"shape \(2, 2\).*got \(3, 3\)"),
        (lambda: FeatureStatistics(torch.zeros(2), torch.eye(2) * math.inf, 2), r"cov must be finite"),
        (lambda: FeatureStatistics(torch.zeros(2), torch.ones(2, 2).triu(), 2), r"cov must be symmetric"),
        (lambda: FeatureStatistics(torch.zeros(2), torch.eye(2), 1), r"count must be at least 2.*got 1"),
        (lambda: extract(torch.flatten, torch.zeros(2, 2)), r"answer \(2, F\).*got \(4,\); pool"),
        (lambda: extract(torch.relu, torch.zeros(2, 2), batch=0), r"batch must be at least 1, got 0"),
        (lambda: extract(torch.relu, torch.zeros(0, 2)), r"x must hold at least one sample.*\(0, 2\)"),
        (lambda: mse(torch.zeros(2, 3), torch.zeros(3, 2)), r"same seeds.*\(2, 3\) and \(3, 2\)"),
        (lambda: l1(torch.zeros(2), torch.zeros(2)), r"batches \(B, \*\).*got shape \(2,\)"),
        (lambda: psnr(torch.zeros(0, 2), torch.zeros(0, 2)), r"at least one value, got shape \(0, 2\)"),
        (lambda: psnr(torch.zeros(1, 2), torch.zeros(1, 2), 0), r"data_range must be a positive.*got 0"),
        (lambda: mean_interval([1.0]), r"at least two numbers, got shape \(1,\)"),
        (lambda: mean_interval([1.0, 2.0], level=95), r"level must lie within \(0, 1\).*got 95"),
    ],
)
def test_errors_teach(call, text):
    with pytest.raises(ValueError, match=text):
        call()
