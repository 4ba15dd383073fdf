"""Pipelines whose weights are not the published ones: adapters, LoRA files, bytes, parts moved in and out."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import gas
from gas.models.protocol import weights_hash
from gas.models.seeds import labels_of_seeds

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' deprecations

from gas.pipelines.loading import place_pipeline  # noqa: E402
from gas.pipelines.model import from_pipeline  # noqa: E402
from support import pipelines  # noqa: E402 (after the library it needs)
from support.serving import PROMPTS, assert_same, perturbed, sampled, scheduler, served  # noqa: E402

# Without a network diffusers 0.35 does not look for the file's name.
LORA = {"weight_name": "pytorch_lora_weights.safetensors"}


@pytest.fixture
def sd():
    return pipelines.build("sd1")


class LowRank(nn.Module):
    """A linear layer with an adapter beside it, as LoRA puts there."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer, generator = layer, torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features, generator=generator))
        self.up = nn.Parameter(torch.randn(layer.out_features, rank, generator=generator) / 4)

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


class Int8(nn.Module):
    """A linear layer whose weights are kept as bytes with a scale a row, as weight-only quantisation does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("bytes", (layer.weight.detach() / scale).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.bytes * self.scale, self.bias)


def replaced(network, kind):
    """Put a wrapper in the place of every linear layer of the attentions; return how many."""
    places = [
        (module, name)
        for path, module in network.named_modules()
        for name, part in module.named_children()
        if isinstance(part, nn.Linear) and "attn" in path
    ]
    for module, name in places:
        setattr(module, name, kind(getattr(module, name)))
    return len(places)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LowRank, Int8])
def test_adapters_and_rounded_weights_stay_in_place(sd, kind):
    """They answer in training and in serving alike, and the file says that it is for them."""
    plain = from_pipeline(pipelines.build("sd1"), PROMPTS)
    assert replaced(sd.unet, kind) >= 8
    model = from_pipeline(sd, PROMPTS)
    assert model.fingerprint()["sha256"] != plain.fingerprint()["sha256"]
    noise = model.noise(range(2))
    assert float((sampled(model, noise) - sampled(plain, noise)).abs().max()) > 1e-4
    sd.scheduler = scheduler(sd, model, strict=True)
    assert_same(served(sd, noise), sampled(model, noise))
    with pytest.raises(ValueError, match="made for another model or use: sha256"):
        gas.save(None, perturbed(model), model=model).check(plain)
    pairs = gas.pairs.teach(model, perturbed(model)().detach(), range(4), guidance=2.0)
    solver = gas.GeneralizedSolver(model.schedule, 2, model.t_end)
    first, *_, last = gas.fit(solver, model, pairs, validation=None, config=gas.Adam(iterations=5, batch=2))
    assert last.best_loss < first.start_loss


def test_dynamically_quantised_weights_have_a_hash():
    """torch's own int8 layers keep their weights packed, in no tensor."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2)]
    first, second = (torch.ao.quantization.quantize_dynamic(network, {nn.Linear}) for network in networks)
    again = torch.ao.quantization.quantize_dynamic(networks[0], {nn.Linear})
    assert weights_hash(first) == weights_hash(again) != weights_hash(second)


@pytest.mark.parametrize("hook", ["FirstBlockCacheConfig", "TaylorSeerCacheConfig"])
def test_a_cache_between_steps_is_refused(hook):
    """Its predictions are of a step and of those before it, which no table's training follows."""
    pipe = pipelines.build("flux")
    pipe.transformer.enable_cache(getattr(pytest.importorskip("diffusers.hooks"), hook)())
    with pytest.raises(
        ValueError, match=r"caches layers between steps, .*: call pipe.transformer.disable_cache"
    ):
        from_pipeline(pipe, PROMPTS)
    pipe.transformer.disable_cache()
    assert from_pipeline(pipe, PROMPTS).classes == len(PROMPTS)


def test_a_fused_copy_is_a_student_of_its_original(tmp_path):
    original, copy = (from_pipeline(pipelines.build("sd1"), PROMPTS, name="sd") for _ in range(2))
    attention = next(m for m in copy.pipe.unet.modules() if hasattr(m, "to_q"))
    adapter = LowRank(attention.to_q)
    with torch.no_grad():
        attention.to_q.weight += adapter.up @ adapter.down  # as fuse_lora does
    teacher = gas.Classical("ddim", "time_uniform", 2, original.t_end)
    list(gas.write_pairs(original, teacher, tmp_path, gas.PairsSpec(range(4))))
    with pytest.raises(ValueError, match="learn for a copy of it add --student"):
        gas.read_pairs(tmp_path, model=copy)
    pairs = gas.read_pairs(tmp_path, model=copy, student=True)
    described = gas.pairs.dataset.teacher_of(pairs, copy)["model"]
    assert described["sha256"] == original.fingerprint()["sha256"] != copy.fingerprint()["sha256"]
    other = from_pipeline(pipelines.build("sd1"), ["another prompt"], name="sd")
    with pytest.raises(ValueError, match=r"conditions\.prompts"):
        gas.read_pairs(tmp_path, model=other, student=True)


@pytest.mark.slow
@pytest.mark.parametrize(("offload", "hook"), [("model", "_hf_hook"), ("group", "_diffusers_hook")])
def test_parts_that_are_moved_in_and_out(sd, offload, hook):
    """Offloading: whole parts in turn by accelerate's hooks, or layer after layer by diffusers'."""
    model = from_pipeline(pipelines.build("sd1"), PROMPTS)
    place_pipeline(sd, "cpu", offload)
    assert any(hasattr(layer, hook) for layer in sd.unet.modules())
    offloaded = from_pipeline(sd, PROMPTS)
    assert offloaded.fingerprint()["sha256"] == model.fingerprint()["sha256"]
    noise = model.noise(range(2))
    assert_same(sampled(offloaded, noise), sampled(model, noise))
    sd.scheduler = scheduler(sd, offloaded, strict=True)
    assert_same(served(sd, noise), sampled(model, noise))
    assert labels_of_seeds(offloaded.classes, range(3)).tolist() == [0, 1, 0]


# --- LoRA files, as they are published ------------------------------------------------------------------


def lora_file(folder):
    """What a LoRA training leaves: a file for the attentions of this U-Net, its numbers not zero."""
    peft = pytest.importorskip("peft")
    pipe = pipelines.build("sd1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"]))
        for name, number in pipe.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(number, std=0.5)
    layers = peft.get_peft_model_state_dict(pipe.unet)
    type(pipe).save_lora_weights(folder, unet_lora_layers=layers)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["beside", "fused"])
def test_a_lora_file_is_learned_for_and_served_with(sd, tmp_path, fused):
    """Loaded by diffusers' own call; the solver file is for the network with it, and for no other."""
    plain = from_pipeline(pipelines.build("sd1"), PROMPTS)
    sd.load_lora_weights(lora_file(tmp_path), adapter_name="style", **LORA)
    if fused:
        sd.fuse_lora(lora_scale=0.8)
    model = from_pipeline(sd, PROMPTS)
    assert model.fingerprint()["sha256"] != plain.fingerprint()["sha256"]
    noise = model.noise(range(2))
    assert float((sampled(model, noise) - sampled(plain, noise)).abs().max()) > 1e-3
    pairs = gas.pairs.teach(model, perturbed(model)().detach(), range(4), guidance=2.0)
    solver = gas.GeneralizedSolver(model.schedule, 2, model.t_end)
    first, *_, last = gas.fit(solver, model, pairs, validation=None, config=gas.Adam(iterations=5, batch=2))
    assert last.best_loss < first.start_loss
    sd.scheduler = scheduler(sd, model, strict=True)
    assert_same(served(sd, noise), sampled(model, noise))
    with pytest.raises(ValueError, match="made for another model or use: sha256"):
        gas.save(None, perturbed(model), model=model).check(plain)


@pytest.mark.slow
def test_a_lora_that_was_taken_out_again_leaves_no_trace(sd, tmp_path):
    plain = from_pipeline(pipelines.build("sd1"), PROMPTS)
    sd.load_lora_weights(lora_file(tmp_path), adapter_name="style", **LORA)
    sd.unload_lora_weights()
    assert from_pipeline(sd, PROMPTS).fingerprint()["sha256"] == plain.fingerprint()["sha256"]
