"""GAS on real data alone: it brings distributions closer without a pair, and refuses data that are not the model's."""

import itertools
import struct

import numpy as np
import pytest
import torch
from torch import nn

import gas
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.metrics.frechet import FrechetCriterion
from gas.models.seeds import noise_of_seeds
from gas.pairs.dataset import Pairs
from gas.table import table_of
from gas.training.adam import Adam
from gas.training.adversarial.losses import Critic
from gas.training.adversarial.real import distill_real, real_pairs, unpaired
from gas.training.adversarial.setup import Adversary, FixedNoiseCriterion, adversary_for
from support.doubles import MIXTURE, Mixture

pytestmark = pytest.mark.usefixtures("few_classical_solvers")


def reals(count=400):
    """The mixture's own data, which no noise belongs to."""
    seeds = torch.arange(2**43, 2**43 + count)
    labels = seeds % MIXTURE.classes
    spread = MIXTURE.std * noise_of_seeds((2,), range(count))
    return Pairs(seeds, MIXTURE.noise(seeds.tolist()), MIXTURE.modes()[labels] + spread, labels)


def critics():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    return [
        Critic("plane", nn.Sequential(network, nn.Flatten(0)), learning_rate=1e-3, penalty=0.1, warmup=30)
    ]


def moments(x):
    return torch.cat([x, x.square(), x.prod(1, keepdim=True)], dim=1)


def adversary(data, iterations=90):
    criterion = FixedNoiseCriterion(MIXTURE, FrechetCriterion(moments, data.target), samples=400)
    config = Adam(iterations=iterations, batch=64, learning_rate=5e-3, validate_every=30)
    return Adversary(critics, criterion, config=config)


def test_real_data_alone_bring_the_distribution_closer(tmp_path):
    data = reals()
    *_, result = distill_real(MIXTURE, adversary(data), data, 2, checkpoint=tmp_path / "nfe-2-gas.pt")
    before, after = result.criterion
    assert after < 0.8 * before and result.loss == after
    assert result.best_classical_loss == result.measures["start_loss"] == before
    measured = adversary(data).criterion(result.table())
    assert measured == pytest.approx(after, rel=1e-6)
    gas.save(tmp_path / "s.json", result, model=MIXTURE)
    training = gas.load(tmp_path / "s.json").document.training
    assert training["objective"] == "gas" and training["real"] == 400


def test_where_nothing_comes_nearer_the_start_stays(tmp_path):
    data = reals(200)
    start = Classical("unipc-2-bh2", "log_snr", 3, MIXTURE.t_end).table(MIXTURE.schedule)
    gas.save(tmp_path / "s.json", start, model=MIXTURE)
    values = itertools.count()
    worse = Adversary(critics, lambda table: float(next(values)), config=Adam(iterations=40))
    *_, result = distill_real(MIXTURE, worse, data, 3, start=gas.load(tmp_path / "s.json"))
    torch.testing.assert_close(table_of(result.solver).outputs, start.outputs)


def test_the_loss_without_pairs_is_zero_and_has_a_gradient():
    x = torch.randn(3, 2, requires_grad=True)
    unpaired(x, x.detach() + 1).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 2))


def test_a_weight_in_units_of_a_paired_loss_is_refused():
    data = reals(60)
    config = Adam(iterations=2, batch=24)
    paired = Adversary(critics, lambda table: 0.0, config=config, unit="paired")
    with pytest.raises(UserError, match="needs a weight"):
        next(distill_real(MIXTURE, paired, data, 2))


@pytest.fixture
def idx(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (1008, 28, 28), dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(
        struct.pack(">HBB3I", 0, 8, 3, *raw.shape) + raw.tobytes()
    )
    labels = bytes(i % 10 for i in range(1008))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 1008) + labels)
    return tmp_path


def test_held_out_images_are_not_learned_from(idx):
    model = gas.zoo.load("mnist")
    pairs, images = real_pairs(model, idx), gas.zoo.data.mnist(idx)
    assert torch.equal(pairs.target, images.train[0]) and torch.equal(pairs.labels, images.train[1])
    assert len(pairs) == 8 and torch.equal(pairs.noise, model.noise(pairs.seeds.tolist()))
    adversary = adversary_for(model, pairs, weight=1.0, samples=2)
    with pytest.raises(UserError, match="at least two batches"):
        list(distill_real(model, adversary, pairs, 1))


def picture(path, side):
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((side, side), 128, np.uint8)).save(path)


def test_pictures_are_gray_where_the_model_is(tmp_path):
    for i in range(3):
        picture(tmp_path / "real" / f"{i}.png", 8)
    pairs = real_pairs(gas.zoo.load("digits"), tmp_path / "real", guidance=2.0)
    assert pairs.sample_shape == (1, 8, 8) and pairs.guidance == 2.0
    assert pairs.labels.tolist() == [(2**43 + i) % 10 for i in range(3)]
    assert float(pairs.target.mean()) == pytest.approx(128 / 127.5 - 1, abs=1e-6)


class Latents(Mixture):
    """A mixture whose samples are latents."""

    def decode(self, x):
        return x


def test_latents_are_not_compared_with_images(tmp_path):
    with pytest.raises(UserError, match="samples latents"):
        real_pairs(Latents(), tmp_path)


def test_data_of_another_kind_are_one_line(idx, tmp_path):
    digits = gas.zoo.load("digits")
    picture(tmp_path / "large" / "0.png", 16)
    (tmp_path / "none").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "0.png").write_bytes(b"no picture")
    for path, message in (
        (idx, "images of 1x32x32, model digits makes 1x8x8"),
        (tmp_path / "large", "images of 1x16x16, model digits makes 1x8x8"),
        (tmp_path / "none", "holds no pictures"),
        (tmp_path / "torn", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            real_pairs(digits, path)
