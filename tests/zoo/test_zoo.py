"""The zoo: shipped models are models, their predictions are smooth in time, and bad files are refused."""

import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gas
from gas import zoo
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds
from gas.sampling import sample
from gas.zoo import data
from gas.zoo.networks import EDMUNet
from support.covering import covering

FINE = gas.Classical("unipc-3-bh2", "log_snr", nfe=10, t_end=1e-3)


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits")


@pytest.mark.slow
def test_shipped_models_are_models(digits):
    assert isinstance(digits, Model)
    for name in zoo.names():
        card = zoo.card(name)  # the classifier of emoji names 71 % of held-out pictures
        assert card["named_right"] >= (0.85 if name == "emoji" else 0.95)
        assert not any(p.requires_grad for p in zoo.load(name).network.parameters())
    weights = list(digits.path.parent.glob("*.safetensors"))
    assert all(path.with_suffix(".md").is_file() for path in weights)
    sizes = [path.stat().st_size for path in weights]
    assert max(sizes) < 12e6 and sum(sizes) < 25e6


@pytest.mark.slow
@covering(name=["digits", "mnist"], level=[-2.0, 0.0, 2.0])
def test_predictions_are_smooth_in_time(name, level):
    """A derivative over a small piece of time is the one over a larger: else nothing can be learned from it."""
    model = zoo.load(name)
    seeds = range(4)
    denoise = model.bind(labels_of_seeds(model.classes, seeds))
    alpha, sigma = model.schedule(model.schedule.inverse_half_log_snr(torch.tensor(level)))
    x = sample(denoise, model.noise(seeds), FINE.table(model.schedule).folded()) * alpha.float()
    x = x + sigma.float() * model.noise(seeds)

    def slope(reach):
        ends = (model.schedule.inverse_half_log_snr(torch.tensor(level + side)) for side in (reach, -reach))
        after, before = (denoise(x, t) for t in ends)
        return (after - before) / (2 * reach)

    fine, coarse = slope(0.005), slope(0.05)
    assert float((fine - coarse).norm()) < 0.1 * float(coarse.norm())


def test_the_classifier_reads_held_out_images(digits):
    x, label = data.digits().test
    assert float((digits.classifier(x).argmax(1) == label).double().mean()) >= 0.97


def test_noise_of_a_seed_does_not_depend_on_its_batch(digits):
    single = digits.noise([7])
    assert torch.equal(digits.noise([3, 7, 9])[1:2], single)
    assert torch.equal(digits.noise(range(7, 8)), single)


def test_classes_guidance_and_their_errors(digits):
    x, t = digits.noise(range(4)), torch.tensor(0.5, dtype=torch.float64)
    labels = labels_of_seeds(10, range(4))
    plain, null = digits.bind(labels)(x, t), digits.denoise(x, t)
    assert (plain - null).abs().max() > 0.01
    torch.testing.assert_close(digits.bind(None)(x, t), null)
    guided = digits.bind(labels, 2.0)(x, t)
    torch.testing.assert_close(guided, 2 * plain - null, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="label 10 is out of range: digits has 10 classes"):
        digits.bind(torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="label -1 is out of range"):
        digits.bind(torch.tensor([-1]))


@pytest.mark.slow
def test_guidance_sharpens_the_class(digits):
    labels = labels_of_seeds(10, range(50))
    with torch.no_grad():
        table = FINE.table(digits.schedule)
        logits = [
            digits.classifier(sample(digits.bind(labels, scale), digits.noise(range(50)), table)).softmax(1)
            for scale in (0.0, 1.0)
        ]
    right = [float(p[range(50), labels].mean()) for p in logits]
    assert right[0] < 0.4 < 0.9 < right[1]


@pytest.mark.parametrize("size", [8, 32])
def test_the_network_is_preconditioned(size):
    """At the start the last layer is zero: D is c_skip x, the best linear guess for data of std sigma_data."""
    network = EDMUNet(patch=size // 8, sigma_data=0.5)
    x, sigma = torch.randn(3, 1, size, size), torch.tensor([0.01, 0.5, 10.0])
    prediction = network(x, sigma, torch.tensor([0, 1, 10]))
    c_skip = 0.25 / (sigma**2 + 0.25)
    torch.testing.assert_close(prediction, x * c_skip[:, None, None, None])


def test_idx_files(tmp_path):
    import gzip

    raw = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    body = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + raw.tobytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(body))
    (tmp_path / "b").write_bytes(body)
    for name in ("a.gz", "b"):
        assert np.array_equal(data.read_idx(tmp_path / name), raw)
    (tmp_path / "short").write_bytes(body[:-1])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(body)[:-20])
    for name in ("short", "empty", "broken.gz"):
        with pytest.raises(ValueError, match=name):
            data.read_idx(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        data.mnist(tmp_path)


def test_mnist_pads_and_scales(tmp_path):
    raw = np.zeros((1100, 28, 28), np.uint8)
    raw[:, 0, 0] = 255
    head = struct.pack(">HBB3I", 0, 8, 3, *raw.shape)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(head + raw.tobytes())
    labels = (np.arange(1100) % 10).astype(np.uint8)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 1100) + labels.tobytes())
    images = data.mnist(tmp_path)
    assert images.x.shape == (1100, 1, 32, 32)
    assert images.x[0, 0, 2, 2] == 1
    assert float(images.x.sum()) == 1100 * (2 - 32 * 32)
    assert len(images.train[0]) == 100


def test_missing_truncated_and_foreign_weights(digits, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere.safetensors"):
        zoo.load(tmp_path / "nowhere.safetensors")
    whole = digits.path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.safetensors are damaged or not a zoo model"):
            zoo.load(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors are damaged or not a zoo model"):
        zoo.load(str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="unknown model 'digit': did you mean 'digits'"):
        zoo.load("digit")
