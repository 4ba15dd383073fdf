"""Lifted solvers in other programs: what gas.sample gives, from memory and from a folder."""

import copy

import pytest
import torch

import gas
from gas.integrations.k_diffusion import sample_gas, sigmas_of
from gas.pipelines.process import process_of
from support.schedulers import CONFIGS, learned, network, noise, pipeline

SHAPE, ROWS = (2, 3, 4, 4), [(-1, 1, 3), (2,)]


def lifted(name, rows, nfe=4):
    table, generator, residuals = learned(process_of(CONFIGS[name]), nfe)().detach(), torch.Generator(), {}
    for row in rows:
        reads = (max(row + 1, 1), row + 1)
        scales = torch.linspace(0.5, 2, sum(reads) + 1)
        residuals[row] = gas.Residual("convolution", SHAPE[1], *reads, 4, scales=scales).requires_grad_(False)
        for parameter in residuals[row].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator.manual_seed(row + 2)))
    return gas.Table(table.times, table.states, table.outputs, residuals=residuals)


def agree(a, b):
    assert float((a - b).abs().max() / b.abs().max()) < 1e-12


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pipeline_gets_what_sample_gives(name, rows, tmp_path):
    table, x = lifted(name, rows), noise(*SHAPE)
    scheduler = gas.GASScheduler.from_config(CONFIGS[name], solver=table)
    expected = gas.sample(scheduler.process.denoiser(network), x, table)
    plain = gas.Table(table.times, table.states, table.outputs)
    assert not torch.allclose(expected, gas.sample(scheduler.process.denoiser(network), x, plain), atol=1e-2)
    for _ in range(2):  # nothing is left over between calls
        agree(pipeline(scheduler, x, 4), expected)
    agree(pipeline(copy.deepcopy(scheduler), x, 4), expected)
    scheduler.save_pretrained(tmp_path)
    assert (tmp_path / "solver.json").is_file()
    assert len(list(tmp_path.glob("solver-*.safetensors"))) == 1
    agree(pipeline(gas.GASScheduler.from_pretrained(tmp_path), x, 4), expected)


def test_a_batch_for_guidance_is_twice_that_of_the_state():
    """Pipelines hand scale_model_input two copies of the latents, and step one."""
    table, x = lifted("vp", (-1,)), noise(*SHAPE)
    scheduler = gas.GASScheduler.from_config(CONFIGS["vp"], solver=table)
    expected = pipeline(scheduler, x, 4)
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        both = network(scheduler.scale_model_input(torch.cat([x, x]), t), t.expand(2 * len(x)))
        x = scheduler.step(both.chunk(2)[0], t, x, return_dict=False)[0]
    agree(x, expected)


def test_a_pipeline_that_does_not_scale_its_input_cannot_correct_the_start():
    scheduler = gas.GASScheduler.from_config(CONFIGS["flow"], solver=lifted("flow", (-1,)))
    x = noise(*SHAPE)
    for _ in range(2):
        scheduler.set_timesteps(4)
        with pytest.raises(
            gas.UserError, match="corrects the start in scale_model_input, which this pipeline does not"
        ):
            scheduler.step(x, scheduler.timesteps[0], x)
        pipeline(scheduler, x, 4)


def test_a_run_from_the_middle_is_the_base_solvers_without_residuals():
    x, table = noise(*SHAPE), lifted("vp", (-1, 1))
    plain = gas.Table(table.times, table.states, table.outputs)
    results = []
    for solver in (table, plain):
        scheduler = gas.GASScheduler.from_config(CONFIGS["vp"], solver=solver)
        with pytest.warns(UserWarning, match="starts at step 2"):
            results.append(pipeline(scheduler, x, 4, begin=2))
    assert torch.equal(*results)


def test_the_content_of_a_file_without_its_residuals_is_refused(tmp_path):
    artefact = gas.save(tmp_path / "s.json", lifted("vp", (1,)))
    with pytest.raises(gas.UserError, match="a solver with residuals has a second file"):
        gas.GASScheduler(solver=artefact.document.model_dump(mode="json", exclude_none=True))
    next(tmp_path.glob("s-*.safetensors")).unlink()
    with pytest.raises(gas.UserError, match=r"needs s-.*\.safetensors beside it"):
        gas.GASScheduler(solver=str(tmp_path / "s.json"))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("schedule", [gas.VPLinear(), gas.Flow()], ids=["vp", "flow"])
def test_k_diffusion_runs_residuals_in_its_scale(schedule, rows):
    start = lifted("vp", rows)
    grid = gas.grids.time_uniform(schedule, 4, 1e-3)
    plain = gas.classical.SOLVERS["ipndm-3"](schedule, grid)
    table, x = gas.Table(plain.times, plain.states, plain.outputs, residuals=start.residuals), noise(*SHAPE)

    def denoise(x, t):
        return torch.tanh(x + t) * 0.9

    sigmas = sigmas_of(table, schedule=schedule)
    flow = isinstance(schedule, gas.Flow)
    times = dict(zip(sigmas.tolist(), table.times, strict=False))

    def model(y, sigma):
        t = times[float(sigma[0].float())]
        return denoise(y if flow else y * schedule(t)[0], t)

    y = x if flow else x / schedule(table.times[0])[0]
    found = sample_gas(model, y, sigmas, solver=table, schedule=schedule, disable=True)
    agree(found, gas.sample(denoise, x, table))
