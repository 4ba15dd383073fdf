"""Every wrapper against its definition, on a mixture whose networks of all kinds are known exactly."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings, strategies as st

import gas
from gas.denoise import (
    ClassifierFreeGuidance,
    DiscreteTime,
    DynamicThreshold,
    EDMDenoiser,
    FlowDenoiser,
    GuidedNetwork,
    NoiseDenoiser,
    Rescale,
    ScoreDenoiser,
    StaticThreshold,
    VelocityDenoiser,
    ZeroStar,
)
from gas.schedule import EDMasVP, Flow, VPDiscrete, VPLinear
from support.doubles import Gaussian, Mixture
from support.solvers import SCHEDULES

VP = {name: schedule for name, schedule in SCHEDULES.items() if name != "flow"}
TIMES = [1.0, 0.9, 0.5, 0.1, 0.001]


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- exact networks, from the mixture alone ---------------------------------------------------------------
#
# The score of x_t is a formula of its own; by Tweedie it gives eps = -sigma * score, and from x and eps every
# other prediction. The double's denoiser, written from the other side, is what the wrappers must recover.


def expects_one_time(network):
    """A network is told one time a sample, beside x; here they are all the same, and the formulas take one."""

    def times_seen(x, t):
        assert t.shape == (len(x),)
        assert t.dtype == x.dtype
        assert bool((t == t[0]).all())
        return network(x, t[0])

    return times_seen


def score_network(model):
    """The score, by automatic differentiation of the log-density."""

    def score(x, t):
        alpha, sigma = model.schedule(t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            offset = x[:, None] - alpha * model.modes(x.dtype)
            log_density = torch.logsumexp(
                -offset.square().sum(2) / (2 * (alpha**2 * model.std**2 + sigma**2)), 1
            )
            return torch.autograd.grad(log_density.sum(), x)[0]

    return expects_one_time(score)


def noise_network(model):
    """The best estimate of the noise given x and t."""
    score = score_network(model)
    return lambda x, t: -model.schedule(t[0])[1] * score(x, t)


def velocity_network(model):
    """``v = alpha eps - sigma x_0`` with ``x_0 = (x - sigma eps)/alpha``: of x and eps, ``(eps - sigma x)/alpha``."""

    def v(x, t):
        alpha, sigma = model.schedule(t)
        return (noise_network(model)(x, t.expand(len(x))) - sigma * x) / alpha

    return expects_one_time(v)


def flow_network(model):
    """``E[eps - x_0 | x]`` on the straight path."""

    def v(x, t):
        eps = noise_network(model)(x, t.expand(len(x)))
        return eps - (x - t * eps) / (1 - t)

    return expects_one_time(v)


def edm_network(model):
    """``D(y; sigma)`` of ``y = x_0 + sigma eps``: the mean of x_0 given y, written without any schedule."""

    def network(y, sigma):
        modes, total = model.modes(y.dtype), model.std**2 + sigma**2
        offset = y[:, None] - modes
        weight = torch.softmax(-offset.square().sum(2) / (2 * total), 1)
        return (weight[..., None] * (modes + model.std**2 / total * offset)).sum(1)

    return expects_one_time(network)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("schedule", VP.values(), ids=VP)
@pytest.mark.parametrize("kind", ["noise", "score", "velocity", "edm"])
def test_the_exact_network_gives_the_exact_estimate(kind, schedule, t):
    model, t = Mixture(schedule), f64(t)
    wrapped = {
        "noise": NoiseDenoiser(noise_network(model), schedule),
        "score": ScoreDenoiser(score_network(model), schedule),
        "velocity": VelocityDenoiser(velocity_network(model), schedule),
        "edm": EDMDenoiser(edm_network(model), schedule),
    }[kind]
    alpha, sigma = schedule(t)
    clean = model.modes(torch.float64).repeat(4, 1)
    x = alpha * clean + sigma * normal(20, 2)
    # A noise prediction is divided by alpha: its rounding error is too.
    tolerance = 1e-12 if kind == "edm" else 1e-12 / float(alpha)
    torch.testing.assert_close(wrapped(x, t), model.denoise(x, t), rtol=0, atol=tolerance)


@pytest.mark.parametrize("t", [0.999, 0.9, 0.5, 0.1, 0.001])
def test_the_exact_flow_network_gives_the_exact_estimate(t):
    model, t = Mixture(Flow()), f64(t)
    x = (1 - t) * model.modes(torch.float64).repeat(4, 1) + t * normal(20, 2)
    expected = model.denoise(x, t)
    torch.testing.assert_close(
        FlowDenoiser(flow_network(model))(x, t), expected, rtol=0, atol=1e-12 / float(1 - t)
    )
    torch.testing.assert_close(
        NoiseDenoiser(noise_network(model), Flow())(x, t), expected, rtol=0, atol=1e-12 / float(1 - t)
    )
    torch.testing.assert_close(EDMDenoiser(edm_network(model), Flow())(x, t), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_what_made_the_state_is_recovered(t):
    """With the true noise in place of a network every wrapper returns the true x_0."""
    clean, eps, t = normal(3, 4), normal(3, 4, seed=1), f64(t)
    for schedule in VP.values():
        alpha, sigma = schedule(t)
        x = alpha * clean + sigma * eps
        predictions = [
            NoiseDenoiser(lambda x, t: eps, schedule)(x, t),
            VelocityDenoiser(lambda x, t, a=alpha, s=sigma: a * eps - s * clean, schedule)(x, t),
        ]
        for estimate in predictions:
            torch.testing.assert_close(estimate, clean, rtol=0, atol=1e-12)
    x = (1 - t) * clean + t * eps
    torch.testing.assert_close(FlowDenoiser(lambda x, t: eps - clean)(x, t), clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_an_edm_network_is_asked_in_its_own_variables(schedule):
    calls = []
    x, t = normal(2, 3), f64(0.3)
    EDMDenoiser(lambda y, sigma: calls.append((y, sigma)) or y, schedule)(x, t)
    alpha, sigma = schedule(t)
    assert torch.equal(calls[0][0], x / alpha)
    assert torch.equal(calls[0][1], (sigma / alpha).expand(2))
    assert float((-schedule.half_log_snr(t)).exp()) == pytest.approx(float(calls[0][1][0]), rel=1e-12)


@pytest.mark.parametrize("wrap", [NoiseDenoiser, VelocityDenoiser])
@pytest.mark.parametrize(
    ("dtype", "times"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_network_is_told_x_as_it_is_and_one_time_a_sample(wrap, dtype, times):
    calls = []
    x, t = normal(2, 3, dtype=dtype), f64(0.3)
    wrap(lambda *args: calls.append(args) or args[0], VPLinear())(x, t)
    FlowDenoiser(lambda *args: calls.append(args) or args[0])(x, t)
    assert all(
        torch.equal(a, x) and b.tolist() == [float(t.to(times))] * 2 and b.dtype == times for a, b in calls
    )
    assert len(calls) == 2


# --- discrete time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_a_discrete_network_is_told_its_training_step_as_a_float(steps):
    schedule = VPDiscrete(torch.linspace(0.99, 0.01, steps, dtype=torch.float64))
    conditions_called = []
    network = DiscreteTime(lambda x, t: conditions_called.append(t) or 2 * x, schedule)
    x = normal(2, 3)
    for t in [1.0, 1 / steps, 0.5, 0.123, (steps - 1) / steps]:
        assert torch.equal(network(x, f64(t)), 2 * x)
    values = [float(t) for t in conditions_called]
    assert values == pytest.approx(
        [steps - 1, 0, steps / 2 - 1, max(0.0, 0.123 * steps - 1), steps - 2], abs=1e-12 * steps
    )
    assert values[1] == 0
    assert all(t.dtype == torch.float64 and t.shape == () for t in conditions_called)


def test_a_discrete_network_is_asked_where_its_own_table_of_noise_is():
    """At training step i the state is scaled by exactly the i-th alpha."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 50, dtype=torch.float64), 0)
    schedule = VPDiscrete(alphas)
    clean, eps = normal(4, 2), normal(4, 2, seed=1)

    def network(x, step):
        alpha = alphas[round(float(step[0]))].sqrt()
        return (x - alpha * clean) / (1 - alpha**2).sqrt()

    denoise = NoiseDenoiser(DiscreteTime(network, schedule), schedule)
    for i in [0, 1, 25, 49]:
        x = alphas[i].sqrt() * clean + (1 - alphas[i]).sqrt() * eps
        torch.testing.assert_close(denoise(x, f64((i + 1) / 50)), clean, rtol=0, atol=1e-11)


# --- guidance ---------------------------------------------------------------------------------------------


@dataclass
class Conditional:
    """A Gaussian whose mean is the condition; counts its calls."""

    schedule: object = field(default_factory=VPLinear)
    calls: list = field(default_factory=list)

    def __call__(self, x, t, condition):
        self.calls.append((x, t, condition))
        gain = Gaussian(self.schedule, mean=0.0).denoise(x, t)
        alpha, sigma = self.schedule(t)
        return gain + sigma**2 / (alpha**2 / 4 + sigma**2) * condition


X, CONDITION, NULL, HALF = normal(3, 4), normal(3, 4, seed=1), normal(4, seed=2), f64(0.5)


def test_scale_1_is_the_conditional_model_and_0_the_unconditional_one():
    network = Conditional()
    for scale, condition in [
        (1, CONDITION),
        (1.0, CONDITION),
        (0, NULL.expand(3, 4)),
        (0.0, NULL.expand(3, 4)),
    ]:
        actual = ClassifierFreeGuidance(network, CONDITION, NULL, scale)(X, HALF)
        assert torch.equal(actual, network(X, HALF, condition))


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(-3, 15),
    t=st.floats(0.01, 0.99),
    schedule=st.sampled_from([VPLinear(), Flow(), EDMasVP()]),
)
def test_any_scale_is_the_usual_rule_on_noise_predictions(scale, t, schedule):
    """``eps = (1 + w) eps_condition - w eps_null`` with ``w = scale - 1``."""
    network, t = Conditional(schedule), f64(t)
    alpha, sigma = schedule(t)

    def eps(condition):
        return (X - alpha * network(X, t, condition)) / sigma

    w = scale - 1
    guided = NoiseDenoiser(lambda x, t: (1 + w) * eps(CONDITION) - w * eps(NULL), schedule)
    actual = ClassifierFreeGuidance(network, CONDITION, NULL, scale)(X, t)
    size = 1 + abs(scale) / float(alpha)
    torch.testing.assert_close(actual, guided(X, t), rtol=0, atol=1e-12 * size)


def test_guidance_is_one_batched_call():
    network = Conditional()
    ClassifierFreeGuidance(network, CONDITION, NULL, 3.0)(X, HALF)
    ((x, t, condition),) = network.calls
    assert torch.equal(x, torch.cat([X, X]))
    assert t is HALF
    assert torch.equal(condition, torch.cat([CONDITION, NULL.expand(3, 4)]))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (1, 1), ()])
def test_what_stands_for_no_condition_broadcasts(shape):
    null = normal(*shape) if shape else f64(0.7)
    actual = ClassifierFreeGuidance(Conditional(), CONDITION, null, 2.0)(X, HALF)
    expected = ClassifierFreeGuidance(Conditional(), CONDITION, null.expand(3, 4).clone(), 2.0)(X, HALF)
    assert torch.equal(actual, expected)


def test_classes_are_conditions_too():
    table = normal(6, 4)  # five classes, and the last row for none
    labels = torch.tensor([0, 4, 2])
    network = Conditional()

    def classes(x, t, label):
        return network(x, t, table[label])

    actual = ClassifierFreeGuidance(classes, labels, torch.tensor(5), 2.0)(X, HALF)
    expected = 2 * network(X, HALF, table[labels]) - network(X, HALF, table[5])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


# --- guidance by other rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "guider", "arguments", "step"),
    [
        (Rescale(0.0), "ClassifierFreeGuidance", {}, 0),
        (Rescale(0.7), "ClassifierFreeGuidance", {"guidance_rescale": 0.7}, 0),
        (Rescale(1.0), "ClassifierFreeGuidance", {"guidance_rescale": 1.0}, 0),
        (ZeroStar(), "ClassifierFreeZeroStarGuidance", {"zero_init_steps": 0}, 0),
        (ZeroStar(0.9), "ClassifierFreeZeroStarGuidance", {"zero_init_steps": 1}, 0),
        (ZeroStar(0.9), "ClassifierFreeZeroStarGuidance", {"zero_init_steps": 1}, 1),
    ],
)
def test_other_rules_are_those_of_diffusers(rule, guider, arguments, step):
    guiders = pytest.importorskip("diffusers.guiders")
    theirs = getattr(guiders, guider)(guidance_scale=4.0, **arguments)
    x, condition, null = normal(3, 2, 5), normal(3, 2, 5, seed=1), normal(2, 5, seed=2)
    times = f64([0.95, 0.4][step]).expand(3)
    theirs.set_state(step, 2, times)

    def network(x, t, condition):
        return torch.sin(x + t.reshape(-1, 1, 1)) + condition

    expected = theirs.forward(network(x, times, condition), network(x, times, null.expand_as(x))).pred
    actual = GuidedNetwork(network, condition, null, 4.0, rule)(x, times)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # theirs has a float32 part


def test_zero_star_holds_the_sums_of_a_latent_in_half_precision():
    """16 x 64 x 64 squares of size 4 and more sum to more than float16's 65,504."""
    unconditional = (4 * normal(2, 16, 64, 64)).half()
    conditional = unconditional + normal(2, 16, 64, 64, seed=1).half()
    times = torch.ones(2)
    wide = ZeroStar()(conditional.double(), unconditional.double(), 4.0, times)
    actual = ZeroStar()(conditional, unconditional, 4.0, times)
    assert bool(actual.isfinite().all())
    torch.testing.assert_close(actual.double(), wide, rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("rule", [Rescale(), ZeroStar()])
def test_predictions_of_zero_stay_zero(rule):
    zero, times = torch.zeros(2, 3, 4), torch.ones(2)
    assert torch.equal(rule(zero, zero, 4.0, times), zero)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"phi must lie in \[0, 1\], got 1\.5"):
        Rescale(1.5)


# --- thresholds -------------------------------------------------------------------------------------------


def answer(value):
    """A denoiser of a fixed answer."""
    return lambda x, t: value


@pytest.mark.parametrize("limit", [0.5, 1.0, 2])
def test_the_static_threshold_clips(limit):
    d = 3 * normal(2, 3, 4)
    actual = StaticThreshold(answer(d), limit)(d, HALF)
    assert torch.equal(actual, torch.where(d.abs() > limit, d.sign() * limit, d))
    assert (d.abs() > limit).any() and (d.abs() < limit).any()


@settings(max_examples=30, deadline=None)
@given(
    quantile=st.floats(0.05, 1.0),
    limit=st.floats(0.25, 4.0),
    size=st.floats(0.1, 20.0),
    seed=st.integers(0, 1000),
)
def test_the_dynamic_threshold_clips_each_sample_at_its_own_quantile(quantile, limit, size, seed):
    d = size * normal(3, 2, 5, seed=seed)
    actual = DynamicThreshold(answer(d), quantile, limit)(d, HALF)
    for sample, out in zip(d, actual, strict=True):
        ordered = sample.abs().flatten().sort().values  # linear interpolation between the order statistics
        place = quantile * (len(ordered) - 1)
        low = min(int(place), len(ordered) - 2)
        reach = max(float(torch.lerp(ordered[low], ordered[low + 1], place - low)), limit)
        torch.testing.assert_close(
            out, sample.clamp(-reach, reach) * limit / reach, rtol=0, atol=1e-12 * limit
        )
        assert float(out.abs().max()) <= limit * (1 + 1e-12)


def test_a_sample_within_the_limit_is_unchanged():
    within, beyond = normal(1, 8).clamp(-0.9, 0.9), 5 * normal(1, 8, seed=1)
    actual = DynamicThreshold(answer(torch.cat([within, beyond])))(X, HALF)
    assert torch.equal(actual[:1], within)
    assert float(actual[1:].abs().max()) == pytest.approx(1)


def test_the_dynamic_threshold_takes_batches_of_any_size():
    d = torch.linspace(0, 4, 2**24 + 2).reshape(2, -1)
    reach = DynamicThreshold(answer(d), 0.5)(d, HALF).abs().amax(1)
    torch.testing.assert_close(reach, torch.ones(2))


@pytest.mark.parametrize("wrap", [StaticThreshold, DynamicThreshold])
def test_no_sample_depends_on_the_rest_of_its_batch(wrap):
    d = torch.logspace(-1, 2, 6)[:, None, None] * normal(6, 3, 3).float()
    together = wrap(answer(d))(d, HALF)
    for i in range(6):
        assert torch.equal(wrap(answer(d[i : i + 1]))(d, HALF), together[i : i + 1])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(wrap(answer(d[order]))(d, HALF), together[order])


def test_the_two_thresholds_agree_where_the_quantile_is_within_the_limit():
    d = normal(2, 100).clamp(-0.9, 0.9)
    d[:, 0] = 7.0
    assert torch.equal(DynamicThreshold(answer(d), 0.9)(d, HALF), StaticThreshold(answer(d))(d, HALF))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynamicThreshold(answer(X), quantile=0.0), r"quantile must lie in \(0, 1\], got 0"),
        (lambda: DynamicThreshold(answer(X), quantile=99.5), r"quantile must lie in \(0, 1\], got 99\.5"),
        (lambda: DynamicThreshold(answer(X), quantile=float("nan")), "quantile must .* got nan"),
        (lambda: DynamicThreshold(answer(X), limit=0.0), r"limit must lie in \(0, inf\), got 0"),
        (lambda: StaticThreshold(answer(X), limit=-1.0), r"limit must lie in \(0, inf\), got -1"),
        (lambda: StaticThreshold(answer(X), limit=float("nan")), r"limit must lie in \(0, inf\), got nan"),
    ],
)
def test_a_threshold_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- what all have in common ------------------------------------------------------------------------------


def half(x, *_):
    return x / 2


DISCRETE = SCHEDULES["vp_discrete"]
WRAPPERS = {
    "noise": NoiseDenoiser(half, VPLinear()),
    "noise of flow": NoiseDenoiser(half, Flow()),
    "score": ScoreDenoiser(half, VPLinear()),
    "velocity": VelocityDenoiser(half, EDMasVP()),
    "flow": FlowDenoiser(half),
    "edm": EDMDenoiser(half, EDMasVP()),
    "discrete": NoiseDenoiser(DiscreteTime(half, DISCRETE), DISCRETE),
    "rescaled": FlowDenoiser(GuidedNetwork(half, torch.zeros(3, 2), torch.zeros(2), 7.5, Rescale())),
    "zero star": FlowDenoiser(GuidedNetwork(half, torch.zeros(3, 2), torch.zeros(2), 7.5, ZeroStar())),
    "guidance": ClassifierFreeGuidance(half, torch.zeros(3, 2), torch.zeros(2), 7.5),
    "static": StaticThreshold(half),
    "dynamic": DynamicThreshold(half, 0.7, 0.5),
    "nested": DynamicThreshold(NoiseDenoiser(half, VPLinear())),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_shape_and_dtype_follow_x(wrapper, dtype):
    for shape in [(3, 2), (3, 2, 4, 5)]:
        x = normal(*shape, dtype=dtype)
        actual = wrapper(x, HALF)
        assert (actual.shape, actual.dtype) == (x.shape, dtype)
        assert torch.isfinite(actual).all()
        exact = wrapper(x.double(), HALF)
        error = 16 * torch.finfo(dtype).eps * float(exact.abs().max() + x.double().abs().max() * 20)
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=max(error, 1e-6))


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_gradients_flow_into_x(wrapper):
    x = 0.3 * normal(3, 2)
    assert torch.autograd.gradcheck(lambda x: wrapper(x, HALF), x.requires_grad_(), atol=1e-5)
    (gradient,) = torch.autograd.grad(wrapper(x, HALF).sum(), x)
    assert gradient.any()


@pytest.mark.parametrize("name", ["noise", "score", "velocity", "flow", "edm", "discrete"])
def test_gradients_flow_into_the_time(name):
    """Learned times need them: through the schedule and through what the network is told."""
    x = normal(3, 2)

    def network(x, t):
        return torch.sin(x + t[:, None] / 10)

    wrapper = {
        "noise": NoiseDenoiser(network, VPLinear()),
        "score": ScoreDenoiser(network, VPLinear()),
        "velocity": VelocityDenoiser(network, VPLinear()),
        "flow": FlowDenoiser(network),
        "edm": EDMDenoiser(network, VPLinear()),
        "discrete": NoiseDenoiser(DiscreteTime(network, DISCRETE), DISCRETE),
    }[name]
    t = f64(0.4567).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: wrapper(x, t), t, atol=1e-5)


def test_gradients_flow_into_the_condition():
    condition = CONDITION.clone().requires_grad_()
    guided = ClassifierFreeGuidance(Conditional(), condition, NULL, 4.0)(X, HALF)
    (gradient,) = torch.autograd.grad(guided.sum(), condition)
    (plain,) = torch.autograd.grad(Conditional()(X, HALF, condition).sum(), condition)
    torch.testing.assert_close(gradient, 4 * plain)


def test_a_discrete_network_is_never_asked_outside_its_steps():
    schedule, steps = VPDiscrete(torch.linspace(0.9999, 0.005, 100, dtype=torch.float64)), []
    network = DiscreteTime(lambda x, t: steps.append(t) or x, schedule)
    for t in (1.3, 1.0, 0.5, 0.001):
        network(torch.zeros(2, 3), torch.full((2,), t))
    assert [float(t[0]) for t in steps] == pytest.approx([99.0, 99.0, 49.0, 0.0], abs=1e-4)


ALPHAS = VPDiscrete((1 - torch.linspace(1e-3, 0.2, 20, dtype=torch.float64)).cumprod(0))
PASSING = {
    "noise": lambda f: NoiseDenoiser(f, ALPHAS),
    "score": lambda f: ScoreDenoiser(f, ALPHAS),
    "velocity": lambda f: VelocityDenoiser(f, ALPHAS),
    "flow": FlowDenoiser,
    "edm": lambda f: EDMDenoiser(f, ALPHAS),
    "steps": lambda f: NoiseDenoiser(DiscreteTime(f, ALPHAS, rounded=True), ALPHAS),
    "threshold": lambda f: StaticThreshold(NoiseDenoiser(f, ALPHAS), 0.5),
    "dynamic": lambda f: DynamicThreshold(NoiseDenoiser(f, ALPHAS)),
}


@pytest.mark.parametrize("wrapper", PASSING.values(), ids=PASSING)
def test_wrappers_pass_a_condition_on(wrapper):
    x, t = torch.randn(3, 4), torch.tensor(0.5, dtype=torch.float64)
    condition = {"shift": torch.arange(3.0)[:, None], "scale": torch.tensor([2.0, 1.0, 0.5])[:, None]}

    def network(x, t, condition):
        return condition["scale"] * torch.sin(x) + condition["shift"]

    actual = wrapper(network)(x, t, condition)
    torch.testing.assert_close(actual, wrapper(lambda x, t: network(x, t, condition))(x, t))


@pytest.mark.parametrize("t", [0.05, 0.0501, 0.074, 0.076, 0.5, 0.9999, 1.0, 1.2])
def test_rounded_steps_are_the_nearest_that_an_embedding_has(t):
    table = torch.nn.Embedding(20, 2)
    devices = []

    def network(x, step):
        devices.append(step)
        return table(step)

    x, t = torch.randn(3, 2), torch.tensor(t, dtype=torch.float64)
    NoiseDenoiser(DiscreteTime(network, ALPHAS, rounded=True), ALPHAS)(x, t)
    expected = min(range(20), key=lambda step: abs((step + 1) / 20 - float(t)))
    assert (devices[0].dtype, devices[0].tolist()) == (torch.int64, [expected] * 3)


@pytest.mark.slow
def test_a_network_of_rounded_steps_is_learned_from():
    """Times snap to steps, so that their gradient is that of the schedule alone; everything else learns as ever."""
    exact = Gaussian(ALPHAS, 0.2, 0.5)

    def network(x, step):
        t = (step[0].double() + 1) / 20
        alpha, sigma = ALPHAS(t)
        x0 = exact.denoise(x, t) + 0.3 * torch.sin(3 * x)
        return ((x - alpha * x0) / sigma).to(x)

    denoise = NoiseDenoiser(DiscreteTime(network, ALPHAS, rounded=True), ALPHAS)
    model = gas.OwnModel(denoise, ALPHAS, (3,))
    pairs = gas.pairs.teach(model, gas.Classical("unipc-3-bh2", "log_snr", 19, model.t_end), range(48))
    solver = gas.GeneralizedSolver(ALPHAS, 3, model.t_end)
    *_, record = gas.fit(solver, model, pairs, config=gas.GaussNewton(iterations=4, batch=8))
    assert record.best_loss < 0.5 * record.start_loss
