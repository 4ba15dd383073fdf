"""Pipelines as people use them: what a solver was made for, images to start from, inpainting."""

from __future__ import annotations

import math
import os
import warnings

import pytest
import torch

import gas
from gas.classical.dpmpp import ddim
from gas.sampling import Stepper

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' deprecations

from gas.pipelines.model import PipelineModel, from_pipeline  # noqa: E402
from support import pipelines  # noqa: E402 (after the library it needs)
from support.serving import NFE, PROMPTS, assert_same, perturbed, sampled, scheduler, served  # noqa: E402


@pytest.fixture
def sd():
    return pipelines.build("sd1")


# --- what a solver was made for ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_identity_of_a_flow_says_its_shift():
    sd3 = from_pipeline(pipelines.build("sd3"), PROMPTS)
    assert sd3.fingerprint()["shift"] == 3.0
    wan = from_pipeline(pipelines.build("wan"), PROMPTS, height=16, width=16, num_frames=5)
    assert wan.fingerprint()["shift"] == 3.0
    assert "shift" not in from_pipeline(pipelines.build("sd1"), PROMPTS).fingerprint()
    ltx = from_pipeline(pipelines.build("ltx"), PROMPTS, height=32, width=32, num_frames=9)
    assert ltx.fingerprint()["shift"] > 1
    flux = pipelines.build("flux")
    small, large = (
        from_pipeline(flux, PROMPTS, height=side, width=side).fingerprint()["shift"] for side in (16, 64)
    )
    slope = (1.15 - 0.5) / (4096 - 256)  # of mu over the tokens, as published
    tokens = math.prod(from_pipeline(flux, PROMPTS, height=16, width=16).sample_shape[:1])
    assert small == pytest.approx(math.exp(0.5 + slope * (tokens - 256)))
    assert large > small


@pytest.mark.slow
def test_another_shift_is_refused_and_the_same_is_not(tmp_path):
    model = from_pipeline(pipe := pipelines.build("sd3"), PROMPTS)
    config = dict(pipe.scheduler.config)
    pipe.scheduler = scheduler(pipe, model, strict=True)
    noise = model.noise(range(2))
    assert_same(served(pipe, noise), sampled(model, noise))
    gas.save(tmp_path / "solver.json", perturbed(model), model=model, guidance=2.0)
    pipe.scheduler = gas.GASScheduler.from_config({**config, "shift": 1.0}, solver=tmp_path / "solver.json")
    with pytest.warns(UserWarning, match=r"shift 3 \(this pipeline: 1\)"):
        served(pipe, noise)
    # A solver file alone says the shift that it was learned at.
    pipe.scheduler = gas.GASScheduler.from_pretrained(tmp_path / "solver.json", strict=True)
    assert_same(served(pipe, noise), sampled(model, noise))


def test_another_resolution_is_refused():
    flux = pipelines.build("flux")
    model = from_pipeline(flux, PROMPTS, height=16, width=16)
    flux.scheduler = scheduler(flux, model, strict=True)
    with pytest.raises(ValueError, match=r"shift 1\.\d+ \(this pipeline: 1\.\d+\); sample shape"):
        flux("a cat", height=64, width=64, num_inference_steps=NFE, output_type="latent")


def test_pairs_of_a_flow_serve_every_shift(tmp_path, monkeypatch):
    """Pairs hold what the network answers, which a shift does not change; those of before it was said stay good."""
    model = from_pipeline(pipelines.build("sd3"), PROMPTS)
    teacher = gas.Classical("ddim", "time_uniform", 2, model.t_end)
    before = {key: value for key, value in model.fingerprint().items() if key != "shift"}
    spec = gas.PairsSpec(range(2), teacher.config())
    with monkeypatch.context() as patch:
        patch.setattr(PipelineModel, "fingerprint", lambda self: before)
        assert list(gas.write_pairs(model, teacher.table(model.schedule), tmp_path, spec))
    assert len(gas.read_pairs(tmp_path, model=model)) == 2


# --- a solver file by itself ------------------------------------------------------------------------------


def repository(folder, name, **files):
    """A repository as huggingface_hub keeps one that was downloaded."""
    place = folder / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    for file, text in files.items():
        path = place / "snapshots" / ("0" * 40) / file.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.slow
def test_a_repository_of_nothing_but_a_solver(sd, tmp_path):
    model = from_pipeline(sd, PROMPTS)
    gas.save(tmp_path / "my.json", perturbed(model), model=model, guidance=2.0)
    text, noise = (tmp_path / "my.json").read_text(), model.noise(range(2))
    repository(tmp_path, "owner/solver", solver_json=text)
    repository(tmp_path, "owner/deep", scheduler__solver_json=text)
    repository(tmp_path, "owner/cut", solver_json=text[:100])
    repository(tmp_path, "owner/other", README_md="# nothing")
    where = {"cache_dir": tmp_path, "local_files_only": True}
    for name, deeper in (("owner/solver", {}), ("owner/deep", {"subfolder": "scheduler"})):
        sd.scheduler = gas.GASScheduler.from_pretrained(name, **where, **deeper)
        assert_same(served(sd, noise), sampled(model, noise))
    with pytest.raises(ValueError, match=r"is not valid JSON .* downloading again"):
        gas.GASScheduler.from_pretrained("owner/cut", **where)
    with pytest.raises(OSError, match=r"scheduler_config.json"):
        gas.GASScheduler.from_pretrained("owner/other", **where)


def test_a_folder_of_one_solver_of_any_name(sd, tmp_path):
    model, folder = from_pipeline(sd, PROMPTS), tmp_path / "one"
    gas.save(folder / "my.json", perturbed(model), model=model, guidance=2.0)
    (folder / "notes.json").write_text("[1, 2]")
    noise = model.noise(range(2))
    sd.scheduler = gas.GASScheduler.from_pretrained(folder, guidance_scale=2.0, strict=True)
    assert_same(served(sd, noise), sampled(model, noise))
    gas.save(folder / "second.json", perturbed(model), model=model)
    with pytest.raises(FileNotFoundError, match=r"nor solver.json \(it has my.json"):
        gas.GASScheduler.from_pretrained(folder)


# --- images to start from ---------------------------------------------------------------------------------


def image():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def first_state(pipe):
    """What the network is given first, where guidance has it twice."""
    states = []
    pipe.unet.register_forward_pre_hook(lambda module, args: states.append(args[0].chunk(2)[0].clone()))
    return states


@pytest.mark.parametrize(("strength", "start"), [(1.0, 0), (0.5, 2)])
def test_image_to_image(sd, strength, start):
    """From the first step it is the table; from the middle the base solver, afresh, on the times that are left."""
    from diffusers import StableDiffusionImg2ImgPipeline

    model = from_pipeline(sd, PROMPTS)
    pipe = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler(sd, model, base="ddim/log_snr")
    states, kwargs = first_state(pipe), {"num_inference_steps": NFE, "guidance_scale": 2.0}
    kwargs |= {"image": image(), "strength": strength, "output_type": "latent"}
    kwargs |= {"generator": torch.Generator().manual_seed(2)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = pipe("a cat", **kwargs).images
    assert any("starts at step 2 of 4" in str(w.message) for w in caught) == (start > 0)
    table = perturbed(model)().detach()
    if start:
        times = torch.cat([table.times[start:], torch.tensor([model.t_end], dtype=torch.float64)])
        table = ddim(model.schedule, times)
    with torch.no_grad():
        expected = gas.sample(model.bind(torch.tensor([0]), 2.0), states[0], table)
    assert_same(samples, expected)


def test_inpainting(sd):
    """Known pixels are put back after every step, and the rows of the table weigh the states as they became."""
    from diffusers import StableDiffusionInpaintPipeline

    model = from_pipeline(sd, PROMPTS)
    pipe = StableDiffusionInpaintPipeline(**sd.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ours = scheduler(sd, model)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    noise, table = model.noise([5]), perturbed(model)().detach()
    kwargs = {"num_inference_steps": NFE, "guidance_scale": 2.0, "output_type": "latent", "strength": 1.0}
    kwargs |= {"image": image(), "mask_image": mask, "height": 16, "width": 16}
    samples = pipe("a cat", latents=noise, generator=torch.Generator().manual_seed(3), **kwargs).images
    drawn = pipe._encode_vae_image(2 * image() - 1, generator=torch.Generator().manual_seed(3))
    free = torch.nn.functional.interpolate(mask, size=noise.shape[-2:])
    x, stepper, denoise = noise, Stepper(table, fold=False), model.bind(torch.tensor([0]), 2.0)
    with torch.no_grad():
        for n, t in enumerate(stepper.times):
            x = stepper.step(x, denoise(x, t))
            known = drawn if n + 1 == NFE else ours.add_noise(drawn, noise, ours.timesteps[n + 1 : n + 2])
            x = (1 - free) * known + free * x
    assert_same(samples, x)
    torch.testing.assert_close(samples * (1 - free), drawn * (1 - free))


@pytest.mark.parametrize(
    "edit", [lambda x: x.mul_(0.9), lambda x: x[:].mul_(0.9), lambda x: x.data.mul_(0.9)]
)
def test_a_callback_may_edit_latents_in_place(sd, edit):
    model = from_pipeline(sd, PROMPTS)
    sd.scheduler = scheduler(sd, model)

    def run(callback):
        kwargs = {"num_inference_steps": NFE, "guidance_scale": 2.0, "output_type": "latent"}
        return sd("a cat", latents=model.noise([5]), callback_on_step_end=callback, **kwargs).images

    def in_place(pipe, n, t, given):
        edit(given["latents"])
        return given

    samples = run(in_place)
    assert torch.equal(samples, run(lambda pipe, n, t, given: {"latents": 0.9 * given["latents"]}))
    assert not torch.equal(samples, run(lambda pipe, n, t, given: given))
