"""What the commands say of a pipeline's guidance and prompts, and of a pipeline where they take none."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' deprecations

from gas.cli.app import app  # noqa: E402
from gas.pairs.shards import read_manifest  # noqa: E402
from support import commands, pipelines  # noqa: E402 (after the library it needs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("commands")
    pipelines.build("sd1").save_pretrained(made / "sd")
    pipelines.build("ddpm").save_pretrained(made / "ddpm")
    (made / "prompts.txt").write_text("a cat\na dog\n")
    return made


def run(*words, code=0):
    return " ".join(commands.run(*words, code=code).stderr.split())


def pairs(folder, out, *more, model="sd", code=0):
    words = ["--model", f"diffusers:{folder / model}", "--seeds", 2, "--nfe", 2, "--out", out]
    return run("pairs", *words, *more, code=code)


def test_pairs_are_guided_as_the_pipelines_call_is(folder, tmp_path):
    prompts = ["--prompts", folder / "prompts.txt"]
    told = pairs(folder, tmp_path / "usual", *prompts)
    assert "guidance 7.5: the default of StableDiffusionPipeline's call; --guidance changes it" in told
    assert read_manifest(tmp_path / "usual")["recipe"]["guidance"] == 7.5
    told = pairs(folder, tmp_path / "two", *prompts, "--guidance", 2)
    assert "guidance" not in told and read_manifest(tmp_path / "two")["recipe"]["guidance"] == 2
    told = pairs(folder, tmp_path / "ddpm", model="ddpm")
    assert "guidance" not in told and read_manifest(tmp_path / "ddpm")["recipe"]["guidance"] == 1


def test_pairs_without_prompts_are_not_silent(folder, tmp_path):
    told = pairs(folder, tmp_path / "none", code=2)
    assert "error: --prompts is needed: StableDiffusionPipeline makes what a prompt says" in told
    assert not (tmp_path / "none").exists()
    told = pairs(folder, tmp_path / "empty", "--guidance", 1)
    assert "no --prompts: every pair is of the empty prompt" in told
    assert read_manifest(tmp_path / "empty")["recipe"]["guidance"] == 1
    assert "needs prompts" in pairs(folder, tmp_path / "two", "--guidance", 2, code=2)


@pytest.mark.parametrize("name", ["{folder}/sd", "someone/sd"])
def test_a_pipeline_by_its_bare_name_is_pointed_to_its_prefix(name, folder, tmp_path):
    name = name.format(folder=folder)
    told = run("pairs", "--model", name, "--out", tmp_path / "x", code=2)
    assert f"--model diffusers:{name[-80:]}" in told and "did you mean" not in told


def test_commands_of_zoo_models_do_not_offer_pipelines(folder, tmp_path):
    for command in ("export", "demo"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert "Zoo model of images" in shown and "diffusers:" not in shown
    told = run("demo", "--model", f"diffusers:{folder / 'sd'}", "--out", tmp_path / "x", code=2)
    assert "this command takes zoo models of images" in told
