"""Laws of the distances between distributions: closed forms, brute force, recorded oracles, invariances."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gas.metrics.coverage import PRDC, prdc
from gas.metrics.distances import distribution, frechet_interval
from gas.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from gas.metrics.intervals import jackknife, mean_interval, median_interval, seed_interval
from gas.metrics.kernel import kernel_distance


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kid(fake: torch.Tensor, real: torch.Tensor, degree: int = 3) -> float:
    """The estimate from all samples; the subsets are as small as they can be, to cost nothing."""
    return kernel_distance(fake, real, degree=degree, subsets=2, subset_size=2).estimate


def orthogonal(size: int) -> torch.Tensor:
    return torch.linalg.qr(normal(99, size, size)).Q


def fields(result: PRDC) -> list[float]:
    return [result.precision, result.recall, result.density, result.coverage]


# --- kernel distance: closed forms and unbiasedness ---------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize(("m", "n", "size"), [(2, 2, 1), (5, 9, 3), (12, 4, 7)])
def test_kernel_distance_is_its_double_loop(degree, m, n, size):
    x, y = normal(1, m, size).tolist(), (normal(2, n, size) * 1.5 + 0.3).tolist()

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / size + 1) ** degree

    within_x = sum(k(x[i], x[j]) for i, j in product(range(m), repeat=2) if i != j) / (m * (m - 1))
    within_y = sum(k(y[i], y[j]) for i, j in product(range(n), repeat=2) if i != j) / (n * (n - 1))
    across = sum(k(a, b) for a, b in product(x, y)) / (m * n)
    got = kid(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64), degree)
    assert got == pytest.approx(within_x + within_y - 2 * across, rel=1e-12, abs=1e-13)


def test_kernel_distance_of_points_by_hand():
    # Kernels: (0, 0) 1, (1, 2) 27, (0, 1) 1, (0, 2) 1, hence 1 + 27 - 2.
    assert kid(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [2.0]])) == pytest.approx(26, rel=1e-14)
    # Kernels: (1, -1) 0, (2, 2) 125, (1, 2) 27, (-1, 2) -1, hence 0 + 125 - 2 * 13.
    assert kid(torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [2.0]])) == pytest.approx(99, rel=1e-14)
    # F divides the product: (2, 0).(2, 2) / 2 = 2.
    fake, real = torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[2.0, 2.0]] * 2)
    assert kid(fake, real) == pytest.approx(27 + 125 - 2 * 27, rel=1e-14)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
@pytest.mark.parametrize(("degree", "size"), [(3, 7), (2, 1)])
def test_kernel_and_frechet_distances_agree_with_torchmetrics(degree, size):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Features(torch.nn.Module):
        """The samples as they come."""

        num_features = size

        def forward(self, x):
            return x

    fake, real = normal(11, 40, size) * 1.4 + 0.3, normal(12, 40, size)
    theirs = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=40, degree=degree)
    frechet = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    for metric in (theirs, frechet):
        metric.update(fake, real=False)
        metric.update(real, real=True)
    assert kid(fake, real, degree) == pytest.approx(float(theirs.compute()[0]), rel=1e-5)
    ours = frechet_distance(feature_statistics(fake), feature_statistics(real))
    assert ours == pytest.approx(float(frechet.compute()), rel=1e-9)


def test_kernel_distance_of_degree_one_is_the_unbiased_distance_of_means():
    x, y = normal(3, 30, 5), normal(4, 50, 5) + 1
    gap = (x.mean(0) - y.mean(0)).square().sum() - x.var(0).sum() / 30 - y.var(0).sum() / 50
    assert kid(x, y, degree=1) == pytest.approx(float(gap) / 5, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.4, 0.7)])
def test_kernel_distance_is_unbiased_at_any_count(shift, scale):
    """In one dimension the truth is ``sum_c binom(3, c) (E x^c - E y^c)^2``: zero for one law."""
    draws = torch.tensor([kid(normal(s, 5, 1), shift + scale * normal(9000 + s, 8, 1)) for s in range(1500)])
    square, cube = shift**2 + scale**2 - 1, shift**3 + 3 * shift * scale**2
    truth = 3 * shift**2 + 3 * square**2 + cube**2
    error = float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean()) - truth) < 3.5 * error
    # The diagonal would be seen: E k(x, x) - E k(x, x') = 28 - 4 over the 5 rows of x alone.
    assert 10 * error < 24 / 5


def test_kernel_distance_grows_with_the_gap_and_is_symmetric():
    x, y = normal(5, 200, 4), normal(6, 150, 4)
    distances = [kid(x, y + gap) for gap in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances) and distances[1] > 10 * abs(distances[0])
    assert kid(y + 1, x) == pytest.approx(kid(x, y + 1), rel=1e-12)


def test_kernel_distance_of_subsets():
    x, y = normal(7, 40, 3), normal(8, 40, 3) + 0.2
    whole = kernel_distance(x, y, subsets=3, subset_size=40)
    assert whole.mean == pytest.approx(whole.estimate, rel=1e-10)  # no row twice: each subset is everything
    assert whole.std == pytest.approx(0, abs=1e-12)
    first, again, other = (kernel_distance(x, y, subsets=9, subset_size=10, seed=s) for s in (0, 0, 1))
    assert first == again and first.mean != other.mean and first.estimate == other.estimate


@pytest.mark.slow
def test_mean_and_std_over_subsets_are_those_of_small_samples():
    x, y = normal(9, 4000, 2), normal(10, 4000, 2) + 0.5
    result = kernel_distance(x, y, subsets=400, subset_size=20)
    fresh = torch.tensor([kid(normal(2 * s, 20, 2), normal(2 * s + 1, 20, 2) + 0.5) for s in range(400)])
    assert result.std == pytest.approx(float(fresh.std()), rel=0.25)
    assert abs(result.mean - result.estimate) < 4 * result.std / math.sqrt(400)


# --- precision, recall, density, coverage: definitions and oracles ------------------------------------------


def brute_force(fake: torch.Tensor, real: torch.Tensor, k: int) -> list[float]:
    """The definitions in words, on differences of coordinates."""

    def balls(points):
        return [(p, sorted(math.dist(p, q) for q in points[:i] + points[i + 1 :])[k - 1]) for i, p in
                enumerate(points)]  # fmt: skip

    xs, ys = real.tolist(), fake.tolist()
    in_real = [[math.dist(x, y) <= r for y in ys] for x, r in balls(xs)]
    in_fake = [[math.dist(x, y) <= r for y, r in balls(ys)] for x in xs]
    return [
        sum(any(row[j] for row in in_real) for j in range(len(ys))) / len(ys),
        sum(any(row) for row in in_fake) / len(xs),
        sum(sum(row) for row in in_real) / (k * len(ys)),
        sum(any(row) for row in in_real) / len(xs),
    ]


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(("m", "n", "size"), [(6, 6, 1), (30, 50, 2), (45, 20, 8)])
def test_prdc_is_its_definition(k, m, n, size):
    fake, real = 0.7 * normal(k, m, size) + 0.4, normal(100 + k, n, size)
    assert fields(prdc(fake, real, k)) == pytest.approx(brute_force(fake, real, k), abs=1e-15)


def test_prdc_is_its_definition_where_distances_tie():
    grid = torch.tensor(list(product(range(6), repeat=2)), dtype=torch.float64)
    fake = grid[::2] + torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert fields(prdc(fake, grid, 3)) == pytest.approx(brute_force(fake, grid, 3), abs=1e-15)
    # Rounding must not decide the ties: 1/3 is no binary number, and 2^25 + 1/4 is one whose square is not.
    for change in (lambda f: f / 3, lambda f: f / 4 + 2**25):
        assert prdc(change(fake), change(grid), 3) == prdc(fake, grid, 3)


def waves(count: int, size: int, shift: float, scale: float, frequency: float) -> torch.Tensor:
    i, j = np.arange(count)[:, None], np.arange(size)[None]
    angle = frequency * (i + 1) * (j + 1) ** 0.5 + (i * i % 17) * 0.37 * (j + 2)
    return torch.from_numpy(shift + scale * np.sin(angle))


# Made by `prdc.compute_prdc(real, fake, nearest_k=k)` of the package prdc 0.2 (Naeem et al.'s own) on the sets
# `fake = waves(m, size, shift, scale, 1.3)` and `real = waves(n, size, 0.0, 1.0, 0.7)`.
RECORDED = [
    ((60, 80, 3, 0.3, 0.8, 3), [0.95, 0.6125, 0.9277777777777777, 0.6125]),
    ((60, 80, 3, 0.3, 0.8, 5), [1.0, 0.775, 0.9533333333333334, 0.8]),
    ((40, 120, 6, 0.0, 1.3, 5), [0.825, 1.0, 0.41500000000000004, 0.4666666666666667]),
    ((200, 150, 2, 0.5, 0.6, 1), [0.585, 0.14666666666666667, 0.84, 0.19333333333333333]),
]


@pytest.mark.parametrize(("case", "expected"), RECORDED)
def test_prdc_agrees_with_the_published_package(case, expected):
    m, n, size, shift, scale, k = case
    got = prdc(waves(m, size, shift, scale, 1.3), waves(n, size, 0.0, 1.0, 0.7), k)
    assert fields(got) == pytest.approx(expected, abs=1e-14)


def test_expected_density_and_coverage_of_one_law_do_not_depend_on_it():
    """Among M + N - 1 others the k nearest of a datum are all data with the probability in the docstring."""
    m, n, k = 12, 20, 3
    results = [prdc(normal(s, m, 3).exp(), normal(7000 + s, n, 3).exp(), k) for s in range(300)]
    missed = math.prod((n - step) / (m + n - step) for step in range(1, k + 1))
    for values, truth in (([r.density for r in results], 1.0), ([r.coverage for r in results], 1 - missed)):
        error = float(np.std(values)) / math.sqrt(len(values))
        assert abs(float(np.mean(values)) - truth) < 3.5 * error and error < 0.02


@pytest.mark.parametrize("copies", [1, 4])
def test_identical_sets_are_fully_precise_and_covered(copies):
    """With four copies of each row and k = 3 every ball is a point, and still holds its centre."""
    x = normal(11, 50, 16).repeat(copies, 1) + 100
    result = prdc(x, x.clone(), k=3)
    assert (result.precision, result.recall, result.coverage) == (1, 1, 1)
    assert result.density == pytest.approx(4 / 3)


def test_disjoint_sets_share_nothing():
    assert prdc(normal(12, 30, 4), normal(13, 40, 4) + 100) == PRDC(0, 0, 0, 0)


def modes(seed: int, counts: list[int]) -> torch.Tensor:
    """A mixture of unit Gaussians, twenty apart, with so many samples of each."""
    return torch.cat([normal(seed + i, c, 2) + 20 * i for i, c in enumerate(counts)])


def test_mode_dropping_lowers_recall_and_coverage_but_not_precision():
    real = modes(20, [100] * 4)
    full, dropped = prdc(modes(30, [100] * 4), real), prdc(modes(40, [200, 200]), real)
    assert full.recall > 0.9 and full.coverage > 0.9 and full.precision > 0.9
    assert dropped.recall < 0.55 and dropped.coverage < 0.55
    assert dropped.precision == pytest.approx(full.precision, abs=0.03)


def test_mode_invention_lowers_precision_and_density_but_not_recall():
    real = modes(20, [200, 200])
    full, invented = prdc(modes(30, [200, 200]), real), prdc(modes(40, [100] * 4), real)
    assert full.precision > 0.9 and full.density > 0.9
    assert invented.precision < 0.55 and invented.density < 0.6
    assert invented.recall == pytest.approx(full.recall, abs=0.05)


def test_an_outlier_of_the_data_raises_precision_but_hardly_density():
    real, good, junk = normal(50, 300, 2), normal(51, 150, 2), 0.5 * normal(52, 150, 2) + 15
    fake, outlier = torch.cat([good, junk]), torch.full((1, 2), 20.0, dtype=torch.float64)
    clean, spoiled = prdc(fake, real), prdc(fake, torch.cat([real, outlier]))
    assert clean.precision < 0.51 and spoiled.precision > 0.98
    # All the junk lies in one ball: half of the samples, a k-th each.
    assert spoiled.density - clean.density == pytest.approx(0.5 / 5, abs=0.005)
    assert spoiled.coverage - clean.coverage < 0.005


def test_precision_and_recall_change_places_with_the_sets():
    x, y = normal(14, 40, 3), 0.6 * normal(15, 70, 3)
    forth, back = prdc(x, y), prdc(y, x)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)
    assert forth.precision != forth.recall


# --- what both share: invariances, precision, memory, errors ------------------------------------------------


def test_permutations_and_rotations_change_nothing():
    x, y = normal(16, 60, 5), 1.2 * normal(17, 90, 5) + 0.3
    order, turn = torch.randperm(60, generator=torch.Generator().manual_seed(0)), orthogonal(5)
    for fake, real in ((x[order], y), (x @ turn, y @ turn)):
        assert fields(prdc(fake, real)) == fields(prdc(x, y))
        assert kid(fake, real) == pytest.approx(kid(x, y), rel=1e-11)
    assert kid(x @ turn, y) != pytest.approx(kid(x, y), rel=1e-3)  # one set alone: it would be seen


def test_shifts_and_scales_change_no_neighbours():
    x, y = normal(18, 60, 5), 1.2 * normal(19, 90, 5) + 0.3
    assert fields(prdc(3 * x + 50, 3 * y + 50)) == fields(prdc(x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features_of_any_precision_are_compared_in_float64(dtype):
    x, y = normal(1, 30, 4).to(dtype).requires_grad_(), (normal(2, 30, 4) + 0.1).to(dtype)
    assert kid(x, y) == kid(x.detach().double(), y.double())
    assert prdc(x, y) == prdc(x.double(), y.double())


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.count = max([self.count, *sizes])
        return out


@pytest.mark.parametrize("measure", [kid, prdc])
def test_blocks_bound_the_memory_and_change_nothing(measure, monkeypatch):
    x, y = normal(21, 90, 3), normal(22, 110, 3) + 0.5
    whole = measure(x, y)
    for name in ("kernel", "coverage"):
        monkeypatch.setattr(f"gas.metrics.{name}._BLOCK", 700)
    with Largest() as largest:
        blocked = measure(x, y)
    assert largest.count <= 700
    assert blocked == (pytest.approx(whole, rel=1e-12) if measure is kid else whole)


GOOD = torch.zeros(6, 3)


@pytest.mark.parametrize("measure", [kid, prdc])
@pytest.mark.parametrize(
    ("fake", "real", "text"),
    [
        (torch.zeros(6), GOOD, r"fake must have shape \(S, F\).*got \(6,\); flatten or pool"),
        (GOOD, torch.zeros(6, 3, 2), r"real must have shape \(S, F\).*got \(6, 3, 2\)"),
        (torch.zeros(6, 0), torch.zeros(6, 0), r"fake must have shape \(S, F\).*got \(6, 0\)"),
        (GOOD, torch.zeros(6, 4), "fake and real must come from one feature network, got 3 and 4"),
        (torch.zeros(1, 3), GOOD, r"fake must hold at least \d samples, got 1; draw more"),
        (GOOD, torch.zeros(1, 3), r"real must hold at least \d samples, got 1"),
        (GOOD, GOOD.clone().index_fill_(0, torch.tensor([1, 4]), math.nan), "real must be finite, got 2 samples"),
    ],
)  # fmt: skip
def test_errors_name_the_set_and_what_came(measure, fake, real, text):
    with pytest.raises(ValueError, match=text):
        measure(fake, real)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: kernel_distance(GOOD, GOOD),
            "subset_size must be from 2 to 6.*got 1000; pass a smaller one",
        ),
        (lambda: kernel_distance(GOOD, GOOD[:4], subset_size=5), "from 2 to 4, the samples of the smaller"),
        (lambda: kernel_distance(GOOD, GOOD, subset_size=1), "subset_size must be from 2 to 6.*got 1"),
        (lambda: kernel_distance(GOOD, GOOD, subset_size=2, subsets=1), "subsets must be at least 2.*got 1"),
        (lambda: kernel_distance(GOOD, GOOD, degree=0), "degree must be at least 1.*got 0"),
        (lambda: prdc(GOOD, GOOD, k=0), "k must be at least 1, got 0"),
        (lambda: prdc(GOOD, GOOD[:5]), "real must hold at least 6 samples, got 5"),
        (lambda: seed_interval([1.0]), r"values must be a vector of at least two.*\(1,\)"),
        (lambda: seed_interval(GOOD), r"values must be a vector of at least two.*\(6, 3\)"),
        (lambda: seed_interval([1.0, 2.0], level=1.0), r"level must lie within \(0, 1\).*got 1.0"),
    ],
)
def test_errors_teach(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def share_inside(intervals: list[tuple[float, float]], truth: float) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


# --- seeds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 11, 30, 101])
def test_seed_interval_is_student_s(count, level):
    values = normal(count, count) + 3
    mean, half_width = seed_interval(values, level)
    low, high = scipy.stats.t.interval(
        level, count - 1, loc=float(values.mean()), scale=float(values.std()) / math.sqrt(count)
    )
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("level", [0.6, 0.95, 0.999])
@pytest.mark.parametrize("count", [2, 5, 6, 7, 30, 101, 1000])
def test_median_interval_is_that_of_the_sign_test(count, level):
    values = normal(count, count).exp()
    median, interval = median_interval(values, level)
    assert median == pytest.approx(float(np.median(values)))
    low, high = scipy.stats.quantile_test(values, q=1.0).confidence_interval(level)
    assert interval == (None if math.isnan(low) or math.isnan(high) else (low, high))


def test_median_interval_covers_heavy_tails():
    samples = normal(7, 2000, 25).mul(3).exp()
    assert 0.95 <= share_inside([median_interval(row)[1] for row in samples], 1.0) < 0.97


def test_seed_interval_tends_to_normal_theory_and_shows_nan():
    values = normal(64, 20_000)
    assert seed_interval(values) == pytest.approx(mean_interval(values), rel=1e-3)
    assert seed_interval([1.0, 2.0, 3.0])[1] > 2 * mean_interval([1.0, 2.0, 3.0])[1]
    assert math.isnan(seed_interval([1.0, math.inf])[1])


def test_a_comparison_of_distributions_is_its_parts():
    fake, real = normal(1, 60, 3) + 0.4, normal(2, 80, 3)
    estimate, reference = distribution(fake, real), feature_statistics(real)
    assert estimate.frechet == frechet_distance(feature_statistics(fake), reference)
    assert (estimate.frechet_corrected, estimate.frechet_interval) == frechet_interval(fake, reference)
    assert estimate.kernel == pytest.approx(kid(fake, real))
    assert estimate.prdc == prdc(fake, real[:60])  # which depends on both counts: equal ones
    assert distribution(fake[:5], real).prdc is None  # a ball to the fifth neighbour needs a sixth sample


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "subset"), [(0.4, 1000), (0.4, 46), (0.0, 1000)])
def test_the_standard_error_of_a_kernel_distance_is_its_spread_over_independent_samples(
    shift, subset, monkeypatch
):
    # Beyond twice the largest subset they are no longer halves; for one law the estimate is degenerate, its error an
    # upper one.
    monkeypatch.setattr("gas.metrics.distances._SUBSET", subset)
    count = 120
    estimates = [
        distribution(normal(2 * s, count, 3) + shift, normal(2 * s + 1, count, 3)) for s in range(24)
    ]
    spread = float(torch.tensor([each.kernel for each in estimates]).std())
    mean_std = float(torch.tensor([each.kernel_std for each in estimates]).mean())
    assert 0.7 * spread < mean_std < (1.5 if shift else 2.5) * spread


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_an_estimate_of_a_frechet_distance_and_its_interval_belong_together(shift):
    """Simulation with a known distance: no bias is left, the interval covers it, and the estimate lies inside."""
    size, count, draws = 4, 60, 60
    reference = FeatureStatistics(torch.zeros(size), torch.eye(size), 10**9)
    truth = size * shift**2  # the covariances agree
    samples = [normal(s, count, size) + shift for s in range(draws)]
    intervals = [frechet_interval(each, reference) for each in samples]
    plain = [frechet_distance(feature_statistics(each), reference) for each in samples]
    assert np.mean(plain) > truth + 0.1
    assert np.mean([value for value, _ in intervals]) == pytest.approx(truth, abs=0.05)
    assert all(low <= value <= high for value, (low, high) in intervals)
    # 95% of 60, less two standard errors and a half.
    assert share_inside([ends for _, ends in intervals], truth) >= 0.88


@pytest.mark.slow
def test_the_interval_between_pairs_is_of_pairs():
    """Samples of one noise move together: as independent ones, their distance would lie far from its own interval."""
    size, count, draws, error = 4, 80, 40, 0.1
    truth = size * ((1 + error**2) ** 0.5 - 1) ** 2 + size * error**2
    estimates = []
    for s in range(draws):
        teacher = normal(2 * s, count, size)
        fakes = teacher + error * normal(2 * s + 1, count, size) + error
        estimates.append(distribution(fakes, teacher, paired=True))
    ends = [each.frechet_interval for each in estimates]
    assert all(
        low <= each.frechet_corrected <= high for each, (low, high) in zip(estimates, ends, strict=True)
    )
    assert share_inside(ends, truth) >= 0.85
    # Resampling one side alone makes it several times that.
    assert np.mean([high - low for low, high in ends]) < truth
    with pytest.raises(ValueError, match="must be as many, row by row, got 80 and 79"):
        distribution(fakes, teacher[1:], paired=True)


@pytest.mark.slow
def test_too_few_samples_have_no_jackknife_and_all_others_an_interval_around_the_estimate():
    reference = FeatureStatistics(torch.zeros(2), torch.eye(2), 10**9)
    for count in (3, 5):
        assert frechet_interval(normal(0, count, 2), reference) == (None, None)
    assert frechet_interval(normal(0, 3, 1), reference) == (None, None)
    wide = FeatureStatistics(torch.zeros(200), torch.eye(200), 10**9)
    assert frechet_interval(normal(0, 64, 200), wide) == (None, None)
    for count in range(6, 60):
        value, (low, high) = frechet_interval(normal(count, count, 2), reference)
        assert 0 <= low <= value <= high < math.inf
    same = normal(1, 20, 2)
    assert frechet_interval(same, same) == (0.0, (0.0, 0.0))


def test_a_jackknife_of_single_rows_is_exact_for_a_mean_and_unbiased_for_a_variance():
    x = normal(5, 30)
    mean, half_width = jackknife(lambda rows: x[rows].mean(), 30, groups=30)
    assert (mean, half_width) == pytest.approx(seed_interval(x))
    assert jackknife(lambda rows: x[rows].var(correction=0), 30, groups=30)[0] == pytest.approx(
        float(x.var())
    )
    for count, groups in ((3, 20), (30, 1)):
        with pytest.raises(ValueError, match="at least 4 rows and 2 groups"):
            jackknife(lambda rows: x[rows].mean(), count, groups=groups)
