"""EDM's networks: the published numbers, each part against another way of computing it, and their files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

import gas
from gas.paper import edm
from gas.paper.edm import EDMNetwork, read_weights, write_weights
from gas.paper.edm_networks import Block, Convolution, FourierEmbedding, PositionalEmbedding, attention
from support.covering import covering
from support.published import close, drawn, write_edm

GOLDEN = Path(__file__).parents[1] / "golden" / "edm_ddpmpp_tiny.safetensors"
SIZES: dict[str, Any] = {"img_resolution": 8, "img_channels": 2, "model_channels": 8, "num_blocks": 1}
SIZES |= {"channel_mult": [1, 2, 2], "attn_resolutions": [4], "dropout": 0.1, "augment_dim": 5}
SONG: dict[str, Any] = SIZES | {"model_type": "SongUNet"}
NCSN: dict[str, Any] = {"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
ADM = {"model_channels": 16, "channel_mult": [4, 8], "channel_mult_emb": 1}  # 64 channels a head
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPM++": ("EDMPrecond", SONG),
    "DDPM++ with classes": ("EDMPrecond", SONG | {"label_dim": 3, "label_dropout": 0.1}),
    "NCSN++": ("EDMPrecond", SONG | NCSN | {"encoder_type": "residual"}),
    "ADM": ("EDMPrecond", {**SIZES, **ADM, "label_dim": 3, "use_fp16": True}),
    "VP baseline": ("VPPrecond", SONG),
    "VE baseline": ("VEPrecond", SONG | NCSN | {"encoder_type": "residual"}),
}


def network(form: str, seed: int = 0, **changes: Any) -> EDMNetwork:
    kind, kwargs = FORMS[form]
    torch.manual_seed(seed)
    return drawn(EDMNetwork(kind, **kwargs | changes), seed).double()


def ask(net: EDMNetwork, x: Tensor | None = None, sigma: float = 0.7, labels: Tensor | None = None) -> Tensor:
    torch.manual_seed(5)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64) if x is None else x
    return net(x, torch.full((len(x),), sigma, dtype=x.dtype), labels)


# ---------------------------------------------------------------- the numbers


def test_published_numbers() -> None:
    with safe_open(GOLDEN, framework="pt") as file:
        x, sigma, y = (file.get_tensor(f"io.{name}") for name in ("x", "sigma", "y"))
    net = edm.read(GOLDEN)
    assert (net(x, sigma) - y).abs().max() < 5e-6
    assert (net.double()(x.double(), sigma.double()) - y).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("kwargs", "millions"),
    [
        ({"model_type": "SongUNet", "channel_mult": [2, 2, 2], "img_resolution": 32, "augment_dim": 9}, 56),
        (
            {"model_type": "SongUNet", "channel_mult": [1, 2, 2, 2], "img_resolution": 64, "augment_dim": 9},
            62,
        ),
        ({"model_type": "DhariwalUNet", "img_resolution": 64, "label_dim": 1000}, 296),
    ],
)
def test_published_sizes(kwargs: dict[str, Any], millions: int) -> None:
    """Millions of parameters of CIFAR-10, FFHQ and ImageNet as in arXiv 2206.00364, Table 7."""
    with torch.device("meta"):
        net = EDMNetwork("EDMPrecond", img_channels=3, **kwargs)
    assert round(sum(value.numel() for value in net.parameters()) / 1e6) == millions


@pytest.mark.parametrize("channels", [16, 32, 60, 64, 96, 128, 192])
def test_adm_has_one_head_per_64_whole_channels(channels: int) -> None:
    """Below 64 the published code rounds the heads down to none, and so has no attention weights."""
    block = Block(channels, channels, 8, heads=-1)
    names = {name for name, _ in block.named_parameters() if name.startswith(("norm2", "qkv", "proj"))}
    heads = channels // 64
    assert block.heads == heads
    assert bool(names) == bool(heads)


def test_a_narrow_adm_is_read_without_attention(tmp_path: Path) -> None:
    narrow = {
        "model_channels": 8,
        "channel_mult": [4, 8],
        "attn_resolutions": [4, 8],
    }  # 32 and 64 channels wide
    net = network("ADM", **narrow)
    attending = {name.split(".")[2] for name in net.state_dict() if ".qkv." in name}
    assert attending and all(name.startswith("4x4") for name in attending)
    kind, kwargs = FORMS["ADM"]
    path = write_edm(tmp_path / "adm.pkl", kind, net.float(), kwargs | narrow)
    x, sigma = torch.randn(2, 2, 8, 8), torch.full((2,), 0.7)
    assert torch.equal(edm.read(path).float()(x, sigma, None), net(x, sigma, None))


# ---------------------------------------------------------------- parts, computed another way


def spread(x: Tensor, taps: list[float], margin: int) -> Tensor:
    """Upsample by writing every pixel's share of every output pixel out."""
    f = torch.tensor(taps, dtype=x.dtype)
    kernel, side = 4 * torch.outer(f, f) / f.sum() ** 2, 2 * x.shape[-1]
    y = torch.zeros(*x.shape[:2], side, side, dtype=x.dtype)
    for row, column in itertools.product(range(x.shape[-1]), repeat=2):
        for i, j in itertools.product(range(len(taps)), repeat=2):
            to = (2 * row + i - margin, 2 * column + j - margin)
            if min(to) >= 0 and max(to) < side:
                y[:, :, *to] += x[:, :, row, column] * kernel[i, j]
    return y


def gather(x: Tensor, taps: list[float], margin: int) -> Tensor:
    """Downsample by adding up what lies under the filter, zero beyond the edge."""
    f = torch.tensor(taps, dtype=x.dtype)
    kernel, side = torch.outer(f, f) / f.sum() ** 2, x.shape[-1]
    y = torch.zeros(*x.shape[:2], side // 2, side // 2, dtype=x.dtype)
    for row, column in itertools.product(range(side // 2), repeat=2):
        for i, j in itertools.product(range(len(taps)), repeat=2):
            at = (2 * row + i - margin, 2 * column + j - margin)
            if min(at) >= 0 and max(at) < side:
                y[:, :, row, column] += x[:, :, *at] * kernel[i, j]
    return y


@pytest.mark.parametrize(("taps", "margin"), [([1, 1], 0), ([1, 3, 3, 1], 1)])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_resampling(taps: list[float], margin: int, kernel: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for up, by_hand in ((True, spread), (False, gather)):
        layer = Convolution(3, 3 if kernel == 0 else 4, kernel, up=up, down=not up, taps=taps).double()
        expected = by_hand(x, taps, margin)
        if layer.weight is not None:
            expected = F.conv2d(expected, layer.weight, layer.bias, padding=kernel // 2)
        assert close(layer(x), expected)


@pytest.mark.parametrize(("taps", "margin"), [([1, 1], 0), ([1, 3, 3, 1], 1)])
def test_fused_resampling_filters_after_the_weights(taps: list[float], margin: int) -> None:
    """Away from the edge the order does not matter; at the edge the fused form sees more than the map."""
    torch.manual_seed(0)
    layer = Convolution(3, 4, 3, down=True, taps=taps, fused=True).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    # The weighted map, and what the filter sees beyond.
    wide = F.conv2d(F.pad(x, [1 + margin] * 4), layer.weight)
    f = torch.tensor(taps, dtype=torch.float64)
    kernel, reach = torch.outer(f, f) / f.sum() ** 2, range(len(taps))
    parts = [kernel[i, j] * wide[..., i : i + 11 : 2, j : j + 11 : 2] for i in reach for j in reach]
    expected = torch.stack(parts).sum(0)
    assert close(layer(x), expected + layer.bias[:, None, None])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_a_softmax(heads: int) -> None:
    torch.manual_seed(0)
    qkv, width = torch.randn(2, 24, 3, 5, dtype=torch.float64), 8 // heads
    answer = attention(qkv, heads).flatten(2)
    for batch, head in itertools.product(range(2), range(heads)):
        head_weights = qkv[batch].flatten(1)[3 * width * head : 3 * width * (head + 1)]
        q, k, v = (
            head_weights[0::3],
            head_weights[1::3],
            head_weights[2::3],
        )  # interleaved, channel by channel
        weights = torch.softmax(q.T @ k / math.sqrt(width), dim=1)
        assert close(answer[batch, width * head : width * (head + 1)], v @ weights.T)


def test_embeddings() -> None:
    c = torch.tensor([0.0, 0.3, 900.0], dtype=torch.float64)
    for endpoint, last in ((True, 1e-4), (False, 1e-3)):
        e = PositionalEmbedding(8, endpoint=endpoint)(c)
        assert close(e[:, 0], c.cos()) and close(e[:, 4], c.sin())
        assert close(e[:, 3], (c * last).cos()) and close(e[:, 7], (c * last).sin())
        flipped = PositionalEmbedding(8, endpoint=endpoint, sine_first=True)(c)
        assert torch.equal(flipped, torch.cat([e[:, 4:], e[:, :4]], dim=1))
    layer = FourierEmbedding(8).double()
    angle = 2 * math.pi * layer.freqs * c[:, None]
    assert close(layer(c), torch.cat([angle.sin(), angle.cos()], dim=1), 1e-9)


def test_a_block_without_its_branch_is_its_shortcut() -> None:
    torch.manual_seed(0)
    x, e = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    for up, down, by_hand in (
        (False, False, x),
        (True, False, spread(x, [1, 1], 0)),
        (False, True, gather(x, [1, 1], 0)),
    ):
        block = drawn(Block(8, 8, 6, up=up, down=down, gain=math.sqrt(0.5))).double()
        block.conv1.weight.zero_()
        block.conv1.bias.zero_()
        assert close(block(x, e), by_hand * math.sqrt(0.5))


# ---------------------------------------------------------------- whole networks


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_matters_but_those_of_augmentation(form: str) -> None:
    net = network(form)
    labels = torch.tensor([0, 2]) if net.label_dim else None
    ask(net.requires_grad_(), labels=labels).square().sum().backward()
    for name, value in net.named_parameters():
        used = value.grad is not None and bool((value.grad != 0).any())
        assert used != ("map_augment" in name), name


@pytest.mark.parametrize("form", FORMS)
def test_samples_do_not_mix_and_levels_are_per_sample(form: str) -> None:
    net, x = network(form), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    both = net(x, sigma)
    assert close(both, torch.cat([net(x[i : i + 1], sigma[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize("form", ["DDPM++ with classes", "ADM"])
def test_classes(form: str) -> None:
    net, none = network(form), torch.tensor([3, 3])
    assert torch.equal(ask(net), ask(net, labels=none))
    assert not torch.allclose(ask(net), ask(net, labels=torch.tensor([0, 0])))
    assert not torch.allclose(ask(net, labels=torch.tensor([1, 1])), ask(net, labels=torch.tensor([0, 0])))


def test_preconditioning_of_a_network_that_answers_zero() -> None:
    for form, skip in (("DDPM++", 0.25 / (0.25 + 0.49)), ("VP baseline", 1.0), ("VE baseline", 1.0)):
        net, x = network(form), torch.randn(2, 2, 8, 8, dtype=torch.float64)
        net.model.dec["8x8_aux_conv"].weight.zero_()
        net.model.dec["8x8_aux_conv"].bias.zero_()
        assert close(ask(net, x, 0.7), skip * x)


def test_preconditioning_keeps_the_variance() -> None:
    """EDM's defining property: input and target of the network have variance 1 at every level (section 5)."""
    s = torch.tensor([1e-3, 0.5, 80.0], dtype=torch.float64)
    skip, out, inside, _ = network("DDPM++").precondition(s)
    assert close(inside**2 * (s**2 + 0.25), torch.ones(3, dtype=torch.float64))
    assert close(((1 - skip) ** 2 * 0.25 + skip**2 * s**2) / out**2, torch.ones(3, dtype=torch.float64))


def test_a_vp_network_is_told_its_own_time() -> None:
    t = torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    alpha, sigma = gas.VPLinear(0.1, 20.0)(t)
    *_, labels_of_network = network("VP baseline").precondition(sigma / alpha)
    assert close(labels_of_network, 999 * t, 1e-9)
    net = network("VP baseline")
    assert (net.sigma_min, net.sigma_max) == pytest.approx((1.0005e-3, 152.2), rel=1e-3)


# ---------------------------------------------------------------- files


@covering(form=FORMS.keys(), protocol=[2, 4])
def test_a_published_pickle_and_its_safetensors_answer_alike(
    form: str, protocol: int, tmp_path: Path
) -> None:
    kind, kwargs = FORMS[form]
    net = network(form).float()
    file = write_edm(tmp_path / "edm.pkl", kind, net, kwargs, protocol)
    write_weights(read_weights(file), tmp_path / "edm.safetensors")
    expected = ask(net.double())
    for path in (file, tmp_path / "edm.safetensors"):
        read = edm.read(path)
        assert list(read.state_dict()) == list(net.state_dict())
        assert torch.equal(ask(read.double()), expected)
    assert not file.with_suffix(".mark").exists()
    with safe_open(tmp_path / "edm.safetensors", framework="pt") as opened:
        card = opened.metadata()
    assert card["class_name"] == kind and json.loads(card["init_kwargs"]) == json.loads(json.dumps(kwargs))
    assert card["source"] == "edm.pkl" and len(card["source_sha256"]) == 64


def test_a_published_network_of_unbounded_noise(tmp_path: Path) -> None:
    """EDM's default of ``sigma_max`` is infinite."""
    kind, kwargs = FORMS["DDPM++"]
    kwargs = {**kwargs, "sigma_max": math.inf}
    file = write_edm(tmp_path / "edm.pkl", kind, network("DDPM++").float(), kwargs)
    write_weights(read_weights(file), tmp_path / "edm.safetensors")
    assert edm.read(file).sigma_max == edm.read(tmp_path / "edm.safetensors").sigma_max == math.inf


def test_a_model_to_sample(tmp_path: Path) -> None:
    kind, kwargs = FORMS["DDPM++ with classes"]
    model = edm.load(write_edm(tmp_path / "mine.pkl", kind, network("DDPM++ with classes").float(), kwargs))
    assert isinstance(model, gas.models.Model)
    assert (model.name, model.sample_shape, model.classes, model.t_end) == ("mine", (2, 8, 8), 3, 1e-3)
    assert model.schedule == gas.EDMasVP(1e-3, 0.002, 80.0)
    noise = model.noise(range(4))
    assert torch.equal(model.noise([2])[0], noise[2])
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = model.schedule(t)
    labels = torch.tensor([0, 1, 2, 0])
    net = edm.read(tmp_path / "mine.pkl")
    level = (sigma / alpha).float().expand(4)
    assert close(model.bind(labels)(noise, t), net((noise / alpha).float(), level, labels), 1e-5)
    guided = model.bind(labels, 2.0)(noise, t)
    assert close(guided, 2 * model.bind(labels)(noise, t) - model.denoise(noise, t), 1e-4)
    table = gas.classical.dpmpp(model.schedule, gas.grids.time_uniform(model.schedule, 3, 1e-3), order=3)
    assert bool(gas.sample(model.bind(labels), noise, table).isfinite().all())
    assert len(model.fingerprint()["sha256"]) == 64


def test_a_network_never_told_nothing_cannot_be_guided(tmp_path: Path) -> None:
    kind, kwargs = FORMS["ADM"]
    model = edm.load(write_edm(tmp_path / "adm.pkl", kind, network("ADM").float(), kwargs))
    with pytest.raises(ValueError, match="adm has no null label"):
        model.bind(torch.tensor([0]), 2.0)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("iDDPMPrecond", {}, "unknown EDM preconditioning 'iDDPMPrecond'"),
        ("EDMPrecond", {"model_type": "Transformer"}, "unknown EDM architecture 'Transformer'"),
        ("EDMPrecond", {"depth": 3}, "SongUNet cannot be built: .*depth"),
        ("EDMPrecond", {"encoder_type": "skip"}, "encoder_type must be 'standard' or 'residual', got 'skip'"),
        ("EDMPrecond", {"num_blocks": 2}, r"holds no EDM network.*Missing key"),
        ("EDMPrecond", {"num_blocks": 10**9}, "num_blocks = 1000000000 is not a size of a network"),
        ("EDMPrecond", {"channel_mult": [1] * 99}, "channel_mult = .* is not a size"),
        ("EDMPrecond", {"channel_mult": []}, "channel_mult must name at least one level"),
        ("EDMPrecond", {"img_channels": 3}, "holds no EDM network.*size mismatch"),
        ("EDMPrecond", {"resample_filter": [1, 3, 3, 1]}, "holds no EDM network.*size mismatch"),
    ],
)
def test_files_of_another_network(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = write_edm(tmp_path / "edm.pkl", kind, network("DDPM++").float(), SONG | changes)
    with pytest.raises(ValueError, match=words) as caught:
        edm.read(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"no whole safetensors file of an EDM network .*`gas paper convert"):
        edm.read(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError):
        edm.read(tmp_path / "none.safetensors")
