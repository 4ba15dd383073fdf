"""What the commands say of a pipeline's guidance and prompts, and of a pipeline where they take none."""

from __future__ import annotations

import os

import pytest
import torch
from typer.testing import CliRunner

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers"),
    pytest.mark.filterwarnings("ignore"),  # other libraries' deprecations
]

from gas.cli.app import app  # noqa: E402
from gas.cli.loading import parse_call  # noqa: E402
from gas.pairs.shards import read_manifest  # noqa: E402
from support import commands, pipelines  # noqa: E402 (after the library it needs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("commands")
    pipelines.build("sd1").save_pretrained(outputs / "sd")
    pipelines.build("ddpm").save_pretrained(outputs / "ddpm")
    (outputs / "prompts.txt").write_text("a cat\na dog\n")
    return outputs


def run(*words, code=0):
    return " ".join(commands.run(*words, code=code).stderr.split())


def pairs(folder, out, *more, model="sd", code=0):
    words = ["--model", f"diffusers:{folder / model}", "--seeds", 2, "--nfe", 2, "--out", out]
    return run("pairs", *words, *more, code=code)


@pytest.mark.slow
def test_pairs_are_guided_as_the_pipelines_call_is(folder, tmp_path):
    prompts = ["--prompts", folder / "prompts.txt"]
    printed = pairs(folder, tmp_path / "usual", *prompts, "--max-batch", 1)
    assert "guidance 7.5: the default of StableDiffusionPipeline's call; --guidance changes it" in printed
    assert read_manifest(tmp_path / "usual")["recipe"]["guidance"] == 7.5
    printed = pairs(folder, tmp_path / "two", *prompts, "--guidance", 2)
    assert "guidance" not in printed and read_manifest(tmp_path / "two")["recipe"]["guidance"] == 2
    printed = pairs(folder, tmp_path / "ddpm", model="ddpm")
    assert "guidance" not in printed and read_manifest(tmp_path / "ddpm")["recipe"]["guidance"] == 1


def test_what_is_no_argument_of_a_call_is_refused():
    for name in ("t_end", "process", "features", "prompts"):
        with pytest.raises(ValueError, match=rf"^--call {name} is no argument of a pipeline's call"):
            parse_call(f"height=32,{name}=1")
    assert parse_call("height=32,negative_prompt=blurry") == {"height": 32, "negative_prompt": "blurry"}


@pytest.mark.slow
def test_pairs_without_prompts_are_not_silent(folder, tmp_path):
    printed = pairs(folder, tmp_path / "none", code=2)
    assert "error: --prompts is needed: StableDiffusionPipeline makes what a prompt says" in printed
    assert not (tmp_path / "none").exists()
    printed = pairs(folder, tmp_path / "empty", "--guidance", 1)
    assert "no --prompts: every pair is of the empty prompt" in printed
    assert read_manifest(tmp_path / "empty")["recipe"]["guidance"] == 1
    assert "needs prompts" in pairs(folder, tmp_path / "two", "--guidance", 2, code=2)


@pytest.mark.parametrize("name", ["{folder}/sd", "someone/sd"])
def test_a_pipeline_by_its_bare_name_is_pointed_to_its_prefix(name, folder, tmp_path):
    name = name.format(folder=folder)
    printed = run("pairs", "--model", name, "--out", tmp_path / "x", code=2)
    assert f"--model diffusers:{name[-80:]}" in printed and "did you mean" not in printed


def test_commands_of_zoo_models_do_not_offer_pipelines(folder, tmp_path):
    for command, takes in (("export", "Zoo model of images"), ("demo", "Zoo model (gas zoo lists them)")):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert takes in shown and "diffusers:" not in shown
    printed = run("demo", "--model", f"diffusers:{folder / 'sd'}", "--out", tmp_path / "x", code=2)
    assert "this command takes zoo models, as digits" in printed


@pytest.mark.slow
def test_weights_are_loaded_as_the_options_have_it(folder, tmp_path, monkeypatch):
    """In 8 bits, part by part on the device, and text encoders only while they encode."""
    import gas

    calls = []
    free = gas.pipelines.PipelineModel.free_text_encoders

    def freeing(self, guidance):
        free(self, guidance)
        weights = {weight.dtype for weight in self.network.parameters()}
        calls.append(
            (self.pipe.text_encoder, hasattr(self.pipe.unet, "_hf_hook"), torch.float8_e4m3fn in weights)
        )

    monkeypatch.setattr(gas.pipelines.PipelineModel, "free_text_encoders", freeing)
    options = ["--dtype", "float32", "--quantize", "fp8", "--offload", "model"]
    prompts = ["--prompts", folder / "prompts.txt", "--guidance", 2]
    pairs(folder, tmp_path / "pairs", *prompts, *options, "--seeds", 8)
    train = ["train", "--model", f"diffusers:{folder / 'sd'}", "--pairs", tmp_path / "pairs", "--nfe", 2]
    train += ["--validation", 2, "--iterations", 2, "--start", "ddim/time_uniform"]
    run(*train, *options, "--out", tmp_path / "s.json")
    assert calls == [(None, True, True)] * 2
    printed = run(*train, *options, "--loss", "l1", "--out", tmp_path / "t.json", code=2)
    assert "stores its weights in fp8, which have no gradients: learn by Gauss-Newton" in printed
    printed = run(*train, "--out", tmp_path / "t.json", code=2)
    assert "sha256" in printed  # the pairs are of other weights


@pytest.mark.slow
def test_forward_passes_of_a_pipeline_are_learned_and_sampled(folder, tmp_path, monkeypatch):
    """Of the ordinary pipeline: guided to teach, without guidance for each row of the table."""
    from safetensors.torch import load_file

    import gas

    monkeypatch.setattr("gas.training.elimination._TRIALS", 1)
    file, prompts = tmp_path / "s.json", ["--prompts", folder / "prompts.txt"]
    pairs(folder, tmp_path / "pairs", *prompts, "--guidance", 3, "--seeds", 6)
    model = ["--model", f"diffusers:{folder / 'sd'}"]
    train = ["--pairs", tmp_path / "pairs", "--validation", 2, "--start", "ddim/time_uniform"]
    run("train", *model, *train, "--iterations", 1, "--forwards", 3, "--out", file)
    artefact = gas.load(file)
    assert (artefact.nfes, artefact.forwards) == ([], [3])
    sample = [*model, *prompts, "--solver", file, "--forwards", 3, "--seeds", "50:52"]
    run("sample", *sample, "--out", tmp_path / "x.safetensors")
    bound = gas.pipelines.from_pipeline(pipelines.build("sd1"), ("a cat", "a dog"))
    denoise, table, evaluated = bound.bind(torch.tensor([0, 1]), 3.0), artefact.table(forwards=3), []
    with torch.no_grad():
        for _ in range(2):  # the first time it calls the network to see whether it has branches
            expected = gas.sample(denoise, bound.noise([50, 51]), table)
            evaluated.append(bound.controlled.evaluated)
    assert evaluated[1] - evaluated[0] == 3 * 2
    samples = load_file(tmp_path / "x.safetensors")["samples"]
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "needs bitsandbytes"),
        (["--quantize", "int3"], "unknown quantize 'int3'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--offload", "sequential"], "unknown offload 'sequential'"),
        (["--model", "digits", "--dtype", "bf16"], "--dtype is for pipelines"),
        (["--call", "image=none.png"], "none.png is no picture that can be read"),
    ],
)
def test_what_cannot_be_loaded_so_is_one_line(options, message, folder, tmp_path):
    printed = pairs(folder, tmp_path / "none", "--prompts", folder / "prompts.txt", *options, code=2)
    assert message in printed


def test_a_picture_is_an_argument_of_the_call(folder, tmp_path):
    import PIL.Image

    pipelines.build("sd_inpaint").save_pretrained(tmp_path / "inpaint")
    for name in ("image", "mask"):
        PIL.Image.new("RGB", (16, 16), "white").save(tmp_path / f"{name}.png")
    call = f"image={tmp_path}/image.png,mask_image={tmp_path}/mask.png,height=16,width=16"
    more = ["--prompts", folder / "prompts.txt", "--guidance", 1]
    model = tmp_path / "inpaint"
    pairs(folder, tmp_path / "pairs", *more, "--call", call, model=model)
    assert "sha256" in str(read_manifest(tmp_path / "pairs")["recipe"]["conditions"]["arguments"]["image"])
    train = ["train", "--model", f"diffusers:{model}", "--pairs", tmp_path / "pairs", "--nfe", 2]
    printed = run(*train, "--out", tmp_path / "s.json", code=2)
    assert "record an image by its hash: pass --call image=FILE again" in printed
