"""gas doctor: what is there is said, what is wrong is named, and costs are sums of what was counted or measured."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gas.cli.doctor import _files
from gas.paper import cost
from gas.paper.cost import RATES, Unit, asked, counted, parameters, totals, vgg
from gas.paper.files import find_files, layout
from gas.paper.presets import PRESETS
from support import inception, standins
from support.commands import refused, run

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' and transformers' own

# Of the published networks, as their papers give them in millions: EDM's DDPM++, LDM's Tables 12 and 13, SD 1's U-Net.
PUBLISHED = {"cifar10": 55.7, "ffhq": 61.8, "afhqv2": 61.8, "lsun": 274, "imagenet": 401, "coco": 860}


@pytest.mark.parametrize("name", PRESETS)
def test_networks_are_of_the_published_size(name: str) -> None:
    count = parameters(asked(PRESETS[name], "meta").network) / 1e6
    assert abs(count - PUBLISHED[name]) < (0.05 if PUBLISHED[name] < 100 else 0.5)


def test_operations_are_counted_as_torch_counts_them() -> None:
    preset = PRESETS["cifar10"]
    unit, made, x = counted(preset), asked(preset, "meta"), torch.empty(1, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made.denoise(x, torch.tensor(0.5, device="meta"))
    assert unit.forward * RATES["edm"] * 1e12 == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert 1.9 < unit.gradient / unit.forward < 2.1  # frozen weights: a gradient of inputs alone
    with FlopCounterMode(display=False) as counter:
        vgg("meta")(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 30_693_261_312  # VGG-16's convolutions: 15.3 billion multiplications
    # Student and teacher forward, the student's gradient: three; the first layer's inputs need one too.
    assert unit.loss * RATES["edm"] * 1e12 == pytest.approx(3 * counter.get_total_flops(), rel=0.01)
    assert counted(preset, 120.0).forward == unit.forward / 2
    assert counted(PRESETS["imagenet"]).loss == 0  # L1 of latents


def test_totals_add_up() -> None:
    """The formula of the docs, in numbers that a head can check."""
    preset = PRESETS["ffhq"].changed(
        ["iterations=100", "iterations_gas=200", "validate_every=50", "batch=10"]
    )
    unit = Unit("measured", "here", 1.0, 3.0, 2.0, 7.0, 1000, 500, 90, 5)
    pairs, gs, gas = totals(preset, unit, 4)
    assert (pairs.evaluations, pairs.seconds) == (6000 * 20, 6000 * 20)
    assert gs.seconds == 100 * 10 * (4 * 3 + 2) + 3 * 1000 * (4 + 1)
    assert gas.seconds == 200 * 10 * (4 * 3 + 2 + 7) + 5 * 1000 * (4 + 1)
    # As gas.fit counts, and what it does not: validation.
    assert gs.evaluations == 100 * 10 * 4 * 3 + 3 * 1000 * 4
    assert (gs.peak, gs.flat) == (90 + 10 * (4 * 1000 + 500), 90 + 10 * (3 * 1000 + 500))
    (_, two, _) = totals(preset, unit, 2)
    assert two.flat == two.peak == 90 + 10 * (2 * 1000 + 500)


def test_the_papers_own_cost_is_near() -> None:
    """Peak memory on one H100, which no rate is fitted to: CIFAR-10 17 to 34 GB, ImageNet 37 to 62."""
    for name, nfes, told in (("cifar10", (4, 10), (17, 34)), ("imagenet", (4, 7), (37, 62))):
        unit = counted(PRESETS[name])
        for nfe, paper in zip(nfes, told, strict=True):
            peak = totals(PRESETS[name], unit, nfe)[1].peak / 1e9
            assert 0.75 < peak / paper < 1.1, (name, nfe, peak)


def test_the_installation_is_told() -> None:
    told = json.loads(run("doctor", "--json").stdout)
    assert told["environment"]["torch"] == torch.__version__ and told["environment"]["cores"] >= 1
    assert set(told["extras"]) == {"plot", "zoo", "diffusers", "onnx"} and "preset" not in told
    assert "This installation" in run("doctor").stdout
    assert "--tflops is for --preset" in refused("doctor", "--tflops", 3)
    assert "tflops must lie in" in refused("doctor", "--preset", "ffhq", "--tflops", 0)
    assert "--batch is for --measure" in refused("doctor", "--preset", "ffhq", "--batch", 2)
    assert "leave it out, or --measure" in refused("doctor", "--preset", "ffhq", "--tflops", 2, "--measure")


def test_files_are_told_apart(tmp_path: Path) -> None:
    preset = PRESETS["cifar10"]
    standins.write_weights(preset, tmp_path)
    words = ["doctor", "--preset", "cifar10", "--preset-weights", tmp_path, "--nfe", 4]
    standins.write_lpips(tmp_path)
    network, critic, *loss, features, reference = json.loads(run(*words, "--json").stdout)["files"]
    assert (features["state"], reference["state"]) == ("missing", "missing")
    assert {row["state"] for row in (network, critic, *loss)} == {"whole"}
    assert [row["expected sha256"] for row in loss] == ["begins with 397923af", "unknown"]
    assert [row["holds"] for row in loss] == ["weights, 1,888 numbers", "weights, 20 numbers"]
    assert "an EDM network for 8 x 8" in network["holds"] and "an R3GAN discriminator" in critic["holds"]
    assert (
        network["expected size"].startswith("55,733,891 parameters, 223 MB") and len(network["sha256"]) == 64
    )
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
    cost._counts.cache_clear()
    words = ["doctor", "--preset", name, "--preset-weights", folder]
    told = json.loads(run(*words, "--json").stdout)
    own = [row for row in told["files"] if row["role"] not in ("features", "reference", "images")]
    assert {row["state"] for row in own} == {"whole"} and told["cost"] == [] and told["unit"] is None
    assert "pip install 'gas-solver[diffusers]'" in told["not counted"]
    shown = run(*words)
    assert "whole" in shown.stdout and "cost and expected size are not told" in shown.stderr
    assert "gas-solver[diffusers]" in shown.stderr
    assert "needs diffusers" in refused(*words, "--measure")


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_is_measured_by_is_listed(name: str, tmp_path: Path) -> None:
    """FID needs Inception's weights and real data's statistics, as much as training needs its files."""
    *_, features, real = _files(PRESETS[name], tmp_path, None)
    assert features["role"] == "features" and features["expected sha256"] == "begins with 6726825d"
    assert features["source"].endswith(features["file"]) and features["needed for"] == "FID"
    assert real["role"] == ("images" if name in ("lsun", "imagenet") else "reference")
    assert real["state"] == "missing" and real["place"] == str(tmp_path / real["file"])
    assert real["source"] != "unknown"
    torch.save(inception.weights(divide=16), tmp_path / features["file"])
    np.savez(tmp_path / real["file"], mu=np.zeros(128), sigma=np.eye(128))
    *_, features, real = _files(PRESETS[name], tmp_path, None)
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
    assert layout(network).startswith(words)
    assert [layout(found) for found in rest] == (["3 prompts"] if name == "coco" else [])


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    preset = PRESETS["coco"]
    (tmp_path / preset.network).mkdir()
    network, prompts = find_files(preset, tmp_path)
    with pytest.raises(ValueError, match=r"no readable model_index\.json"):
        layout(network)
    (tmp_path / preset.network / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="no safetensors in unet, vae, text_encoder"):
        layout(network)
    assert layout(prompts) == "missing"


def test_a_network_is_measured() -> None:
    """A network of the published widths on images small enough for a test."""
    small = [
        "--set",
        "size=8",
        "--set",
        "critic_widths=8,8",
        "--set",
        "critic_groups=2,2",
        "--set",
        "critic_blocks=1,1",
    ]
    words = ["doctor", "--preset", "cifar10", *small, "--set", "loss=l1", "--nfe", 4, "--measure", "--json"]
    told = json.loads(run(*words).stdout)
    unit = told["unit"]
    assert unit["source"] == "measured" and unit["where"] == "cpu, batches of 1"
    assert 0 < unit["forward"] < unit["gradient"] and unit["critic"] > 0 == unit["loss"]
    pairs = told["cost"][0]
    assert pairs["seconds"] == pytest.approx(2400 * 20 * unit["forward"])
