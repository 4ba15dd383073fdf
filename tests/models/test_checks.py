"""What is wired wrongly is noticed: by a warning when a model is first bound, and by ``gas.check_model``."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

import gas
from gas.denoise import (
    DiscreteTime,
    EDMDenoiser,
    FlowDenoiser,
    NoiseDenoiser,
    StaticThreshold,
    VelocityDenoiser,
)
from gas.models.checks import time_problem
from support.doubles import Gaussian, Mixture

LINEAR = gas.VPDiscrete((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
COSINE = gas.VPDiscrete(torch.cos(torch.linspace(0.02, 1.56, 100, dtype=torch.float64)) ** 2)


class Exact(nn.Module):
    """The exact network of N(0.2, 0.5^2) data on a schedule, of any prediction; ``time`` maps its input."""

    def __init__(self, schedule, predicts, time=lambda t: t, table=0):
        super().__init__()
        self.data, self.predicts, self.time = Gaussian(schedule, 0.2, 0.5), predicts, time
        self.table = nn.Embedding(table, 1).requires_grad_(False) if table else None
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        t = self.time(t.reshape(-1)[0].double()).clamp(self.data.schedule.t_min + 1e-4, 1.0)
        alpha, sigma = self.data.schedule(t)
        x0 = self.data.denoise(x, t)
        eps = (x - alpha * x0) / sigma
        return {"noise": eps, "velocity": alpha * eps - sigma * x0, "flow": eps - x0, "x0": x0}[
            self.predicts
        ].float()


def step_of(schedule):
    return lambda step: (step.clamp(0, schedule.steps - 1) + 1) / schedule.steps


def looked_up(schedule):
    """A step that is looked up in a table, as integers only."""
    table = torch.arange(1, schedule.steps + 1).double() / schedule.steps
    return lambda step: nn.functional.embedding(step if step.ndim else step[None], table[:, None]).squeeze()


class Table(Exact):
    """Takes integer steps, as an ``nn.Embedding`` does."""

    def forward(self, x, t):
        self.table(t)
        return super().forward(x, t)


def model(denoiser, schedule, **more):
    return gas.OwnModel(denoiser, schedule, (3,), **more)


WRAPPER = {"noise": NoiseDenoiser, "velocity": VelocityDenoiser}
FORGOTTEN = {
    **{
        f"{predicts}-{name}": (
            WRAPPER[predicts](Exact(s, predicts, step_of(s)), s),
            s,
            r"DiscreteTime\(network, schedule\)",
        )
        for predicts in WRAPPER
        for name, s in {"linear": LINEAR, "cosine": COSINE}.items()
    },
    "on a continuous schedule": (
        NoiseDenoiser(Exact(LINEAR, "noise", step_of(LINEAR)), gas.VPLinear()),
        gas.VPLinear(),
        r"DiscreteTime\(network, schedule\) with schedule = gas\.VPDiscrete",
    ),
    "within a threshold": (
        StaticThreshold(NoiseDenoiser(Exact(LINEAR, "noise", step_of(LINEAR)), LINEAR)),
        LINEAR,
        "DiscreteTime",
    ),
    "a function": (
        NoiseDenoiser(lambda x, t: Exact(LINEAR, "noise", step_of(LINEAR))(x, t), LINEAR),
        LINEAR,
        "DiscreteTime",
    ),
    "a flow of 1000 t": (
        FlowDenoiser(Exact(gas.Flow(), "flow", lambda t: t / 1000)),
        gas.Flow(),
        r"lambda x, t: network\(x, 1000 \* t\)",
    ),
    "an embedding that rounds": (
        NoiseDenoiser(Exact(LINEAR, "noise", lambda t: step_of(LINEAR)(t.floor()), table=1000), LINEAR),
        LINEAR,
        r"nn\.Embedding of 1000 steps .*rounded=True",
    ),
}


@pytest.mark.parametrize(("denoiser", "schedule", "remedy"), FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_network_of_steps_that_is_given_t_is_noticed_once(denoiser, schedule, remedy):
    wrapped = model(denoiser, schedule)
    with pytest.warns(UserWarning, match=remedy) as caught:
        wrapped.bind(None)
    assert len(caught) == 1 and len(str(caught[0].message)) < 300
    wrapped.bind(None)
    (line,) = gas.check_model(model(denoiser, schedule))
    assert "hardly change" in line or "Embedding" in line


@pytest.mark.parametrize("forgotten", [True, False])
@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
def test_an_embedding_that_is_given_floats_is_one_clear_line(schedule, forgotten):
    network = Table(schedule, "noise", step_of(schedule), table=schedule.steps)
    inner = network if forgotten else DiscreteTime(network, schedule)
    wrapped = model(NoiseDenoiser(inner, schedule), schedule)
    with pytest.raises(
        ValueError, match=r"takes integer steps only .*DiscreteTime\(network, schedule, rounded=True\)"
    ):
        wrapped.bind(None)
    assert len(gas.check_model(wrapped)) == 1
    right = model(NoiseDenoiser(DiscreteTime(network, schedule, rounded=True), schedule), schedule)
    assert gas.check_model(right) == []


def exact(schedule, predicts, **more):
    return Exact(schedule, predicts, **more)


RIGHT = {
    "noise": (NoiseDenoiser(exact(gas.VPLinear(), "noise"), gas.VPLinear()), gas.VPLinear()),
    "velocity": (VelocityDenoiser(exact(gas.VPLinear(), "velocity"), gas.VPLinear()), gas.VPLinear()),
    "flow": (FlowDenoiser(exact(gas.Flow(), "flow")), gas.Flow()),
    "x0": (exact(gas.VPLinear(), "x0"), gas.VPLinear()),
    "steps": (
        NoiseDenoiser(DiscreteTime(exact(LINEAR, "noise", time=step_of(LINEAR)), LINEAR), LINEAR),
        LINEAR,
    ),
    "cosine": (
        VelocityDenoiser(DiscreteTime(exact(COSINE, "velocity", time=step_of(COSINE)), COSINE), COSINE),
        COSINE,
    ),
    "edm": (
        EDMDenoiser(lambda y, s: 0.2 + 0.25 / (0.25 + s[0] ** 2) * (y - 0.2), gas.EDMasVP()),
        gas.EDMasVP(),
    ),
    "a time in a column": (
        NoiseDenoiser(lambda x, t: x * t[:, None] + 50 * (t[:, None] - 1).relu(), gas.VPLinear()),
        gas.VPLinear(),
    ),
}


@pytest.mark.parametrize(("denoiser", "schedule"), RIGHT.values(), ids=RIGHT)
def test_nothing_is_said_of_what_is_right(denoiser, schedule):
    wrapped = model(denoiser, schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped.bind(None)
    if denoiser is not RIGHT["a time in a column"][0]:
        assert gas.check_model(wrapped) == []
    assert gas.check_model(Mixture()) == []


WRONG = {
    "velocity as noise": NoiseDenoiser(exact(gas.VPLinear(), "velocity"), gas.VPLinear()),
    "noise as velocity": VelocityDenoiser(exact(gas.VPLinear(), "noise"), gas.VPLinear()),
    "x0 as noise": NoiseDenoiser(exact(gas.VPLinear(), "x0"), gas.VPLinear()),
    "noise as x0": exact(gas.VPLinear(), "noise"),
    "direction": FlowDenoiser(lambda x, t: -exact(gas.Flow(), "flow")(x, 1 - t)),
    "nan at t = 1": lambda x, t: x * 0 / (1 - t),
    "shape": lambda x, t: x[:, :1],
    "dtype": lambda x, t: x.double() * 0,
    "fresh noise": lambda x, t: 0.3 * torch.randn_like(x),
    "batch statistics": lambda x, t: (
        0.1 * (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-6) + x.amax()
    ),
}


@pytest.mark.parametrize("denoiser", WRONG.values(), ids=WRONG)
def test_wrong_wiring_is_noticed(denoiser):
    schedule = gas.Flow() if isinstance(denoiser, FlowDenoiser) else gas.VPLinear()
    problems = gas.check_model(model(denoiser, schedule))
    assert problems and all(len(line) < 300 for line in problems)


def test_a_sample_shape_that_the_network_fails_on_is_one_line():
    layer = torch.nn.Linear(2, 2)
    problems = gas.check_model(gas.OwnModel(lambda x, t: layer(x), gas.VPLinear(), sample_shape=(3,)))
    assert len(problems) == 1 and "sample_shape (3,)" in problems[0]


def test_a_look_leaves_no_trace():
    """The global generator stays where it was, and the network was asked four times for one sample."""
    network = Exact(gas.VPLinear(), "noise")
    sizes = []

    def random(x, t):
        sizes.append(len(x))
        return network(x, t) + 1e-6 * torch.randn_like(x)

    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    wrapped = model(NoiseDenoiser(random, gas.VPLinear()), gas.VPLinear())
    wrapped.bind(None)
    wrapped.bind(None)
    assert torch.equal(torch.randn(4), expected)
    assert sizes == [1, 1, 1, 1]


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.Dropout2d(0.5), nn.BatchNorm1d(3), nn.BatchNorm2d(3)])
def test_layers_that_answer_otherwise_in_training_have_to_be_evaluating(layer):
    network = nn.Sequential(nn.Linear(3, 3), layer).requires_grad_(False)
    build = partial(gas.OwnModel, lambda x, t: x, gas.VPLinear(), (3,), weights=network)
    with pytest.raises(
        ValueError, match=rf"in evaluation mode, {type(layer).__name__} is not: call \.eval\(\)"
    ):
        build()
    network.eval()
    build()
    gas.OwnModel(lambda x, t: x, gas.VPLinear(), (3,), weights=nn.Sequential(nn.Dropout(0.0)))


def test_time_problem_does_not_look_into_foreign_functions():
    assert time_problem(model(lambda x, t: 1 / 0, gas.VPLinear())) == ""


@pytest.mark.parametrize("error", [ValueError, AssertionError, RuntimeError, KeyError, ZeroDivisionError])
@pytest.mark.parametrize("message", ["t must lie in [0, 1]", "t must lie in [0, 1], and is no integer step"])
def test_a_network_may_refuse_times_outside_its_range(error, message):
    exact = Exact(gas.VPLinear(), "noise")

    def network(x, t):
        if bool((t > 1).any()):
            raise error(message)
        return exact(x, t)

    wrapped = model(NoiseDenoiser(network, gas.VPLinear()), gas.VPLinear())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped.bind(None)
    assert gas.check_model(wrapped) == []
