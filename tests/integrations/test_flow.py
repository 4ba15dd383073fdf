"""Flow matching: the shifted grid, and classical solvers against diffusers' own flow schedulers, entry by entry."""

import math

import numpy as np
import pytest
import torch

import gas
from gas.classical.registry import candidates

# diffusers 0.42 with numpy 2 and torch 2.13
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FLOW = gas.Flow()


@pytest.fixture(scope="module")
def schedulers():
    return pytest.importorskip("diffusers.schedulers")


def probe(scheduler, **kwargs):
    """Read a scheduler's matrix: a network whose n-th data prediction is the n-th unit vector."""
    scheduler.set_timesteps(**kwargs)
    sigmas = scheduler.sigmas.double()
    steps = len(sigmas) - 1
    eye = torch.eye(steps + 1, dtype=torch.float64)
    x, rows = eye[0][None], [eye[0]]
    for n, t in enumerate(scheduler.timesteps):
        velocity = (x - eye[n + 1]) / sigmas[n]
        x = scheduler.step(velocity, t, x, return_dict=False)[0].double()
        rows.append(x[0])
    return torch.stack(rows), sigmas


def ours(build, sigmas):
    return build(FLOW, sigmas).unrolled()


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.5])
def test_euler_on_the_shifted_grid_is_the_flow_pipelines_own_sampler(schedulers, shift):
    """As Flux, SD3 and their kind call it: sigmas from 1 in even steps, shifted by the scheduler."""
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for nfe in (1, 4, 9):
        matrix, sigmas = probe(scheduler, sigmas=np.linspace(1.0, 1 / nfe, nfe))
        t = gas.grids.flow_shifted(FLOW, nfe, 0.0, shift=shift)
        torch.testing.assert_close(t, sigmas, rtol=0, atol=1e-7)
        assert float(t[0]) == float(sigmas[0]) == 1.0
        torch.testing.assert_close(matrix, ours(gas.classical.ddim, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_a_dynamic_shift_is_the_exponential_of_mu(schedulers, mu):
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    _, sigmas = probe(scheduler, sigmas=np.linspace(1.0, 1 / 6, 6), mu=mu)
    t = gas.grids.flow_shifted(FLOW, 6, 0.0, shift=gas.grids.shift_of_mu(mu))
    torch.testing.assert_close(t, sigmas, rtol=0, atol=1e-7)


@pytest.mark.parametrize("nfe", [3, 6, 16])
def test_second_order_dpmpp_on_a_flow(schedulers, nfe):
    scheduler = schedulers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, solver_order=2
    )
    matrix, sigmas = probe(scheduler, num_inference_steps=nfe)
    assert float(sigmas[0]) < 1  # theirs starts a little late, with a state that is taken for pure noise
    table = ours(lambda s, t: gas.classical.dpmpp(s, t, order=2), sigmas)
    torch.testing.assert_close(matrix, table, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_on_a_flow(schedulers, variant, order):
    scheduler = schedulers.UniPCMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=3.0,
        solver_order=order,
        solver_type=variant,
    )
    matrix, sigmas = probe(scheduler, num_inference_steps=6)
    table = ours(lambda s, t: gas.classical.unipc(s, t, order, variant), sigmas)
    assert bool(table.isfinite().all())
    whole = 7 if variant == "bh2" else 6  # at sigma = 0 theirs divides infinity by infinity for bh1
    assert bool(matrix.isfinite().all()) == (variant == "bh2")
    torch.testing.assert_close(matrix[:whole], table[:whole], rtol=0, atol=1e-5)


def test_the_shift_is_exact_at_both_ends_and_refuses_what_is_not_positive():
    t = gas.grids.flow_shifted(FLOW, 7, 0.0, shift=11.0)
    assert (float(t[0]), float(t[-1])) == (1.0, 0.0)
    assert torch.equal(gas.grids.flow_shifted(FLOW, 7, 0.0, shift=1.0), gas.grids.time_uniform(FLOW, 7, 0.0))
    assert gas.grids.shift_of_mu(math.log(3)) == pytest.approx(3)
    with pytest.raises(ValueError, match=r"shift must lie in \(0, inf\), got -1"):
        gas.grids.flow_shifted(FLOW, 7, 0.0, shift=-1.0)


def test_the_shifted_grid_races_for_flows_only():
    grids = {
        name: {c.grid for c, _ in candidates(s, 4, 1e-3)}
        for name, s in (("flow", FLOW), ("vp", gas.VPLinear()))
    }
    assert "flow_shifted" in grids["flow"] and "flow_shifted" not in grids["vp"]
    assert {c.grid for c, _ in candidates(gas.VPLinear(), 4, 1e-3, grids=["flow_shifted"])} == {
        "flow_shifted"
    }
