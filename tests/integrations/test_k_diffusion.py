"""k-diffusion's form: exact in VP and sigma form, hands over what hosts expect, refuses what is no ladder."""

import sys
import types

import pytest
import torch

import gas
from gas.integrations.k_diffusion import sample_gas, sigmas_of
from gas.learned.guidance import GuidanceBNS
from gas.pipelines.process import process_of
from support.schedulers import learned, network as raw, noise

SCHEDULES = {"linear": gas.VPLinear(), "edm": gas.EDMasVP(1e-3), "flow": gas.Flow()}


def solver_of(name):
    schedule = SCHEDULES[name]
    process = types.SimpleNamespace(schedule=schedule, t_end=0.0 if name == "flow" else 1e-3)
    return gas.save(None, learned(process)), schedule


def denoised(y, sigma):
    """An estimate of the clean sample from a state in sigma form (or of a flow)."""
    assert sigma.shape == (len(y),)
    return raw(y / (1 + sigma[:, None] ** 2).sqrt(), 9 * sigma)


@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_sample(name):
    artefact, schedule = solver_of(name)
    x, table = noise(3, 6), artefact.table(5)

    def denoise(x, t):
        alpha, sigma = schedule(t)
        if name == "flow":
            return denoised(x, sigma.expand(len(x)))
        return denoised(x / alpha, (sigma / alpha).expand(len(x)))

    first = float(1 if name == "flow" else 1 / schedule(table.times[0])[0])
    calls = []
    got = sample_gas(
        denoised, x * first, sigmas_of(artefact), callback=calls.append, disable=True, solver=artefact
    )
    want = gas.sample(denoise, x, table)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-12
    assert [set(s) for s in calls] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * 5
    assert [s["i"] for s in calls] == list(range(5)) and torch.equal(calls[0]["x"], x * first)
    assert torch.equal(calls[2]["denoised"], denoised(calls[2]["x"], calls[2]["sigma"].expand(3)))
    sigmas = sigmas_of(artefact)
    assert (
        sigmas[-1] == 0
        and len(sigmas) == 6
        and torch.allclose(torch.stack([s["sigma"] for s in calls]).float(), sigmas[:-1])
    )


def test_vp_to_sigma_form_is_sqrt_one_plus_sigma_squared():
    """x_k = x sqrt(1 + sigma^2): what hosts scale the first noise by."""
    artefact, schedule = solver_of("linear")
    sigma = sigmas_of(artefact).double()[0]
    assert float(1 / schedule(artefact.table(5).times[0])[0]) == pytest.approx(
        float((1 + sigma**2).sqrt()), rel=1e-6
    )


def test_extra_args_files_and_bare_tables(tmp_path):
    artefact, schedule = solver_of("edm")
    x, sigmas, table = noise(2, 4), sigmas_of(artefact), artefact.table(5)
    gas.save(tmp_path / "s.json", table)
    scaled = lambda y, s, by: by * denoised(y, s)  # noqa: E731
    a = sample_gas(scaled, x, sigmas, {"by": 0.5}, solver=artefact, disable=True)
    b = sample_gas(
        scaled, x, sigmas, {"by": 0.5}, solver=tmp_path / "s.json", schedule=schedule, disable=True
    )
    c = sample_gas(scaled, x, sigmas, {"by": 0.5}, solver=table, schedule=schedule, disable=True)
    assert torch.equal(a, b) and torch.equal(a, c)
    with pytest.raises(ValueError, match="schedule must be given"):
        sigmas_of(table)


def test_other_sigmas_run_the_base_solver():
    """DPM-Solver++(2M) as k-diffusion writes it, on a ladder that is not the solver's own."""
    artefact, _ = solver_of("edm")
    sigmas = torch.tensor([10.0, 4.0, 1.5, 0.5, 0.1, 0.0], dtype=torch.float64)
    x = 10 * noise(2, 4)
    with pytest.warns(UserWarning, match="these 5 sigmas are not the solver's own"):
        got = sample_gas(denoised, x, sigmas, solver=artefact, disable=True)
    last, y = None, x
    for i in range(5):
        d = denoised(y, sigmas[i].expand(2))
        if float(sigmas[i + 1]) == 0:
            y = d
            break
        t, following = -sigmas[i].log(), -sigmas[i + 1].log()
        h, use = following - t, d
        if last is not None:
            r = (t + sigmas[i - 1].log()) / h
            use = (1 + 1 / (2 * r)) * d - last / (2 * r)
        y, last = sigmas[i + 1] / sigmas[i] * y - torch.expm1(-h) * use, d
    assert torch.allclose(got, y, atol=1e-10)
    with pytest.warns(UserWarning, match="these 1 sigmas"):
        last = sample_gas(denoised, x, sigmas[-2:], solver=artefact, disable=True)
    assert torch.equal(last, denoised(x, sigmas[-2].expand(2)))
    with pytest.raises(ValueError, match=r"sigmas must be at least two levels ending in 0, got \[1.0, 0.5\]"):
        sample_gas(denoised, x, torch.tensor([1.0, 0.5]), solver=artefact)


def test_a_ladder_may_begin_at_the_noise_of_time_1_in_float32():
    """Stable Diffusion's, as k-diffusion computes it, and VPLinear's."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    for schedule in (gas.VPDiscrete((1 - betas).cumprod(0)), *SCHEDULES.values()):
        t = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
        levels = t if schedule == gas.Flow() else (-schedule.half_log_snr(t)).exp()
        solver = gas.classical.ddim(schedule, gas.grids.time_uniform(schedule, 4, 1e-3))
        for digits in (torch.float32, torch.float64):
            sigmas = torch.cat([levels.to(digits), torch.zeros(1)])
            with pytest.warns(UserWarning, match="these 3 sigmas"):
                x = sample_gas(denoised, noise(2, 4), sigmas, solver=solver, schedule=schedule, disable=True)
            assert bool(x.isfinite().all())


def ranged():
    """A file of a range of scales, at each of which its times and weights are others."""
    schedule = gas.VPLinear()
    table = gas.classical.ddim(schedule, gas.grids.time_uniform(schedule, 4, 1e-3))
    solver = GuidanceBNS.from_table(schedule, table, 1e-3, scales=(1.0, 8.0), reference=2.0)
    with torch.no_grad():
        solver.times[1] -= 0.1
        solver.beta[1] += 0.05
    return gas.save(None, solver)


def test_a_file_of_a_range_runs_the_scale_that_is_named():
    artefact, x = ranged(), noise(2, 4)
    one = artefact.at(6.5)
    sigmas = sigmas_of(artefact, guidance=6.5)
    assert torch.equal(sigmas, sigmas_of(one)) and not torch.equal(sigmas, sigmas_of(artefact.at(2.0)))
    got = sample_gas(denoised, x, sigmas, solver=artefact, guidance=6.5, disable=True)
    assert torch.equal(got, sample_gas(denoised, x, sigmas, solver=one, disable=True))
    with pytest.raises(gas.UserError, match="serves guidance 1 to 8, got 9"):
        sigmas_of(artefact, guidance=9.0)
    with pytest.raises(gas.UserError, match=r"guidance must be a number in .*, got '7'"):
        sigmas_of(artefact, guidance="7")


def test_a_file_of_a_range_without_a_scale_warns_and_runs_its_own():
    artefact, x = ranged(), noise(2, 4)
    with pytest.warns(
        UserWarning, match="serves guidance 1 to 8: running the solver of 2; guidance="
    ) as warned:
        sigmas = sigmas_of(artefact)
    assert warned[0].filename == __file__ and torch.equal(sigmas, sigmas_of(artefact.at(2.0)))
    with pytest.warns(UserWarning, match="running the solver of 2"):
        got = sample_gas(denoised, x, sigmas, solver=artefact, disable=True)
    assert torch.equal(got, sample_gas(denoised, x, sigmas, solver=artefact.at(2.0), disable=True))


def test_narrow_states_stay_narrow():
    artefact, _ = solver_of("edm")
    x = noise(2, 4).bfloat16()
    assert sample_gas(denoised, x, sigmas_of(artefact), solver=artefact, disable=True).dtype == torch.bfloat16


def test_comfyui_node(monkeypatch, tmp_path):
    """The host's names only: ``comfy.samplers.KSAMPLER(sampler_function)``, called as ComfyUI calls it."""
    from gas.integrations.comfyui import NODE_CLASS_MAPPINGS

    node, artefact = NODE_CLASS_MAPPINGS["GASSolver"], solver_of("edm")[0]
    gas.save(tmp_path / "s.json", gas.GeneralizedSolver(gas.EDMasVP(1e-3), 4, 1e-3))
    with pytest.raises(ImportError, match="runs inside ComfyUI"):
        node().load(str(tmp_path / "s.json"), 4)

    class KSAMPLER:
        def __init__(self, sampler_function, extra_options={}, inpaint_options={}):  # noqa: B006
            self.run = sampler_function

    host = types.ModuleType("comfy.samplers")
    host.KSAMPLER = KSAMPLER
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", host)
    sampler, sigmas = getattr(node(), node.FUNCTION)(str(tmp_path / "s.json"), 4)
    assert node.RETURN_TYPES == ("SAMPLER", "SIGMAS") and set(node.INPUT_TYPES()["required"]) == {
        "solver_file",
        "steps",
    }
    got = sampler.run(denoised, noise(2, 4), sigmas, extra_args={}, callback=None, disable=True)
    want = sample_gas(denoised, noise(2, 4), sigmas, solver=tmp_path / "s.json", disable=True)
    assert torch.equal(got, want)
    ranged().write(tmp_path / "range.json")
    sampler, sigmas = node().load(str(tmp_path / "range.json"), 4, guidance=6.5)
    assert list(node.INPUT_TYPES()["optional"]) == ["guidance"]
    assert torch.equal(sigmas, sigmas_of(tmp_path / "range.json", guidance=6.5))
    got = sampler.run(denoised, noise(2, 4), sigmas, extra_args={}, callback=None, disable=True)
    want = sample_gas(denoised, noise(2, 4), sigmas, solver=ranged().at(6.5), disable=True)
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="no table for NFE 9"):
        node().load(str(tmp_path / "s.json"), 9)
    assert artefact.nfes == [5] and process_of({}).kind == "vp"
