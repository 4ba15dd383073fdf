"""Finite differences: noise is found where it was put, and steps come near the least error of a derivative."""

import math

import pytest
import torch

from gas.classical.registry import Classical
from gas.errors import Diverged, UserError
from gas.learned.generalized import GeneralizedSolver
from gas.losses import FeatureLoss, l2
from gas.models.runtime import WrappedModel
from gas.training.distillation import distill
from gas.training.finite_differences import measure_line
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.linearization import evaluations_of, linearize, measure_differences
from support.doubles import MIXTURE as MODEL, taught

pytestmark = pytest.mark.usefixtures("few_classical_solvers")

PHASES = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SLOPE = 3 * PHASES * PHASES.cos()
NOISE = torch.Generator().manual_seed(1)


def waves(h):
    """Three hundred sines; the derivative at 0 is ``SLOPE``."""
    return torch.sin(PHASES * (1 + 3 * h))


def noisy(size):
    generator = torch.Generator().manual_seed(1)
    return lambda h: (waves(h) + size * torch.randn(300, generator=generator, dtype=torch.float64)).float()


def rounded(dtype):
    return lambda h: waves(h).to(dtype).float()


def rms(x):
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-2])
def test_noise_and_curvature_are_found_within_a_factor_of_two(size):
    line = measure_line(noisy(size))
    assert size / 2 < line.noise < 2 * size
    curvature = rms(9 * PHASES**2 * PHASES.sin())
    assert curvature / 2 < line.curvature < 2 * curvature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_rounding_is_noise(dtype):
    true = rms(rounded(dtype)(0.01) - waves(0.01))
    assert true / 2 < measure_line(rounded(dtype)).noise < 2 * true


@pytest.mark.parametrize(
    "function",
    [noisy(1e-5), noisy(1e-3), noisy(1e-2), rounded(torch.float16), rounded(torch.bfloat16), waves],
    ids=["1e-5", "1e-3", "1e-2", "fp16", "bf16", "float64"],
)
def test_the_step_comes_near_the_least_error_of_a_derivative(function):
    def error(h):
        return rms((function(h) - function(0.0)) / h - SLOPE) / rms(SLOPE)

    line = measure_line(function)
    least = min(error(2.0**-k) for k in range(2, 34))
    assert error(line.step) < 1.5 * least
    assert line.error == pytest.approx(error(line.step), rel=0.5)


def test_a_linear_function_takes_the_largest_step_and_a_constant_one_has_no_derivative():
    assert measure_line(lambda h: PHASES * (1 + h)).step == 1 / 8
    assert measure_line(lambda h: PHASES).error == math.inf


def test_steps_that_overflow_are_left_out_and_nan_is_refused():
    def overflowing(h):
        return waves(h) if h < 0.1 else waves(h) * math.inf

    assert measure_line(overflowing).step == pytest.approx(measure_line(waves).step, rel=0.5)
    with pytest.raises(Diverged, match="not finite"):
        measure_line(lambda h: waves(h) * math.nan)


def jacobian(denoise, x, table):
    """Derivatives in float64, with the steps for those predictions."""
    differences = measure_differences(denoise, x, table)
    return linearize(denoise, x, table, differences), differences


def test_noisy_predictions_have_central_differences_which_are_nearer():
    table = Classical("ipndm-2", "time_quadratic", 4, 1e-3).table(MODEL.schedule)
    x = MODEL.noise(range(32))
    (_, exact, _), precise = jacobian(MODEL.denoise, x.double(), table)
    assert not precise.central
    assert precise.noise < 1e-13

    def coarse(x, t):
        return MODEL.denoise(x, t).bfloat16().float()

    (_, columns, spent), differences = jacobian(coarse, x, table)
    assert differences.central
    assert 5e-4 < differences.noise < 4e-3  # 8 bits
    _, forward, fewer = linearize(coarse, x, table, precise)
    error = float((columns - exact).norm() / exact.norm())
    assert error < 0.1 < float((forward - exact).norm() / exact.norm())
    assert fewer < spent <= len(x) * evaluations_of(4, central=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_predictions_may_have_a_dtype_of_their_own(dtype):
    """A denoiser that returns halves teaches what one that rounds to them teaches."""
    halves, rounded = (
        model_of(change)
        for change in (
            lambda denoise, x, t: denoise(x, t).to(dtype),
            lambda denoise, x, t: denoise(x, t).to(dtype).to(x.dtype),
        )
    )
    losses = []
    for model in (halves, rounded):
        solver = GeneralizedSolver(MODEL.schedule, 2, 1e-3)
        steps = GaussNewtonSteps(solver, model, taught(range(16)), l2, GaussNewton(batch=8))
        losses.append([steps.step(), steps.step()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][1] < losses[0][0]
    features = FeatureLoss(lambda x: (2 * x).to(dtype))
    solver = GeneralizedSolver(MODEL.schedule, 2, 1e-3)
    steps = GaussNewtonSteps(solver, MODEL, taught(range(16)), features, GaussNewton(batch=8))
    assert math.isfinite(steps.step())


def model_of(change):
    class Changed(WrappedModel):
        def bind(self, labels, guidance=1.0):
            denoise = self.model.bind(labels, guidance)
            return lambda x, t: change(denoise, x, t)

    return Changed(MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda denoise, x, t: denoise(x, t) * math.nan, "no classical solver .* not finite"),
        (lambda denoise, x, t: denoise(x, 0.3 + 0 * t), "do not change with t"),
        (lambda denoise, x, t: denoise(x, t).sign(), "do not change with t: .* more bits"),
        (
            lambda denoise, x, t: denoise(x, t) + torch.randn(x.shape, generator=NOISE),
            "too coarse to be differentiated",
        ),
    ],
    ids=["nan", "same for every t", "one bit", "noise"],
)
def test_predictions_that_cannot_be_differentiated_are_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        list(distill(model_of(change), taught(range(32)), taught(range(100, 108)), 2))
    assert "\n" not in str(caught.value)
