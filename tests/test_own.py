"""A model of one's own goes through the whole of the library: pairs, learning, file, samples."""

import pytest
import torch
from torch import nn

import gas
from doubles import Gaussian, Mixture
from gas.model import labels_of_seeds, weights_hash


class Network(nn.Module):
    """Predicts the noise of N(0.3, 0.5^2) data exactly, bent a little so that there is something to learn."""

    def __init__(self, bend=0.3):
        super().__init__()
        self.exact = Gaussian()
        self.bend = nn.Parameter(torch.tensor(bend))

    def forward(self, x, t):
        alpha, sigma = self.exact.schedule(t[0].double())
        x0 = self.exact.denoise(x, t[0].double()) + self.bend * torch.sin(3 * x)
        return ((x - alpha * x0) / sigma).to(x.dtype)


def test_pairs_learning_file_and_samples(tmp_path):
    schedule, network = gas.VPLinear(), Network().eval().requires_grad_(False)
    model = gas.OwnModel(gas.denoise.NoiseDenoiser(network, schedule), schedule, (2, 3), weights=network)
    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=model.t_end)
    spec = gas.PairsSpec(range(96), teacher.config())
    for _ in gas.write_pairs(model, teacher.table(schedule), tmp_path / "pairs", spec):
        pass
    pairs = gas.read_pairs(tmp_path / "pairs", model=model)
    *_, made = gas.distill(model, *pairs.split(32), 3)
    assert made.loss < made.best_classical_loss
    gas.save(tmp_path / "own.json", made.solver, model=model)
    artefact = gas.load(tmp_path / "own.json")
    artefact.check(model)
    x0 = gas.sample(model.bind(None), model.noise(range(4)), artefact.table(3))
    assert x0.shape == (4, 2, 3)
    other = Network(0.4).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="another model"):
        artefact.check(
            gas.OwnModel(gas.denoise.NoiseDenoiser(other, schedule), schedule, (2, 3), weights=other)
        )


def test_classes_guidance_and_no_class():
    mixture = Mixture()

    def denoise(x, t, labels):
        conditional = mixture.bind(labels.clamp(max=4))(x, t)
        return torch.where((labels == 5)[:, None], mixture.denoise(x, t), conditional)

    model = gas.OwnModel(denoise, mixture.schedule, (2,), classes=5, null=5)
    x, t = mixture.noise(range(6)), torch.tensor(0.6, dtype=torch.float64)
    labels = labels_of_seeds(5, range(6))
    torch.testing.assert_close(model.bind(labels)(x, t), mixture.bind(labels)(x, t))
    torch.testing.assert_close(model.denoise(x, t), mixture.denoise(x, t))
    guided = torch.lerp(mixture.denoise(x, t), mixture.bind(labels)(x, t), 2.0)
    torch.testing.assert_close(model.bind(labels, 2.0)(x, t), guided)
    with pytest.raises(ValueError, match="label 5 is out of range: own knows classes 0 to 4"):
        model.bind(torch.tensor([5]))
    with pytest.raises(ValueError, match="needs labels"):
        model.bind(None, 2.0)
    without = gas.OwnModel(denoise, mixture.schedule, (2,), classes=5)
    with pytest.raises(ValueError, match="no null label"):
        without.bind(labels, 2.0)
    with pytest.raises(ValueError, match="needs classes to guide towards"):
        gas.OwnModel(mixture.denoise, mixture.schedule, (2,)).bind(None, 2.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_shape": ()}, "sample_shape must"),
        ({"t_end": 1.0}, "t_end must"),
        ({"classes": -1}, "classes must"),
        ({"weights": nn.Linear(1, 1)}, "must be frozen"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    told = {"sample_shape": (2,), **wrong}
    with pytest.raises(ValueError, match=message):
        gas.OwnModel(lambda x, t: x, gas.VPLinear(), **told)


def test_the_hash_is_of_names_shapes_and_values():
    hashes = {weights_hash(Network(bend)) for bend in (0.3, 0.4)} | {
        weights_hash(nn.Linear(1, 1, bias=False))
    }
    assert len(hashes) == 3
    assert weights_hash(Network()) == weights_hash(Network())
