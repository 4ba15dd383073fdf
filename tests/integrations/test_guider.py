"""Tables with branches in unmodified modular pipelines: one forward pass a step, and the samples of gas.sample."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import gas
from gas.denoise import FlowDenoiser
from gas.integrations.diffusers.guider import BranchGuider
from gas.table import Table
from gas.training.elimination import without_row
from support import pipelines

SCHEDULE = gas.Flow()
BLOCKS = {"sd3": "StableDiffusion3AutoBlocks", "wan": "WanBlocks"}
CALLS = {
    "sd3": {"height": 16, "width": 16, "output": "latents"},
    "wan": {"height": 16, "width": 16, "num_frames": 5, "output": "latents"},
}
SHAPES = {"sd3": (1, 4, 8, 8), "wan": (1, 16, 2, 2, 2)}


class Branches:
    """A transformer's predictions of each branch, without any pipeline."""

    def __init__(self, transformer, inputs):
        self.transformer, self.inputs, self.branches = transformer, inputs, tuple(inputs)

    def select(self, *names):
        inputs = {
            key: torch.cat([self.inputs[name][key] for name in names]) for key in self.inputs["conditional"]
        }
        return FlowDenoiser(lambda x, t: self.transformer(x, timestep=1000 * t, **inputs).sample)


def encoded(ordinary, family):
    """The inputs of a prompt and of the empty one."""
    names = ("conditional", "unconditional")
    with torch.no_grad():
        if family == "sd3":
            c, u, pooled, unpooled = ordinary.encode_prompt("a cat", None, None, negative_prompt="")
            prompts = ((c, pooled), (u, unpooled))
            keys = ("encoder_hidden_states", "pooled_projections")
            return {
                name: dict(zip(keys, each, strict=True)) for name, each in zip(names, prompts, strict=True)
            }
        prompts = ordinary.encode_prompt("a cat", negative_prompt="")
    return {name: {"encoder_hidden_states": each} for name, each in zip(names, prompts, strict=True)}


@pytest.fixture(scope="module", params=["sd3", pytest.param("wan", marks=pytest.mark.slow)])
def family(request):
    """The name of a family, its ordinary pipeline, and the branches of its network."""
    ordinary = pipelines.build(request.param)
    return request.param, ordinary, Branches(ordinary.transformer, encoded(ordinary, request.param))


@pytest.fixture
def pipe(family):
    import diffusers

    name, ordinary, _ = family
    blocks = getattr(diffusers.modular_pipelines, BLOCKS[name])()
    if name == "wan":
        blocks.sub_blocks.pop("text_encoder")  # it needs a package that cleans text
    modular = blocks.init_pipeline()
    modular.update_components(**{key: each for key, each in ordinary.components.items() if each is not None})
    return modular


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of tables with branches: three guided calls, all of their rows or four."""
    path = tmp_path_factory.mktemp("file") / "s.json"
    table = gas.Classical("unipc-2-bh2", "log_snr", 3, 1e-3).table(SCHEDULE).guided(3.0)
    gas.save(path, [table, without_row(without_row(table, 4), 0)])
    return path


def served(pipe, file):
    scheduler = gas.GASScheduler.from_config(pipe.scheduler.config, solver=file)
    pipe.update_components(scheduler=scheduler, guider=BranchGuider(scheduler))
    return scheduler


@pytest.mark.parametrize("forwards", [4, 6])
def test_a_modular_pipeline_is_the_sampler(family, pipe, file, forwards):
    name, ordinary, branches = family
    table, scheduler = gas.load(file).table(forwards=forwards), served(pipe, file)
    noise = torch.randn(*SHAPES[name], generator=torch.Generator().manual_seed(0))
    sizes = []
    hook = ordinary.transformer.register_forward_hook(lambda *call: sizes.append(len(call[2][0])))
    prompts = {"prompt": "a cat", "negative_prompt": ""}
    if name == "wan":
        both = (branches.inputs[each]["encoder_hidden_states"] for each in branches.branches)
        prompts = dict(zip(("prompt_embeds", "negative_prompt_embeds"), both, strict=True))
    for _ in range(2):
        latents = pipe(**CALLS[name], **prompts, num_inference_steps=forwards, latents=noise.clone())
    hook.remove()
    with torch.no_grad():
        expected = gas.sample(branches, noise, table)
        unguided = Table(table.times, table.states, table.outputs)
        other = gas.sample(branches.select("conditional"), noise, unguided)
    torch.testing.assert_close(latents, expected, rtol=0, atol=2e-5)
    assert sizes == [1] * forwards * 2
    assert scheduler.branches == table.branches
    assert (other - expected).abs().max() > 1e-3


def called(pipe, **more):
    return pipe(
        **{**CALLS["sd3"], "prompt": "a cat", "negative_prompt": "", "num_inference_steps": 4, **more}
    )


@pytest.mark.parametrize("family", ["sd3"], indirect=True)
class TestRefusals:
    def test_steps_that_the_file_lacks(self, pipe, file):
        served(pipe, file)
        message = r"5 forward passes were asked of .*s\.json, which has \[4, 6\]$"
        with pytest.raises(gas.UserError, match=message):
            called(pipe, num_inference_steps=5)

    def test_no_negative_prompt(self, pipe, file):
        served(pipe, file)
        message = r'^row 1 of the table is unconditional: call the pipeline with negative_prompt=""'
        with pytest.raises(gas.UserError, match=message):
            called(pipe, negative_prompt=None)

    def test_a_branch_that_pipelines_lack(self, pipe, file):
        table = gas.load(file).table(forwards=4)
        served(pipe, Table(table.times, table.states, table.outputs, ("conditional", "style", *"cc")))
        message = r"^row 1 of the table evaluates the branch 'style', a modular pipeline has conditional and"
        with pytest.raises(gas.UserError, match=message):
            called(pipe)

    def test_a_guider_without_a_scheduler(self, pipe, file):
        served(pipe, file)
        pipe.update_components(guider=BranchGuider())
        with pytest.raises(gas.UserError, match=r"^this guider has no scheduler: guider=BranchGuider"):
            called(pipe)

    def test_another_guider(self, pipe, file):
        from diffusers.guiders import ClassifierFreeGuidance

        served(pipe, file)
        pipe.update_components(guider=ClassifierFreeGuidance())
        with pytest.raises(
            gas.UserError, match=r"^step 0 evaluates the branch 'conditional' alone: run this"
        ):
            called(pipe)

    def test_a_start_in_the_middle(self, pipe, file):
        scheduler = served(pipe, file)
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(2)
        with pytest.raises(gas.UserError, match=r"^a table with branches runs from its first row, got .* 2$"):
            scheduler.step(torch.zeros(1, 4, 8, 8), scheduler.timesteps[2], torch.zeros(1, 4, 8, 8))

    def test_an_ordinary_pipeline(self, family, file):
        ordinary = family[1]
        former, call = ordinary.scheduler, {"height": 16, "width": 16, "num_inference_steps": 4}
        ordinary.scheduler = gas.GASScheduler.from_config(former.config, solver=file)
        try:
            with pytest.raises(gas.UserError, match=r"which a pipeline without a BranchGuider cannot run"):
                ordinary("a cat", **call)
            BranchGuider(ordinary.scheduler)
            with pytest.raises(gas.UserError, match=r"^step 0 evaluates the branch 'conditional' alone"):
                ordinary("a cat", **call)
        finally:
            ordinary.scheduler = former


def test_a_scheduler_with_branches_is_saved(file, tmp_path):
    scheduler = gas.GASScheduler(prediction_type="flow_prediction", solver=file)
    scheduler.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "guider=BranchGuider(scheduler))" in card
    assert "| forward passes, with branches | 4, 6 |" in card
    again = gas.GASScheduler.from_pretrained(tmp_path / "saved")
    BranchGuider(again)
    again.set_timesteps(6)
    assert again.branches == gas.load(file).table(forwards=6).branches
