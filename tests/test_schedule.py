"""Schedules, grids and losses: definitions, inverses, gradients, ends, and errors that teach."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gas.errors import UserError
from gas.grids.analytic import as_grid, karras, log_snr
from gas.losses import LOSSES, FeatureLoss, PseudoHuber, l1, l2, loss_by_name
from gas.schedule import EDMasVP, Flow, Schedule, VPDiscrete, VPLinear, schedule_from_config
from support.solvers import GRIDS, SCHEDULES

VP = {name: schedule for name, schedule in SCHEDULES.items() if name != "flow"}
KNOTS = [0.6, 0.4, 0.1, 0.02]
EVERY = {
    **SCHEDULES,
    "coarse": VPDiscrete(KNOTS),
    "edm wide": EDMasVP(1e-5, 1e-3, 1e3),
    "flat": VPLinear(5.0, 5.0),
}
each_schedule = pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY)
INSIDE = 1e-3  # where grids start to measure spacing when the half log-SNR is infinite at an end


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [*VP.values(), EVERY["coarse"]], ids=[*VP, "coarse"])
def test_variance_is_preserved(schedule):
    alpha, sigma = schedule(torch.linspace(1e-3, 1.2, 50))
    close(alpha**2 + sigma**2, torch.ones(50, dtype=torch.float64), 1e-15)


@each_schedule
def test_half_log_snr_is_that_of_alpha_and_sigma(schedule):
    t = torch.linspace(1e-4, 0.9999, 200, dtype=torch.float64)
    alpha, sigma = schedule(t)
    close(schedule.half_log_snr(t), (alpha / sigma).log())


@each_schedule
def test_signal_falls_and_noise_rises(schedule):
    t = torch.linspace(1e-3, 0.999, 500, dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert bool((alpha.diff() < 0).all() and (sigma.diff() > 0).all())
    assert bool((schedule.half_log_snr(t).diff() < 0).all())


@settings(max_examples=200, deadline=None)
@given(t=st.floats(1e-4, 1, exclude_max=True), name=st.sampled_from(sorted(EVERY)))
def test_the_inverse_undoes_the_half_log_snr(t, name):
    schedule = EVERY[name]
    again = schedule.inverse_half_log_snr(schedule.half_log_snr(t))
    assert float(again) == pytest.approx(t, rel=1e-11)


@each_schedule
def test_gradients(schedule):
    t = f64([0.0505, 0.3335, 0.6174, 0.9806]).requires_grad_()  # between the knots of a discrete schedule
    lam = schedule.half_log_snr(t.detach()).requires_grad_()
    assert torch.autograd.gradcheck(schedule, t)
    assert torch.autograd.gradcheck(schedule.half_log_snr, t)
    assert torch.autograd.gradcheck(schedule.inverse_half_log_snr, lam)
    (slope,) = torch.autograd.grad(schedule.half_log_snr(t).sum(), t)
    (inverse_slope,) = torch.autograd.grad(schedule.inverse_half_log_snr(lam).sum(), lam)
    close(slope * inverse_slope, torch.ones(4, dtype=torch.float64), 1e-9)


@each_schedule
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_answers_are_float64_of_the_shape_of_t(schedule, shape):
    def answers(t):
        return (*schedule(t), schedule.half_log_snr(t), schedule.inverse_half_log_snr(t))

    forms = [torch.full(shape, 0.25, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.float16)]
    for form in [*forms, *([0.25] if shape == () else [])]:
        for value, expected in zip(answers(form), answers(f64(0.25)), strict=True):
            assert (value.dtype, value.shape) == (torch.float64, shape)
            assert torch.equal(value, expected.expand(shape))


@each_schedule
def test_a_schedule_survives_json(schedule):
    config = json.loads(json.dumps(schedule.config(), allow_nan=False))
    again = schedule_from_config(config)
    assert again == schedule
    assert again.config() == config
    assert isinstance(again, Schedule)
    t = torch.linspace(0.01, 1, 20)
    assert all(torch.equal(a, b) for a, b in zip(again(t), schedule(t), strict=True))


def test_reading_a_config_leaves_it_alone():
    config = {"kind": "vp_linear", "beta_0": 0.2}
    assert schedule_from_config(config) == VPLinear(0.2, 20.0)
    assert config == {"kind": "vp_linear", "beta_0": 0.2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"kind": "cosine"},
            r"kind must be one of \['edm_vp', 'flow', 'vp_discrete', 'vp_linear'\], got 'cosine'",
        ),
        ({}, "kind must be one of .*, got None"),
        ({"kind": ["flow"]}, r"kind must be one of .*, got \['flow'\]"),
        ({"kind": "flow", "shift": 3.0}, "'flow' does not take these parameters: .*'shift'"),
        (
            {"kind": "vp_discrete"},
            "'vp_discrete' does not take these parameters: .*missing.*'alphas_cumprod'",
        ),
        ({"kind": "vp_linear", "beta_0": "small"}, "'vp_linear' does not take these parameters"),
        ({"kind": "vp_linear", "beta_0": None}, "'vp_linear' does not take these parameters"),
        ({"kind": "edm_vp", "sigma_max": 10**400}, "'edm_vp' does not take these parameters: .*too large"),
        (
            {"kind": "vp_discrete", "alphas_cumprod": {"0": 0.9}},
            "'vp_discrete' does not take these parameters",
        ),
        ({"kind": "vp_linear", "beta_0": -1.0}, "VPLinear needs"),
    ],
)
def test_an_unknown_config_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        schedule_from_config(config)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPLinear(0.0, 20.0), r"VPLinear needs 0 < beta_0 <= beta_1, got beta_0=0\.0, beta_1=20\.0"),
        (lambda: VPLinear(2.0, 1.0), r"got beta_0=2\.0, beta_1=1\.0"),
        (lambda: VPLinear(0.1, INF), "beta_1=inf"),
        (lambda: VPLinear(NAN, 1.0), "beta_0=nan"),
        (lambda: EDMasVP(t_end=0.0), r"EDMasVP needs 0 < t_end < 1 and .*, got t_end=0\.0, "),
        (lambda: EDMasVP(t_end=1.0), r"got t_end=1\.0"),
        (lambda: EDMasVP(sigma_min=0.0), r"0 < sigma_min < sigma_max, got .*sigma_min=0\.0"),
        (lambda: EDMasVP(sigma_min=2.0, sigma_max=1.0), r"sigma_min=2\.0, sigma_max=1\.0"),
        (lambda: EDMasVP(sigma_max=INF), "sigma_max=inf"),
        (lambda: EDMasVP(sigma_min=NAN), "sigma_min=nan"),
        (lambda: EDMasVP(sigma_min=1.0, sigma_max=1.1), "needs 0 < beta_0 <= beta_1"),
        (lambda: VPDiscrete([]), "at least two strictly decreasing .*, got none"),
        (lambda: VPDiscrete([0.5]), r"at least two .*, got 0\.5 at step 0 of 1"),
        (lambda: VPDiscrete([0.5, 0.5]), "strictly decreasing"),
        (
            lambda: VPDiscrete([0.1, 0.5]),
            r"strictly decreasing numbers within \(0, 1\), got 0\.5 at step 1 of 2",
        ),
        (lambda: VPDiscrete([1.0, 0.5]), r"within \(0, 1\), got 1 at step 0 of 2"),
        (
            lambda: VPDiscrete([0.5, 0.0]),
            r"0 at step 1 of 2; for zero terminal SNR put 2\*\*-24 in its place",
        ),
        (lambda: VPDiscrete([0.5, NAN, 0.1]), r"within \(0, 1\)"),
    ],
)
def test_a_schedule_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_linear_beta_is_what_it_says():
    """``d log alpha / dt = -beta(t) / 2`` with beta running linearly from beta_0 to beta_1."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(VPLinear(0.3, 7.0)(t)[0].log().sum(), t)
    close(-2 * slope, torch.linspace(0.3, 7.0, 11, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max", "low", "high"),
    [
        (0.05, 50.0, 0.05, 50.0),
        (1e-6, 50.0, None, 50.0),
        (0.05, 1e3, 0.05, None),
        (1e-200, 1e200, None, None),
    ],
)
def test_edm_limits_are_those_of_the_network_within_those_of_the_process(sigma_min, sigma_max, low, high):
    schedule, standard = EDMasVP(1e-3, sigma_min, sigma_max), VPLinear(0.1, 20.0)
    for t, level in [(1e-3, low), (1.0, high)]:
        expected = level or math.exp(-float(standard.half_log_snr(t)))
        assert math.exp(-float(schedule.half_log_snr(t))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "knots", [KNOTS, list(SCHEDULES["vp_discrete"].alphas_cumprod)], ids=["coarse", "scaled linear"]
)
def test_a_discrete_schedule_has_its_own_values_at_its_knots(knots):
    schedule, m = VPDiscrete(knots), len(knots)
    times = torch.arange(1, m + 1, dtype=torch.float64) / m
    close(schedule(times)[0] ** 2, f64(knots), 1e-15)
    close(schedule.inverse_half_log_snr((f64(knots) / (1 - f64(knots))).log() / 2), times, 1e-11)
    assert schedule.steps == m
    assert VPDiscrete(f64(knots)) == VPDiscrete(tuple(knots)) == schedule


def test_between_and_beyond_its_knots_a_discrete_schedule_is_linear_in_log_alpha():
    schedule, logs = VPDiscrete(KNOTS), [math.log(a) / 2 for a in KNOTS]
    for t, expected in [
        (0.375, (logs[0] + logs[1]) / 2),
        (0.55, logs[1] + (logs[2] - logs[1]) * 0.2),
        (0.2, logs[0] - (logs[1] - logs[0]) * 0.2),
        (1.3, logs[3] + (logs[3] - logs[2]) * 1.2),
    ]:
        alpha = schedule(t)[0]
        assert float(alpha.log()) == pytest.approx(expected, abs=1e-14)
        assert float(schedule.inverse_half_log_snr(schedule.half_log_snr(t))) == pytest.approx(t, abs=1e-12)


def test_a_fine_discrete_schedule_is_the_continuous_one():
    continuous = VPLinear(0.1, 20.0)
    t = torch.arange(1, 2001, dtype=torch.float64) / 2000
    discrete = VPDiscrete(continuous(t)[0] ** 2)
    t = torch.linspace(0.001, 1, 777, dtype=torch.float64)
    close(discrete.half_log_snr(t), continuous.half_log_snr(t), 1e-3)


def test_flow_is_a_straight_line_with_infinite_ends():
    schedule = Flow()
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert torch.equal(alpha + sigma, torch.ones(9, dtype=torch.float64))
    assert torch.equal(sigma, t)
    assert (float(schedule.half_log_snr(0.0)), float(schedule.half_log_snr(1.0))) == (INF, -INF)
    assert (float(schedule.inverse_half_log_snr(INF)), float(schedule.inverse_half_log_snr(-INF))) == (
        0.0,
        1.0,
    )
    assert [s.t_max for s in SCHEDULES.values()] == [INF, INF, INF, 1.0]


def test_vp_has_no_noise_at_0_and_the_inverse_knows():
    for schedule in (VPLinear(), EDMasVP()):
        assert [float(v) for v in schedule(0.0)] == [1.0, 0.0]
        assert float(schedule.half_log_snr(0.0)) == INF
        assert float(schedule.inverse_half_log_snr(INF)) == 0.0


@pytest.mark.parametrize("lam", [-300.0, -50.0, -10.5, 12.0, 17.0])
def test_no_digit_is_lost_far_out(lam):
    """None of 1 - alpha^2, alpha / sigma and log(1 + exp(-2 lam)) may overflow or cancel."""
    schedule = VPLinear()
    t = schedule.inverse_half_log_snr(lam)
    alpha, sigma = schedule(t)
    assert float((alpha / sigma).log()) == pytest.approx(lam, rel=1e-12)
    assert float(schedule.half_log_snr(t)) == pytest.approx(lam, rel=1e-12)


# --- grids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_falls_strictly_from_exactly_1_to_exactly_t_end(grid, schedule):
    for nfe in range(1, 21):
        for t_end in (schedule.t_min, 1e-4, 1e-3, 0.3):
            t = GRIDS[grid](schedule, nfe, t_end)
            assert (t.dtype, t.shape) == (torch.float64, (nfe + 1,))
            assert (float(t[0]), float(t[-1])) == (1.0, t_end)
            assert bool((t.diff() < 0).all()), (nfe, t_end, t)
            assert torch.equal(as_grid(t), t)


VARIABLE = {
    "time_uniform": lambda schedule, t: t,
    "time_quadratic": lambda schedule, t: t.sqrt(),
    "time_cubic": lambda schedule, t: t ** (1 / 3),
    "log_snr": lambda schedule, t: schedule.half_log_snr(t),
    "karras": lambda schedule, t: (schedule(t)[1] / schedule(t)[0]) ** (1 / 7),
    "flow_shifted": lambda schedule, t: t / (3 - 2 * t),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_is_even_in_its_own_variable(grid, schedule):
    for nfe in (2, 5, 20):
        t = GRIDS[grid](schedule, nfe, 1e-3)
        if isinstance(schedule, Flow) and grid in ("log_snr", "karras"):
            t[0] = 1 - INSIDE  # an end at infinity is replaced by one a little inside
        steps = VARIABLE[grid](schedule, t).diff()
        close(steps, steps.mean().expand(nfe), 1e-9)


@pytest.mark.parametrize("schedule", [VPLinear(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("grid", ["log_snr", "karras"])
def test_an_end_without_noise_is_replaced_by_one_a_little_inside(grid, schedule):
    whole, short = GRIDS[grid](schedule, 6, 0.0), GRIDS[grid](schedule, 6, INSIDE)
    assert torch.equal(whole[:-1], short[:-1])
    assert (float(whole[-1]), float(short[-1])) == (0.0, INSIDE)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_rho_of_karras(rho):
    root = VARIABLE["karras"](VPLinear(), karras(VPLinear(), 8, 1e-3, rho=rho)) ** (7 / rho)
    close(root.diff(), root.diff().mean().expand(8), 1e-9)


def test_a_large_rho_is_even_in_half_log_snr():
    close(karras(VPLinear(), 8, 1e-3, rho=1e6), log_snr(VPLinear(), 8, 1e-3), 1e-4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("nfe", "t_end", "message"),
    [
        (0, 1e-3, r"nfe \(network evaluations\) must be from 1 to"),
        (-2, 1e-3, "from 1 to 1,000, got -2"),
        (4, 1.0, r"t_end must lie in \[0, 1\), got 1\.0"),
        (4, -0.1, r"t_end must lie in \[0, 1\), got -0\.1"),
        (4, NAN, "t_end must .* got nan"),
    ],
)
def test_a_grid_out_of_range_is_refused(grid, nfe, t_end, message):
    with pytest.raises(ValueError, match=message):
        GRIDS[grid](VPLinear(), nfe, t_end)


def test_rho_must_be_positive():
    with pytest.raises(ValueError, match=r"rho must lie in \(0, inf\), got 0"):
        karras(VPLinear(), 4, 1e-3, rho=0.0)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            [1.0, 0.5, 0.5],
            r"must decrease strictly, but time 2 is 0\.5 after 0\.5; list the times from noise",
        ),
        ([0.1, 0.5, 1.0], r"must decrease strictly, but time 1 is 0\.5 after 0\.1"),
        ([1.0, NAN, 0.25], r"must be finite, got \[1\.0, nan, 0\.25\]"),
        ([INF, 0.1], "must be finite"),
        ([1.0], r"at least two times, got shape \(1,\)"),
        ([], r"at least two times, got shape \(0,\)"),
        (0.5, r"at least two times, got shape \(\)"),
        ([[1.0, 0.5]], r"at least two times, got shape \(1, 2\)"),
        ([1.5, 0.5], r"lies within \[0, 1\], got 1\.5 \.\. 0\.5"),
        ([1.0, -0.5], r"lies within \[0, 1\], got 1 \.\. -0\.5"),
    ],
)
def test_times_of_ones_own_are_checked(times, message):
    for form in (times, torch.tensor(times)):
        with pytest.raises(ValueError, match=message):
            as_grid(form)


def test_times_of_ones_own_keep_their_values_and_gradient():
    assert torch.equal(as_grid([1, 0.5, 0]), f64([1, 0.5, 0]))
    t = torch.tensor([1.0, 0.5, 0.25], requires_grad=True)
    grid = as_grid(t)
    assert grid.dtype == torch.float64
    grid.sum().backward()
    assert torch.equal(t.grad, torch.ones(3))


# --- losses ---------------------------------------------------------------------------------------------


def square_feature(x):
    return torch.stack([x, x**2], 1)


FORMULAS = {
    "l1": (l1, abs),
    "l2": (l2, lambda d: d * d),
    "pseudo_huber": (LOSSES["pseudo_huber"], lambda d: math.sqrt(d * d + 0.03**2) - 0.03),
    "pseudo_huber 2": (PseudoHuber(2.0), lambda d: math.sqrt(d * d + 4) - 2),
    "features": (FeatureLoss(lambda x: 3 * x), lambda d: 9 * d * d),
}
each_loss = pytest.mark.parametrize(("loss", "formula"), FORMULAS.values(), ids=FORMULAS)


def pair(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@each_loss
@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (2, 3, 4, 5), (2, 2, 2, 2, 2)])
def test_a_loss_is_the_mean_of_its_formula_over_each_sample(loss, formula, shape):
    student, teacher = pair(*shape)
    loss_value = loss(student, teacher)
    expected = [
        sum(map(formula, sample.flatten().tolist())) / sample.numel()
        for sample in (student - teacher).unbind()
    ]
    close(loss_value, f64(expected))
    close(loss(teacher, student), loss_value)


@each_loss
def test_a_loss_is_zero_exactly_for_equals_and_its_gradient_is_finite_there(loss, formula):
    student, teacher = pair(3, 4)
    teacher[1] = student[1]
    loss_value = loss(student.requires_grad_(), teacher)
    assert (loss_value == 0).tolist() == [False, True, False]
    assert bool((loss_value >= 0).all())
    loss_value.sum().backward()
    assert torch.isfinite(student.grad).all()
    assert not student.grad[1].any()


@each_loss
def test_a_loss_has_gradients(loss, formula):
    student, teacher = pair(3, 4)
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher))


@settings(max_examples=50, deadline=None)
@given(c=st.floats(1e-3, 1e3), ratio=st.floats(1e-6, 1e6))
def test_pseudo_huber_is_square_when_small_and_absolute_when_large(c, ratio):
    """Between ``d^2 / 2c`` and ``|d| - c``, and as close to each as theory says."""
    d = c * ratio
    value = float(PseudoHuber(c)(f64([[d]]), f64([[0.0]])))
    square = d * d / (2 * c)
    assert max(d - c, 0) <= value * (1 + 1e-12)
    assert value <= min(square, d) * (1 + 1e-12)
    assert square - value <= square * ratio**2 / 4 + 1e-12 * square
    assert value - (d - c) <= c / (2 * ratio) + 1e-12 * d


def test_pseudo_huber_does_not_cancel_in_float32():
    tiny = torch.tensor([[1e-6]])
    assert float(PseudoHuber(1.0)(tiny, torch.zeros(1, 1))) == pytest.approx(5e-13, rel=1e-5)


@pytest.mark.parametrize("c", [0.0, -1.0, NAN])
def test_c_of_pseudo_huber_must_be_positive(c):
    with pytest.raises(ValueError, match="c of the pseudo-Huber loss must"):
        PseudoHuber(c)


def test_a_feature_loss_is_l2_of_any_features_of_both():
    student, teacher = pair(3, 4)
    loss_value = FeatureLoss(square_feature)(student, teacher)
    close(loss_value, (l2(student, teacher) + l2(student**2, teacher**2)) / 2)


@pytest.mark.parametrize(
    ("name", "near"),
    [("L1", "l1"), ("l3", "l[12]"), ("huber", "pseudo_huber"), ("pseudo-huber", "pseudo_huber")],
)
def test_an_unknown_loss_suggests_the_nearest(name, near):
    with pytest.raises(
        ValueError, match=f"unknown loss '{name}': did you mean '{near}'. Known: l1, l2, pseudo_huber$"
    ):
        loss_by_name(name)


@pytest.mark.parametrize("name", ["", "zzz"])
def test_a_name_like_no_other_is_still_answered(name):
    with pytest.raises(ValueError, match="Known: l1, l2, pseudo_huber"):
        loss_by_name(name)


def test_each_loss_goes_by_its_name():
    assert [loss_by_name(name) for name in LOSSES] == list(LOSSES.values()) == [l1, l2, PseudoHuber(0.03)]
    assert all(a != b for a, b in pairwise(LOSSES))


@pytest.mark.parametrize("values", [["a", "b"], [[0.9], [0.5, 0.1]]])
def test_lists_that_are_no_schedule_are_one_line(values):
    with pytest.raises(UserError, match=r"^schedule 'vp_discrete' does not take these parameters"):
        schedule_from_config({"kind": "vp_discrete", "alphas_cumprod": values})
