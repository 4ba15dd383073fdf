"""``gas paper doctor``: files are listed, read and described; what is wrong with one is named."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gas.cli.paper.doctor import _files
from gas.paper.files import describe_file, find_files
from gas.paper.presets import PRESETS
from support import inception, standins
from support.commands import refused, run

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' and transformers' own


@pytest.mark.slow
def test_the_installation_is_described() -> None:
    report = json.loads(run("paper", "doctor", "--json").stdout)
    assert report["environment"]["torch"] == torch.__version__ and report["environment"]["cores"] >= 1
    assert set(report["extras"]) == {"plot", "zoo", "diffusers", "onnx"} and "preset" not in report
    assert "This installation" in run("paper", "doctor").stdout
    assert "--set is of a preset" in refused("paper", "doctor", "--set", "batch=8")


def test_files_are_told_apart(tmp_path: Path) -> None:
    preset = PRESETS["cifar10"]
    standins.write_weights(preset, tmp_path)
    words = ["paper", "doctor", "cifar10", "--preset-weights", tmp_path]
    standins.write_lpips(tmp_path)
    network, critic, *loss, features, reference = json.loads(run(*words, "--json").stdout)["files"]
    assert (features["state"], reference["state"]) == ("missing", "missing")
    assert {row["state"] for row in (network, critic, *loss)} == {"whole"}
    assert [row["expected sha256"] for row in loss] == ["begins with 397923af", "unknown"]
    assert [row["holds"] for row in loss] == ["weights, 1,888 numbers", "weights, 20 numbers"]
    assert "an EDM network for 8 x 8" in network["holds"] and "an R3GAN discriminator" in critic["holds"]
    assert len(network["sha256"]) == 64
    assert network["expected sha256"] == "unknown"  # none is invented
    (tmp_path / preset.network).write_bytes(pickle.dumps(print))
    (tmp_path / preset.critic_file).unlink()
    network, critic, *_ = json.loads(run(*words, "--json").stdout)["files"]
    assert network["state"] == "bad" and "refused the name 'builtins.print'" in network["holds"]
    assert critic["state"] == "missing" and critic["place"] == str(tmp_path / preset.critic_file)
    assert critic["source"].startswith("Hugging Face brownvc/R3GAN-CIFAR10")


@pytest.mark.parametrize("name", ["lsun", "imagenet", "coco"])
def test_files_are_listed_without_diffusers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = standins.write_weights(PRESETS[name], tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as where it is not installed
    words = ["paper", "doctor", name, "--preset-weights", folder]
    files = json.loads(run(*words, "--json").stdout)["files"]
    assert {row["state"] for row in files if row["role"] not in ("features", "reference", "images")} == {
        "whole"
    }
    shown = run(*words).stdout
    assert "whole" in shown and "pip install 'gas-solver[diffusers]'" in " ".join(shown.split())


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_is_measured_by_is_listed(name: str, tmp_path: Path) -> None:
    """FID needs Inception's weights and real data's statistics, as much as training needs its files."""
    *_, features, real = _files(PRESETS[name], tmp_path)
    assert features["role"] == "features" and features["expected sha256"] == "begins with 6726825d"
    assert features["source"].endswith(features["file"]) and features["needed for"] == "FID"
    assert real["role"] == ("images" if name in ("lsun", "imagenet") else "reference")
    assert real["state"] == "missing" and real["place"] == str(tmp_path / real["file"])
    assert real["source"] != "unknown"
    torch.save(inception.weights(divide=16), tmp_path / features["file"])
    np.savez(tmp_path / real["file"], mu=np.zeros(128), sigma=np.eye(128))
    *_, features, real = _files(PRESETS[name], tmp_path)
    assert features["state"] == real["state"] == "whole"
    assert features["holds"].startswith("Inception-v3, ") and real["holds"] == "statistics of 128 features"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lsun", "latent diffusion with its first stage, "),
        ("coco", "a diffusers folder of StableDiffusionPipeline"),
    ],
)
def test_files_of_other_kinds(name: str, words: str, tmp_path: Path) -> None:
    network, *rest = find_files(PRESETS[name], standins.write_weights(PRESETS[name], tmp_path))
    assert describe_file(network).startswith(words)
    assert [describe_file(path) for path in rest] == (["3 prompts"] if name == "coco" else [])


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    preset = PRESETS["coco"]
    (tmp_path / preset.network).mkdir()
    network, prompts = find_files(preset, tmp_path)
    with pytest.raises(ValueError, match=r"no readable model_index\.json"):
        describe_file(network)
    (tmp_path / preset.network / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="no safetensors in unet, vae, text_encoder"):
        describe_file(network)
    assert describe_file(prompts) == "missing"
