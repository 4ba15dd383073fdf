"""R3GAN's discriminator: the published numbers, what its initialisation promises, and its files."""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gas.training.adversarial.r3gan import (
    CIFAR10,
    DIGITS,
    EMOJI,
    FFHQ64,
    MNIST,
    R3GANDiscriminator,
    load_discriminator,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "r3gan_discriminator_tiny.safetensors"
PRESETS = {"CIFAR10": CIFAR10, "FFHQ64": FFHQ64, "DIGITS": DIGITS, "EMOJI": EMOJI, "MNIST": MNIST}
PRESETS["latent"] = {**FFHQ64, "in_channels": 4}
SMALL: dict[str, Any] = {
    "in_channels": 2,
    "resolution": 8,
    "width_per_stage": [8, 12],
    "cardinality_per_stage": [2, 3],
    "blocks_per_stage": [1, 2],
}


def small(seed: int = 0, **changes: Any) -> R3GANDiscriminator:
    """A small network with every parameter drawn, the residual branches' last layers included."""
    torch.manual_seed(seed)
    network = R3GANDiscriminator(**SMALL | changes).double()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return network


def golden() -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(GOLDEN, framework="pt") as file:
        tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["init"]), tensors


# ---------------------------------------------------------------- the numbers


def test_published_numbers() -> None:
    init, tensors = golden()
    network = R3GANDiscriminator(**init).double()
    network.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
    x = tensors["io.x"].requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    torch.testing.assert_close(logits, tensors["io.logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, tensors["io.grad_x"], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_first_and_second_derivatives() -> None:
    """Gradient penalties differentiate twice."""
    network = small(in_channels=1, width_per_stage=[4, 6], blocks_per_stage=[1, 1])
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (x,))
    assert torch.autograd.gradgradcheck(network, (x,))


def test_the_penalty_reaches_every_weight() -> None:
    network, x = small(), torch.randn(3, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    # A bias shifts where the activations bend, not how steep they are.
    weights = {name: value for name, value in network.named_parameters() if not name.endswith("Bias")}
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in weights.values())


def test_the_low_pass_keeps_constants_and_stops_the_finest_pattern() -> None:
    network = R3GANDiscriminator(**SMALL)
    low_pass = network.MainLayers[0].Layers[-1].Resampler
    rows = torch.arange(8)
    checks = ((rows[:, None] + rows) % 2 * 2.0 - 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(low_pass(torch.ones(1, 3, 8, 8))[..., 1:-1, 1:-1], torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(low_pass(checks)[..., 1:-1, 1:-1], torch.zeros(1, 3, 2, 2))


def test_samples_do_not_mix() -> None:
    network, x = small(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(x), torch.cat([network(image[None]) for image in x]))


def test_dtype_follows_the_weights() -> None:
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = R3GANDiscriminator(**SMALL)(x)
    logits.sum().backward()
    assert logits.dtype == torch.float32 and x.grad is not None and x.grad.dtype == torch.float64


# ---------------------------------------------------------------- initialisation


def test_a_fresh_network_is_linear() -> None:
    """Residual branches start at zero, so only linear layers are left."""
    network = R3GANDiscriminator(**SMALL).double()
    x, y = torch.randn(2, 4, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(2 * x - 3 * y), 2 * network(x) - 3 * network(y))
    for name, value in network.named_parameters():
        assert ("LinearLayer3" in name or name.endswith("Bias")) == (value.abs().max() == 0), name


def test_weights_are_drawn_with_the_published_deviations() -> None:
    torch.manual_seed(0)
    sizes = {"width_per_stage": [64, 96], "cardinality_per_stage": [4, 6], "blocks_per_stage": [1, 3]}
    network = R3GANDiscriminator(**SMALL | sizes)
    block = math.sqrt(2 / 1.04) * 4 ** (-1 / 4)  # gain of the activation; four blocks in all
    for name, value in network.named_parameters():
        if "LinearLayer3" in name or name.endswith("Bias"):
            continue
        gain = block if "LinearLayer1" in name or "LinearLayer2" in name else 1.0
        deviation = gain / math.sqrt(value[0].numel())
        assert abs(value.std().item() / deviation - 1) < 6 / math.sqrt(2 * value.numel()), name


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_answer(name: str) -> None:
    with torch.device("meta"):
        network = R3GANDiscriminator(**PRESETS[name])
        x = torch.empty(2, network.in_channels, network.resolution, network.resolution)
        assert network(x).shape == (2,)


@pytest.mark.parametrize(
    ("name", "shape", "least", "most"),
    [
        ("CIFAR10", (3, 32, 32), 20_683_776, 20_683_776),
        ("FFHQ64", (3, 64, 64), 22_381_440, 22_381_440),
        ("latent", (4, 64, 64), 22_381_824, 22_381_824),
        ("DIGITS", (1, 8, 8), 50_000, 100_000),
        ("MNIST", (1, 32, 32), 200_000, 400_000),
    ],
)
def test_presets_have_the_sizes_they_promise(
    name: str, shape: tuple[int, ...], least: int, most: int
) -> None:
    with torch.device("meta"):
        network = R3GANDiscriminator(**PRESETS[name])
    assert least <= sum(value.numel() for value in network.parameters()) <= most
    assert (network.in_channels, network.resolution, network.resolution) == shape


@pytest.mark.parametrize(
    "sizes", [DIGITS, pytest.param(MNIST, marks=pytest.mark.slow)], ids=["DIGITS", "MNIST"]
)
def test_small_presets_learn_to_tell_apart(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = R3GANDiscriminator(**sizes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99))
    shape = (16, 1, network.resolution, network.resolution)
    real, fake = torch.randn(shape), 0.5 * torch.randn(shape)  # one mean: no linear map tells them apart
    losses = []
    for _ in range(12):
        loss = nn.functional.softplus(network(fake) - network(real)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- classes


def test_labels_as_integers_as_weights_and_none() -> None:
    network, x = small(condition_dim=5), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    labels = torch.tensor([4, 0, 2])
    one_hot = nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(network(x, labels), network(x, one_hot))
    every = torch.stack([network(x, torch.full((3,), label)) for label in range(5)])
    torch.testing.assert_close(network(x), every.mean(dim=0))
    assert not torch.allclose(every[0], every[1])


def test_length_of_the_class_embedding() -> None:
    assert small(condition_dim=5).EmbeddingLayer.weight.shape == (12, 5)
    assert small(condition_dim=5, condition_embedding_dim=7).EmbeddingLayer.weight.shape == (7, 5)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 16, 16), (2, 2, 8, 4), (2, 8, 8), (2, 2)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        small()(torch.zeros(shape))
    wanted = f"takes x of shape (B, 2, 8, 8), got {shape}; build one with in_channels and resolution"
    assert wanted in str(caught.value)


def test_labels_of_another_kind() -> None:
    x = torch.zeros(3, 2, 8, 8)
    with pytest.raises(ValueError, match=r"without classes; build it with condition_dim"):
        small()(x, torch.zeros(3, dtype=torch.long))
    for labels in (torch.zeros(3), torch.zeros(3, 4)):
        with pytest.raises(
            ValueError, match=r"labels must be integers \(B,\) or weights \(B, 5\), got torch.float32"
        ):
            small(condition_dim=5)(x, labels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 16}, "2 stages want resolution 8, got 16; add or drop stages"),
        ({"blocks_per_stage": [1]}, r"must have one entry a stage, got \(2, 2, 1\)"),
        (
            dict.fromkeys(("width_per_stage", "cardinality_per_stage", "blocks_per_stage"), ()),
            "one entry a stage",
        ),
        ({"cardinality_per_stage": [2, 5]}, r"cardinality_per_stage must divide 2 \* 12, got 5"),
        (
            {"blocks_per_stage": [1, 0]},
            r"want blocks_per_stage >= 1 and an odd kernel_size, got \[1, 0\] and 3",
        ),
        ({"kernel_size": 4}, r"odd kernel_size, got \[1, 2\] and 4"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        R3GANDiscriminator(**SMALL | changes)


# ---------------------------------------------------------------- files


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_golden_file_loads_by_its_shapes() -> None:
    init, tensors = golden()
    network = load_discriminator(GOLDEN).double()
    assert (network.in_channels, network.resolution) == (init["in_channels"], init["resolution"])
    torch.testing.assert_close(network(tensors["io.x"]), tensors["io.logits"], rtol=0, atol=1e-6)
    assert all(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize(
    "changes", [{}, {"condition_dim": 5, "condition_embedding_dim": 6}, {"kernel_size": 5}]
)
def test_safetensors_round_trip(changes: dict[str, Any], tmp_path: Path) -> None:
    network = small(expansion_factor=1, **changes)
    save_file(network.state_dict(), tmp_path / "critic.safetensors")
    assert same(load_discriminator(tmp_path / "critic.safetensors"), network)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[nn.Module]]:
    """Classes under the names that published pickles refer to, gone again when the file is read."""
    names = {"BaselineGAN.Networks": "Stage", "training.networks_baseline": "Discriminator"}
    classes = {}
    for module, name in names.items():
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module.split(".")[0]))
        fake = types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, fake)
        classes[name] = type(name, (nn.Module,), {"__module__": module})
        setattr(fake, name, classes[name])
    return classes


def renamed(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The same tree of weights out of another class, as foreign code would have written it."""
    copy = kind()
    copy._parameters.update(module._parameters)
    copy._buffers.update(module._buffers)
    copy._modules.update({name: renamed(child, kind) for name, child in module.named_children()})
    return copy


@pytest.mark.parametrize("condition_dim", [None, 5])
def test_published_pickle(
    condition_dim: int | None,
    published: dict[str, type[nn.Module]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    network = small(condition_dim=condition_dim)
    wrapper = published["Discriminator"]()
    wrapper.Model = renamed(network, published["Stage"])
    file = tmp_path / "r3gan.pkl"
    file.write_bytes(pickle.dumps({"G": None, "D": wrapper, "training_set_kwargs": {"path": "x"}}))
    monkeypatch.undo()
    assert same(load_discriminator(file), network)


def test_files_of_something_else(tmp_path: Path) -> None:
    other, broken, pickled = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.pkl"))
    save_file({"conv.weight": torch.zeros(1)}, other)
    broken.write_bytes(b"nothing of the kind")
    pickled.write_bytes(pickle.dumps({"ema": torch.zeros(1)}))
    for file, words in (
        (other, r"holds no R3GAN discriminator .*ExtractionLayer.Layer.weight"),
        (broken, "is not a whole safetensors file"),
        (pickled, r"has no network 'D', R3GAN's discriminator; it holds \['ema'\]"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            load_discriminator(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    pickled.write_bytes(pickle.dumps({"D": nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match="holds no R3GAN discriminator"):
        load_discriminator(pickled)
    with pytest.raises(FileNotFoundError):
        load_discriminator(tmp_path / "none.safetensors")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "scalar"])
def test_almost_a_discriminator(change: str, tmp_path: Path) -> None:
    weights = small().state_dict()
    first, last = (
        "MainLayers.0.Layers.0.LinearLayer1.Layer.weight",
        "MainLayers.1.Layers.2.LinearLayer.weight",
    )
    if change == "missing":
        del weights[last]
    elif change == "unexpected":
        weights["MappingLayer.weight"] = torch.zeros(1)
    else:
        weights[last if change == "shape" else first] = torch.zeros((3, 12) if change == "shape" else ())
    save_file(weights, tmp_path / "critic.safetensors")
    with pytest.raises(ValueError, match="holds no R3GAN discriminator") as caught:
        load_discriminator(tmp_path / "critic.safetensors")
    assert "\n" not in str(caught.value)
