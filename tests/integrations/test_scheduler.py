"""The diffusers contract: one result with gas.sample, no state left over, saved and loaded, every policy said aloud."""

import inspect
import json
import warnings
from dataclasses import replace

import diffusers
import pytest
import torch

import gas
from gas.integrations.diffusers.planning import Run
from gas.pipelines.process import process_of
from support.covering import thinned
from support.forks import run_fresh
from support.schedulers import CONFIGS, learned, network, noise, pipeline, scheduler

NAMES = list(CONFIGS)


def agree(a, b, tolerance=1e-12):
    return float((a - b).abs().max() / b.abs().max()) < tolerance


@pytest.fixture(params=thinned(NAMES, 4))
def name(request):
    return request.param


def test_a_pipeline_gets_what_sample_gives(name):
    gas_scheduler, table = scheduler(name)
    x = noise(2, 3, 4, 4)
    want = gas.sample(gas_scheduler.process.denoiser(network), x, table)
    assert agree(pipeline(gas_scheduler, x, 5), want)
    assert torch.equal(pipeline(gas_scheduler, x, 5), pipeline(gas_scheduler, x, 5)), (
        "state is left over between calls"
    )


@pytest.mark.parametrize("solver", ["dpmpp-3m", "unipc-3-bh2", "ipndm-4", "deis-3", "heun"])
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_every_classical_table_runs(name, solver):
    process, grid = process_of(CONFIGS[name]), "time_uniform"
    nfe = 7 if solver == "heun" and name == "flow" else 6
    table = gas.classical.SOLVERS[solver](
        process.schedule,
        gas.grids.GRIDS[grid](process.schedule, 4 if nfe == 7 else 6 // (1 + (solver == "heun")), 0.05),
    )
    gas_scheduler, x = gas.GASScheduler.from_config(CONFIGS[name], solver=table), noise(2, 5)
    assert agree(
        pipeline(gas_scheduler, x, table.nfe), gas.sample(gas_scheduler.process.denoiser(network), x, table)
    )


@pytest.mark.parametrize(
    ("name", "theirs"), [("vp", "DDIMScheduler"), ("v", "DDIMScheduler"), ("flow", "FlowMatch")]
)
def test_first_order_is_their_own_sampler(name, theirs):
    """DDIM between two training steps, and Euler on a flow, as diffusers computes them."""
    process, x = process_of(CONFIGS[name]), noise(2, 3, 4, 4, dtype=torch.float32)
    if theirs == "FlowMatch":
        other = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        other.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
        ours = gas.GASScheduler.from_config(CONFIGS[name], base="ddim/shifted")
        ours.set_timesteps(4)
    else:
        other = diffusers.DDIMScheduler.from_config(
            CONFIGS[name], clip_sample=False, timestep_spacing="trailing"
        )
        other.set_timesteps(4)
        ours = gas.GASScheduler.from_config(CONFIGS[name], base="ddim/time_uniform", schedule="pipeline")
        ours.set_timesteps(timesteps=other.timesteps)
    assert torch.allclose(ours.timesteps, other.timesteps.to(torch.float32), atol=1e-3)
    y = x
    # DDIM's last step goes to alpha = 1, ours to the first step.
    for n in range(4 if theirs == "FlowMatch" else 3):
        output = network(x, ours.timesteps[n].expand(2))
        x = ours.step(output, ours.timesteps[n], x).prev_sample
        y = other.step(output, other.timesteps[n], y).prev_sample
        assert torch.allclose(x, y, atol=2e-5)
    assert process.kind == ("flow" if theirs == "FlowMatch" else "vp")


def test_alphas_are_theirs():
    for cls in (diffusers.DDPMScheduler, diffusers.UniPCMultistepScheduler):
        for beta_schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            other = cls(beta_schedule=beta_schedule)
            ours = gas.GASScheduler.from_config(other.config)
            assert torch.allclose(ours.alphas_cumprod, other.alphas_cumprod, rtol=1e-6, atol=0)
            assert torch.allclose(ours.betas, other.betas, atol=1e-6)


def test_conversions_are_those_of_edm():
    other, process = diffusers.EDMEulerScheduler(), process_of(CONFIGS["edm"])
    t, y, output = torch.tensor(0.4, dtype=torch.float64), noise(3, 5), noise(3, 5, seed=1)
    sigma = process.signal_and_noise(t)[1]
    p, q = process.conversion(t)
    assert torch.allclose(p * y + q * output, other.precondition_outputs(y, output, sigma))
    assert torch.allclose(process.network_time(t), other.precondition_noise(sigma))
    assert torch.allclose(y * process.input_scale(t), other.precondition_inputs(y, sigma))
    gas_scheduler = gas.GASScheduler.from_config(CONFIGS["edm"])
    assert gas_scheduler.init_noise_sigma == pytest.approx(other.init_noise_sigma)


def test_signatures():
    def parameters(method):
        return list(inspect.signature(getattr(gas.GASScheduler, method)).parameters)

    assert parameters("set_timesteps")[1:] == ["num_inference_steps", "device", "timesteps", "sigmas", "mu"]
    assert parameters("step")[1:] == [
        *(
            "model_output",
            "timestep",
            "sample",
            "eta",
            "use_clipped_model_output",
            "generator",
            "variance_noise",
        ),
        "return_dict",
        "per_token_timesteps",
        "pred_original_sample",
    ]
    assert parameters("scale_noise")[1:] == ["sample", "timestep", "noise"]
    init = inspect.signature(gas.GASScheduler.__init__).parameters
    assert not {"steps_offset", "clip_sample"} & set(init)
    assert gas.GASScheduler.order == 1 and gas.GASScheduler.__module__ == "gas"
    karras = {e.name for e in diffusers.schedulers.KarrasDiffusionSchedulers}
    flow = {"FlowMatchEulerDiscreteScheduler"}
    assert set(gas.GASScheduler._compatibles) == karras - {"EDMEulerScheduler"} | flow


def test_fields_before_and_after_set_timesteps(name):
    gas_scheduler, _ = scheduler(name)
    x = noise(2, 3, 4, 4)
    assert len(gas_scheduler) == len(gas_scheduler.timesteps) == gas_scheduler.config.num_train_timesteps
    assert (
        len(gas_scheduler.sigmas) == len(gas_scheduler) + 1
        and gas_scheduler.num_inference_steps is gas_scheduler.step_index is gas_scheduler.begin_index is None
    )
    assert (
        gas_scheduler.scale_model_input(x, gas_scheduler.timesteps[3]).shape == x.shape
    )  # before set_timesteps
    gas_scheduler.set_timesteps(5)
    assert (
        gas_scheduler.num_inference_steps == len(gas_scheduler.timesteps) == 5
        and len(gas_scheduler.sigmas) == 6
        and gas_scheduler.sigmas[-1] == 0
    )
    assert gas_scheduler.timesteps.dtype == torch.float32 and bool((gas_scheduler.sigmas.diff() < 0).all())
    gas_scheduler.step(x, gas_scheduler.timesteps[0], x)
    assert gas_scheduler.step_index == 1
    gas_scheduler.set_timesteps(5)
    assert gas_scheduler.step_index is gas_scheduler.begin_index is None


def test_dict_and_tuple_agree_and_keep_dtype(name):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        gas_scheduler, _ = scheduler(name, timestep_dtype={2: str(dtype)[6:]}.get(dtype.itemsize, "float32"))
        x = noise(2, 3, 4, 4).to(dtype)
        gas_scheduler.set_timesteps(5)
        named = gas_scheduler.step(x, gas_scheduler.timesteps[0], x)
        gas_scheduler.set_timesteps(5)
        plain = gas_scheduler.step(x, gas_scheduler.timesteps[0], x, return_dict=False)
        assert torch.equal(named.prev_sample, plain[0]) and torch.equal(named.pred_original_sample, plain[1])
        assert plain[0].dtype == plain[1].dtype == dtype


def test_narrow_states_are_summed_wide():
    gas_scheduler, table = scheduler("vp", timestep_dtype="bfloat16")
    x, outputs = noise(2, 64).bfloat16(), [noise(2, 64, seed=n).bfloat16() for n in range(5)]
    gas_scheduler.set_timesteps(5)
    wide, states, answers = gas_scheduler.process, [x], []
    for n, output in enumerate(outputs):
        p, q = wide.conversion(table.times[n])
        answers.append(p * states[n].double() + q * output.double())
        want = sum(
            table.states[n, j] * states[j].double() + table.outputs[n, j] * answers[j] for j in range(n + 1)
        )
        states.append(gas_scheduler.step(output, gas_scheduler.timesteps[n], states[n]).prev_sample)
        assert float((states[-1].double() - want).abs().max() / want.abs().max()) < 2**-8


@pytest.mark.filterwarnings("ignore:.*(no table for NFE|starts at step).*")
def test_any_number_of_steps_unknown_times_and_repeats(name):
    gas_scheduler, _ = scheduler(name)
    x = noise(2, 3, 4, 4)
    for nfe in (1, 2, 3, 11, 50):
        assert bool(torch.isfinite(pipeline(gas_scheduler, x, nfe)).all())
    gas_scheduler.set_timesteps(50)
    first, second = (
        gas_scheduler.step(x, gas_scheduler.timesteps[5], x).prev_sample,
        gas_scheduler.step(x, gas_scheduler.timesteps[6], x).prev_sample,
    )
    assert first.shape == second.shape == x.shape
    for unknown in (0, 1, 7.5, torch.tensor(3)):
        gas_scheduler.set_timesteps(10)
        assert bool(torch.isfinite(gas_scheduler.step(x, unknown, x).prev_sample).all())
    with pytest.warns(UserWarning, match="a scheduler serves one run at a time"):
        again = [gas_scheduler.step(x, gas_scheduler.timesteps[0], x).prev_sample for _ in range(30)]
    assert all(bool(torch.isfinite(x).all()) for x in again)


def test_after_the_last_step_a_run_starts_afresh():
    gas_scheduler, _ = scheduler("vp")
    x = noise(2, 5)
    gas_scheduler.set_timesteps(5)
    first = [gas_scheduler.step(network(x, t[None]), t, x).prev_sample for t in gas_scheduler.timesteps]
    again = [gas_scheduler.step(network(x, t[None]), t, x).prev_sample for t in gas_scheduler.timesteps]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_step_before_set_timesteps_says_what_to_do():
    x = noise(1, 2)
    with pytest.raises(ValueError, match=r"call set_timesteps\(num_inference_steps\) before step"):
        gas.GASScheduler().step(x, 3, x)


def test_add_noise_is_the_forward_process(name):
    gas_scheduler, _ = scheduler(name)
    x, e = noise(3, 4, 2), noise(3, 4, 2, seed=1)
    gas_scheduler.set_timesteps(5)
    times = gas_scheduler.timesteps[[0, 2, 4]]
    a, s = gas_scheduler.process.signal_and_noise(gas_scheduler._times[[0, 2, 4]])
    want = a[:, None, None] * x + s[:, None, None] * e
    assert agree(gas_scheduler.add_noise(x, e, times), want)
    assert torch.equal(gas_scheduler.scale_noise(x, times, e), gas_scheduler.add_noise(x, e, times))
    inverse = gas_scheduler.process.time(gas_scheduler.process.network_time(gas_scheduler._times))
    assert torch.allclose(inverse, gas_scheduler._times, atol=1e-9)


def test_learned_variance_is_left_out():
    gas_scheduler, _ = scheduler("vp")
    x = noise(2, 3, 4, 4)
    gas_scheduler.set_timesteps(5)
    plain = gas_scheduler.step(x, gas_scheduler.timesteps[0], x).prev_sample
    gas_scheduler.set_timesteps(5)
    assert torch.equal(
        gas_scheduler.step(torch.cat([x, 9 * x], 1), gas_scheduler.timesteps[0], x).prev_sample, plain
    )


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_a_start_in_the_middle_is_a_fresh_base_solver(name):
    gas_scheduler, table = scheduler(name, base="dpmpp-2m/log_snr" if name != "flow" else "dpmpp-2m/shifted")
    process, x0 = gas_scheduler.process, noise(2, 3, 4, 4)
    gas_scheduler.set_timesteps(5)
    start = gas_scheduler.add_noise(x0, noise(2, 3, 4, 4, seed=1), gas_scheduler.timesteps[2:3].expand(2))
    with pytest.warns(
        UserWarning, match=r"starts at step 2 of 5, where the table of NFE 5 lacks its history: dpmpp-2m"
    ):
        got = pipeline(gas_scheduler, start, 5, begin=2)
    # Independently: DPM-Solver++(2M) written out in half log-SNR, arXiv 2211.01095, on the pipeline's states.
    t = torch.cat([table.times[2:], torch.tensor([process.t_end], dtype=torch.float64)])
    alpha, sigma = process.schedule(t)
    lam, x = process.schedule.half_log_snr(t), start * (process.schedule(t[0])[0] if name == "edm" else 1)
    denoise, last = process.denoiser(network), None
    for n in range(3):
        d, h = denoise(x, t[n]), lam[n + 1] - lam[n]
        use = d if last is None else d + (h / (lam[n] - lam[n - 1])) / 2 * (d - last)
        use = d if n == 2 and bool(torch.isinf(h)) else use
        x, last = sigma[n + 1] / sigma[n] * x - alpha[n + 1] * torch.expm1(-h) * use, d
    assert agree(got, x, 1e-10)


@pytest.mark.parametrize(("name", "repeats"), [("vp", True), ("edm", True), ("vp", False), ("flow", False)])
def test_a_start_in_the_middle_skips_times_that_do_not_decrease(name, repeats):
    """Heun evaluates twice at a time, and a learned table may go back."""
    keys, process, x = {"base": "heun/log_snr"}, process_of(CONFIGS[name]), noise(2, 5)
    if not repeats:
        keys = {"solver": replace(scheduler(name, 4)[1], times=torch.tensor([1, 0.6, 0.65, 0.2]).double())}
    gas_scheduler = gas.GASScheduler.from_config(CONFIGS[name], **keys)
    with pytest.warns(UserWarning, match=r"starts at step 1 of 4, .*: unipc-2-bh2 does the rest"):
        got = pipeline(gas_scheduler, x, 4, begin=1)
    plan = gas_scheduler._plan
    assert plan.t[2] >= plan.t[1]
    plan = gas_scheduler._planner._on_grid("unipc-2-bh2", plan.t[[1, 3]], plan.t_end)
    run = Run(plan, process)
    for t in plan.t:
        time = process.network_time(t).float()
        x = run.step(network(x * process.input_scale(t), time.expand(len(x))), x)[0]
    assert agree(got, x)


def test_the_warning_names_the_solver_that_runs_in_place_of_heun():
    gas_scheduler, _ = scheduler("flow", base="heun/shifted")
    with pytest.warns(UserWarning, match="no table for NFE 4; .* running unipc-2-bh2/shifted instead"):
        gas_scheduler.set_timesteps(4)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
@pytest.mark.parametrize("changed", [(1,), (2, 3), (4,)])
def test_states_that_the_pipeline_changes_count(name, changed):
    """Inpainting puts known pixels back between steps: every row then weighs the states as they became."""
    gas_scheduler, table = scheduler(name)
    gas_scheduler.set_timesteps(5)
    scales = (
        1 / gas_scheduler.process.schedule(table.times)[0]
        if name == "edm"
        else torch.ones(5, dtype=torch.float64)
    )
    y, states, answers = noise(2, 6) * gas_scheduler.init_noise_sigma, [], []
    for n, t in enumerate(gas_scheduler.timesteps):
        y = torch.cat([noise(2, 3, seed=n), y[:, 3:]], dim=1) if n in changed else y
        output = network(gas_scheduler.scale_model_input(y, t), t.expand(2))
        p, q = gas_scheduler.process.conversion(table.times[n])
        states.append(y / scales[n])
        answers.append(p * y + q * output)
        y = gas_scheduler.step(output, t, y).prev_sample
        want = sum(table.states[n, j] * states[j] + table.outputs[n, j] * answers[j] for j in range(n + 1))
        assert agree(y, want * (scales[n + 1] if n < 4 else 1), 1e-11)


def test_unsaid_starts_are_found_by_their_time():
    gas_scheduler, _ = scheduler("vp")
    x = noise(2, 5)
    gas_scheduler.set_timesteps(5)
    with pytest.warns(UserWarning, match="starts at step 3 of 5"):
        a = gas_scheduler.step(x, gas_scheduler.timesteps[3], x).prev_sample
    gas_scheduler.set_timesteps(5)
    gas_scheduler.set_begin_index(3)
    assert torch.equal(gas_scheduler.step(x, gas_scheduler.timesteps[3], x).prev_sample, a)


def test_missing_nfe():
    gas_scheduler, _ = scheduler("vp", base="unipc-3-bh1/time_uniform")
    with pytest.warns(
        UserWarning, match=r"no table for NFE 7; it has NFE 5: running unipc-3-bh1/time_uniform instead"
    ):
        got = pipeline(gas_scheduler, noise(2, 5), 7)
    table = gas.Classical("unipc-3-bh1", "time_uniform", 7, gas_scheduler.process.t_end).table(
        gas_scheduler.process.schedule
    )
    assert agree(got, gas.sample(gas_scheduler.process.denoiser(network), noise(2, 5), table))
    gas_scheduler, _ = scheduler("vp", missing_nfe="error")
    with pytest.raises(ValueError, match="no table for NFE 7; it has NFE 5"):
        gas_scheduler.set_timesteps(7)


def test_base_is_what_training_started_from():
    process = process_of(CONFIGS["vp"])
    artefact = gas.save(None, learned(process), starts={5: "deis-3/karras"})
    with pytest.warns(UserWarning, match="running deis-3/karras instead"):
        gas.GASScheduler.from_config(CONFIGS["vp"], solver=artefact).set_timesteps(6)


def test_handed_over_sigmas():
    gas_scheduler, _ = scheduler("flow")
    x, levels = noise(2, 5), [1.0, 0.8, 0.6, 0.4, 0.2]
    want = pipeline(gas_scheduler, x, 5)
    assert torch.equal(
        pipeline(gas_scheduler, x, sigmas=levels), want
    )  # the default that pipelines pass: silent
    with pytest.warns(UserWarning, match="of the sigmas passed only the number, 5, is used"):
        assert torch.equal(pipeline(gas_scheduler, x, sigmas=[1.0, 0.9, 0.7, 0.5, 0.3]), want)
    gas_scheduler, _ = scheduler("flow", schedule="pipeline", base="ddim/shifted")
    gas_scheduler.set_timesteps(sigmas=levels)
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    other.set_timesteps(sigmas=levels)
    assert torch.allclose(gas_scheduler.timesteps, other.timesteps) and torch.allclose(
        gas_scheduler.sigmas, other.sigmas
    )


def test_dynamic_shift_and_terminal_are_theirs():
    other = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    gas_scheduler = gas.GASScheduler.from_config(other.config)
    for scheduler_ in (gas_scheduler, other):
        scheduler_.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.9)
    assert torch.allclose(gas_scheduler.timesteps, other.timesteps)
    assert not gas_scheduler.config.use_flow_sigmas and gas_scheduler.config.base_image_seq_len == 256
    with pytest.raises(ValueError, match="mu must be passed where use_dynamic_shifting=True"):
        gas_scheduler.set_timesteps(4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_vp_levels_and_times_handed_over():
    other = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear")
    other.set_timesteps(4)
    gas_scheduler = gas.GASScheduler.from_config(other.config, schedule="pipeline")
    gas_scheduler.set_timesteps(sigmas=other.sigmas.tolist()[:-1])
    # Theirs interpolates in sigma, ours in log alpha.
    assert torch.allclose(gas_scheduler.timesteps, other.timesteps, atol=0.51)
    assert torch.allclose(gas_scheduler.sigmas[:-1], other.sigmas[:-1], rtol=1e-5)
    gas_scheduler.set_timesteps(timesteps=[999, 850, 24])
    assert gas_scheduler.timesteps.tolist() == pytest.approx([999, 850, 24])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize("name", ["vp", "x0", "edm", "edm-v", "cosine", "flow", "zero-snr"])
def test_a_schedulers_own_levels_and_times_may_be_handed_over(name):
    """In float32 the first of them lies beyond the highest level, by rounding."""
    gas_scheduler = gas.GASScheduler.from_config(CONFIGS[name], schedule="pipeline")
    gas_scheduler.set_timesteps(5)
    times, levels = gas_scheduler.timesteps.clone(), gas_scheduler.sigmas.clone()
    for passed in ({"timesteps": times}, {"sigmas": levels}):
        gas_scheduler = gas.GASScheduler.from_config(gas_scheduler.config, shift=1.0)
        gas_scheduler.set_timesteps(**passed)
        assert torch.allclose(gas_scheduler.timesteps, times, rtol=1e-4, atol=1e-4)


def test_narrow_times_are_snapped_and_said():
    gas_scheduler, table = scheduler("vp")
    gas_scheduler.set_timesteps(5)
    x = noise(1, 2).bfloat16()
    with pytest.warns(UserWarning, match=r"computes in bfloat16: .* gets .* timestep_dtype='bfloat16'"):
        gas_scheduler.step(x, gas_scheduler.timesteps[0], x)
    snapped, _ = scheduler("vp", timestep_dtype="bfloat16")
    snapped.set_timesteps(5)
    assert torch.equal(snapped.timesteps, gas_scheduler.timesteps.bfloat16().float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = snapped.step(x, snapped.timesteps[0], x).prev_sample
    d = gas_scheduler.process.conversion(table.times[0])
    want = table.states[0, 0] * x + table.outputs[0, 0] * (d[0] * x.double() + d[1] * x.double())
    assert float((ours - want).abs().max() / want.abs().max()) < 2**-7  # the learned time's own coefficients


def mismatched(tmp_path, **changed):
    process = process_of(CONFIGS["vp"])
    model = gas.OwnModel(lambda x, t: x, process.schedule, (3, 4, 4), t_end=process.t_end)
    artefact = gas.save(None, learned(process), model=model, guidance=2.0)
    document = artefact.document.model_copy(update={"model": {**artefact.document.model, **changed}})
    return gas.solver_file.Artefact(document, "made.json")


def test_what_does_not_fit_is_said_or_refused(tmp_path):
    cases = [
        ({"guidance_scale": 7.5}, {}, r"guidance 2 \(this pipeline: 7.5\)"),
        ({"beta_end": 0.02}, {}, "schedule vp_discrete with other noise levels"),
        ({}, {"sample_shape": [3, 8, 8]}, r"sample shape \(3, 8, 8\) \(this pipeline: \(3, 4, 4\)\)"),
        ({}, {"prediction": "v_prediction"}, r"prediction v_prediction \(this pipeline: epsilon\)"),
    ]
    x = noise(1, 3, 4, 4)
    for keys, changed, words in cases:
        solver = mismatched(tmp_path, **changed)
        for strict in (False, True):
            gas_scheduler = gas.GASScheduler.from_config(CONFIGS["vp"], solver=solver, strict=strict, **keys)
            gas_scheduler.set_timesteps(5)
            context = (
                pytest.raises(ValueError, match=words) if strict else pytest.warns(UserWarning, match=words)
            )
            with context:
                gas_scheduler.step(x, gas_scheduler.timesteps[0], x)
    gas_scheduler = gas.GASScheduler.from_config(
        CONFIGS["vp"], solver=mismatched(tmp_path), guidance_scale=2.0, strict=True
    )
    gas_scheduler.set_timesteps(5)
    gas_scheduler.step(x, gas_scheduler.timesteps[0], x)


def test_shift_is_compared():
    process = process_of(CONFIGS["flow"])
    model = gas.OwnModel(lambda x, t: x, process.schedule, (2,), t_end=0.0)
    artefact = gas.save(None, learned(process), model=model)
    document = artefact.document.model_copy(update={"model": {**artefact.document.model, "shift": 6.0}})
    gas_scheduler = gas.GASScheduler.from_config(
        CONFIGS["flow"], solver=gas.solver_file.Artefact(document, "s"), strict=True
    )
    gas_scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=r"shift 6 \(this pipeline: 3\)"):
        gas_scheduler.step(noise(1, 2), gas_scheduler.timesteps[0], noise(1, 2))


def test_a_table_of_another_vp_schedule_runs_at_its_levels():
    """EDM networks are told levels, so the solvers of any VP schedule are exact; the paper's use EDMasVP."""
    schedule = gas.EDMasVP(1e-3)
    with torch.no_grad():
        table = gas.GeneralizedSolver(schedule, 5, 1e-3)().detach()
    solver = gas.save(None, gas.GeneralizedSolver(schedule, 5, 1e-3))
    gas_scheduler, x = gas.GASScheduler.from_config(CONFIGS["edm"], solver=solver, strict=True), noise(2, 5)

    def edm(y, sigma):
        c_in, c_skip = 1 / (sigma**2 + 0.25).sqrt(), 0.25 / (sigma**2 + 0.25)
        return c_skip[:, None] * y + (sigma * 0.5 * c_in)[:, None] * network(
            c_in[:, None] * y, (sigma.log() / 4).float()
        )

    assert agree(
        pipeline(gas_scheduler, x, 5), gas.sample(gas.denoise.EDMDenoiser(edm, schedule), x, table), 1e-9
    )


def test_a_flow_table_is_refused_by_a_vp_pipeline():
    gas_scheduler = gas.GASScheduler.from_config(
        CONFIGS["vp"], solver=gas.save(None, learned(process_of(CONFIGS["flow"])))
    )
    with pytest.raises(
        ValueError, match="made for schedule Flow, the pipeline has VPDiscrete: no table serves both"
    ):
        gas_scheduler.set_timesteps(5)


def test_unsupported_schedulers_and_arguments():
    for config in (diffusers.LCMScheduler().config, {"_class_name": "VQDiffusionScheduler"}):
        with pytest.raises(ValueError, match=r"scheduler \w+ is not supported.*Supported are"):
            gas.GASScheduler.from_config(config)
    for keys, words in [
        ({"prediction_type": "epsylon"}, "prediction_type must be one of epsilon"),
        ({"schedule": "mine"}, "schedule must be one of learned, pipeline, got 'mine'"),
        ({"missing_nfe": "no"}, "missing_nfe must be one of base, error"),
        ({"base": 5}, "base must be 'SOLVER/GRID', got 5"),
        ({"sigma_data": 0.5}, r"sigma_min must be a number in \(0, inf\), got None"),
        (
            {"sigma_data": 0.5, "sigma_min": 2.0, "sigma_max": 1.0},
            r"sigma_max must lie in \(2.0, inf\), got 1.0",
        ),
        (
            {"sigma_data": 0.5, "sigma_min": 1.0, "sigma_max": 2.0, "level_embedding": "x"},
            "level_embedding must be",
        ),
        ({"trained_betas": "abc"}, "trained_betas must be a list of numbers, got 'abc'"),
        ({"trained_betas": []}, r"trained_betas must be a list of numbers, got \[\]"),
        ({"beta_start": "x"}, r"beta_start must be a number in \[0, inf\), got 'x'"),
        ({"num_train_timesteps": -5}, "num_train_timesteps must be from 1 to 1,000,000, got -5"),
        (
            {"num_train_timesteps": 0, "prediction_type": "flow_prediction"},
            "num_train_timesteps must be from 1 to",
        ),
        ({"shift": 0.0, "prediction_type": "flow_prediction"}, r"shift must lie in \(0, inf\), got 0.0"),
        ({"shift_terminal": "x"}, r"shift_terminal must be a number in \[0, 1\), got 'x'"),
        ({"guidance_scale": "7"}, r"guidance_scale must be a number in \(-inf, inf\), got '7'"),
        ({"base": "ddim"}, "base must be .SOLVER/GRID., got .ddim.: grids are .*log_snr"),
        ({"base": "unipc-9/log_snr"}, "unknown solver 'unipc-9'"),
        (
            {"solver": {"format": "gas-solver", "solvers": []}},
            "solver in the scheduler's config is damaged: solvers",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            gas.GASScheduler(**keys)
    gas_scheduler = gas.GASScheduler()
    for arguments, words in [
        ({}, "num_inference_steps must be an integer, got None"),
        ({"num_inference_steps": 0}, "must be from 1 to 1,000, got 0"),
        ({"sigmas": []}, r"sigmas must be a list of numbers, got \[\]"),
        ({"timesteps": "abc"}, "timesteps must be a list of numbers, got 'abc'"),
        ({"num_inference_steps": 3, "timesteps": [9, 1]}, "is 3 but 2 timesteps or sigmas were passed"),
        ({"timesteps": [9, 1], "sigmas": [9.0, 1.0]}, "pass one of them"),
    ]:
        with pytest.raises(ValueError, match=words):
            gas_scheduler.set_timesteps(**arguments)
    gas_scheduler.set_timesteps(3)
    gas_scheduler.set_begin_index(3)
    with pytest.raises(gas.UserError, match="begin_index must be from 0 to 2, got 3"):
        gas_scheduler.step(noise(1, 2), gas_scheduler.timesteps[0], noise(1, 2))
    gas_scheduler.set_timesteps(3)
    with pytest.raises(gas.UserError, match=r"must be of the shape of x, \(5,\), got \(5, 3\)"):
        gas_scheduler.step(noise(5, 3), gas_scheduler.timesteps[0], noise(5))
    gas_scheduler.set_timesteps(3)
    with pytest.warns(UserWarning, match="eta=1 has no effect"):
        gas_scheduler.step(noise(1, 2), gas_scheduler.timesteps[0], noise(1, 2), eta=1.0)


def test_back_to_another_scheduler():
    gas_scheduler, _ = scheduler("vp")
    other = diffusers.DPMSolverMultistepScheduler.from_config(gas_scheduler.config)
    assert other.config.beta_schedule == "scaled_linear" and other.config.beta_end == 0.012
    assert json.loads(gas_scheduler.to_json_string())["solver"] == "solver.json"


@pytest.mark.slow
def test_missing_diffusers_names_the_extra():
    code = (
        "import gas, gas.integrations.k_diffusion\n"
        "try: gas.GASScheduler\nexcept ImportError as error: print(error)"
    )
    assert "pip install 'gas-solver[diffusers]'" in run_fresh(code, without=["diffusers"])
