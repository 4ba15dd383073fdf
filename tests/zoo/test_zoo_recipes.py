"""The recipes of the shipped weights (tools/zoo): trainings resume to the same bits, and cards repeat."""

import math
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import cards
import latents
import pytest
import torch
from denoiser import MAX_FREQUENCY, smoothed, train_classifier, train_denoiser
from recipes import AUTOENCODER, DENOISERS, LATENT, Recipe

from gas import zoo
from gas.checkpoint import read_checkpoint
from gas.metrics.frechet import extract, feature_statistics, frechet_distance
from gas.zoo import data, latent as latent_models
from gas.zoo.networks import EDMUNet
from gas.zoo.weights_file import WEIGHTS

TRAIN = Path(__file__).parents[2] / "tools" / "zoo" / "train.py"
NAMES = ("mnist-latent", "mnist-flow")


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits")


@pytest.fixture(scope="module")
def measuring():
    return zoo.load("mnist")


def images(size=40):
    x = torch.rand(size + 20, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return data.Images("noise", x, torch.arange(size + 20) % 10, held_out=20)


@pytest.mark.parametrize(("shift", "mean"), [(1.0, 499.5), (2.0, 2000 * (1 - math.log(2)))])
def test_a_time_shift_makes_training_steps_noisier(shift, mean):
    """The mean of ``2 u / (1 + u)`` is ``2 - 2 log 2``."""
    config = latent_models.libraries()[0].DDIMScheduler(**LATENT["mnist-latent"].scheduler).config
    noised = latents.velocity_targets(config, shift)
    _, step, _ = noised(torch.zeros(20_000, 1, 1, 1), torch.Generator().manual_seed(0))
    assert float(step.double().mean()) == pytest.approx(mean, abs=8)
    assert int(step.min()) < 5 and 995 <= int(step.max()) < 1000


@pytest.mark.slow
def test_the_card_repeats(digits, monkeypatch):
    """Fewer samples and calls than the card's, so a wider tolerance; but from the same seeds."""
    monkeypatch.setattr(cards, "FINE", replace(cards.FINE, nfe=15))
    measured = cards.measure(digits, samples=300)
    assert measured["named_right"] == pytest.approx(digits.card["named_right"], abs=0.015)
    assert measured["frechet_to_held_out"] == pytest.approx(digits.card["frechet_to_held_out"], abs=1.0)
    noise = digits.noise(range(300))
    assert (
        frechet_distance(feature_statistics(extract(digits.classifier.features, noise)), digits.reference)
        > 10 * (measured["frechet_to_held_out"])
    )


@pytest.mark.slow
def test_the_embedding_is_regressed_on_low_frequencies_only():
    rough = {**DENOISERS["digits"].network, "width": 16}
    torch.manual_seed(0)
    before = EDMUNet(**rough)
    with torch.no_grad():  # a curve that low frequencies can follow, but which high ones enter
        before.noise[0].weight[:, 3:8] = 0
        before.noise[0].weight[:, 11:] = 0
    weights, network = smoothed(before.state_dict(), rough, steps=600)
    after = EDMUNet(**network)
    after.load_state_dict(weights)
    assert float(after.frequencies.max()) == pytest.approx(MAX_FREQUENCY)
    assert {k for k, v in weights.items() if not torch.equal(v, before.state_dict()[k])} == {
        f"noise.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    noise = torch.linspace(-1.5, 1.0, 50)
    with torch.no_grad():
        target, embedding = before.noise_embedding(noise), after.noise_embedding(noise)
    assert float((embedding - target).square().mean()) < 0.1 * float(target.var(dim=0).mean())


@pytest.fixture
def quick_cards(monkeypatch):
    """A card after two calls a sample, two steps of the classifier and a rough embedding."""
    monkeypatch.setattr(cards, "FINE", replace(cards.FINE, nfe=2))
    monkeypatch.setattr(cards, "smoothed", partial(smoothed, steps=50))
    monkeypatch.setattr(cards, "train_classifier", partial(train_classifier, epochs=1))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_cards")
def test_a_training_resumes_to_the_same_bits_and_builds(tmp_path):
    recipe = Recipe(
        network={**DENOISERS["digits"].network, "width": 16},
        steps=7,
        label_spread=2.0,
        batch=4,
    )
    images = data.digits()
    list(train_denoiser(recipe, images, tmp_path / "whole.pt", every=1))
    broken = train_denoiser(recipe, images, tmp_path / "broken.pt", every=1)
    for _ in range(4):
        next(broken)
    broken.close()
    list(train_denoiser(recipe, images, tmp_path / "broken.pt", every=1))
    whole, resumed = (
        read_checkpoint(tmp_path / "whole.pt"),
        read_checkpoint(tmp_path / "broken.pt"),
    )
    for name, value in whole["ema"].items():
        assert torch.equal(value, resumed["ema"][name]), name

    small = data.Images("digits", images.x[:400], images.label[:400], held_out=100)
    model = cards.build_model("tiny", small, recipe, tmp_path / "whole.pt", tmp_path, samples=80)
    assert model.card["steps"] == 7
    shipped, trained = model.network.label.weight, whole["ema"]["label.weight"]
    torch.testing.assert_close(shipped[-1], trained[-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shipped - shipped[-1], 2 * (trained - trained[-1]), rtol=1e-2, atol=5e-3)
    assert "| training | 7 steps of 4 images" in (tmp_path / "tiny.md").read_text()
    with pytest.raises(ValueError, match="at step 7 of 8"):
        cards.build_model("tiny", small, replace(recipe, steps=8), tmp_path / "whole.pt", tmp_path)


@pytest.mark.slow
def test_the_ema_and_the_weights_differ_but_the_ema_denoises(tmp_path):
    recipe = Recipe(network={**DENOISERS["digits"].network, "width": 16}, steps=40, batch=16, warmup=5)
    losses = [p.loss for p in train_denoiser(recipe, data.digits(), tmp_path / "s.pt", every=10)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_the_classifier_learns(digits):
    torch.manual_seed(0)
    classifier = type(digits.classifier)(size=8)
    assert train_classifier(classifier, data.digits(), epochs=3) > 0.85


def test_one_zero_token_stands_for_all_of_them():
    """SD3 has 256 zero tokens in place of a third encoder; attention to one of them, weighted, is the same."""
    vae, text = latent_models.read_shared(latent_models.shared_path(WEIGHTS))
    network = latent_models.denoiser("transformer", LATENT["mnist-flow"].training.network)
    with torch.no_grad():
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    pipe = latent_models.assemble("transformer", network, vae, text, {})
    predictions = []
    for tokens, times in ((256, 1), (1, 256)):
        condition = latents.encode_prompt(pipe, "three", tokens)
        x, t = torch.ones(1, 4, 8, 8), torch.tensor([300.0])
        with torch.no_grad():
            plain = network(x, timestep=t, **condition).sample
            with latents.RepeatedLastToken(times):
                predictions.append(network(x, timestep=t, **condition).sample)
    torch.testing.assert_close(predictions[0], predictions[1], rtol=0, atol=1e-4)
    assert float((plain - predictions[1]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_the_time_embedding_has_slow_frequencies_only(name):
    recipe = LATENT[name]
    network = latents.limit_time_frequencies(latent_models.denoiser(recipe.kind, recipe.training.network))
    shipped = dict(zoo.load(name).network.named_parameters())
    weight = next(n for n in shipped if "time" in n and n.endswith("linear_1.weight"))
    silent = network.get_parameter(weight).abs().sum(dim=0) == 0
    assert 0.2 < float(silent.float().mean()) < 0.8
    assert torch.equal(shipped[weight].abs().sum(dim=0) == 0, silent)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_cards")
def test_the_latent_recipes_train_and_resume(tmp_path, measuring):
    """All three, a few steps each: losses fall, files load as models, and an interruption changes nothing."""
    noise = images()
    recipe = replace(AUTOENCODER, steps=12, batch=8, warmup=1)
    *_, last = latents.train_autoencoder(recipe, noise, tmp_path / "vae.pt", every=4)
    assert last.step == 12
    start, *_ = latents.train_autoencoder(recipe, noise, tmp_path / "again.pt", every=4)
    assert last.loss < 0.9 * start.loss
    cards.build_autoencoder(noise, recipe, tmp_path / "vae.pt", tmp_path, measuring)
    vae, text = latent_models.read_shared(tmp_path / "mnist-autoencoder.safetensors")
    mean, std = latents.encode(vae, noise.train[0])
    assert float((mean.var() + std.square().mean()).sqrt()) == pytest.approx(1, abs=0.02)
    for name, latent in LATENT.items():
        latent = replace(latent, training=replace(latent.training, steps=3, horizon=0, batch=2, warmup=1))
        arguments = (latent, noise, vae, text)
        reports = latents.train_latent(*arguments, tmp_path / f"{name}.pt", every=1)
        next(reports)
        reports.close()  # killed after a step
        *_, last = latents.train_latent(*arguments, tmp_path / f"{name}.pt", every=1)
        *_, whole = latents.train_latent(*arguments, tmp_path / f"{name}-whole.pt", every=1)
        assert last.loss == whole.loss and last.step == 3
        path = cards.build_latent(
            name, latent, noise, tmp_path / f"{name}.pt", tmp_path, measuring, samples=8
        )
        model = zoo.load(path)
        assert model.name == name and model.classes == 10
        assert "samples that the classifier" in path.with_suffix(".md").read_text()


def test_training_needs_a_name_and_data(tmp_path, monkeypatch, capsys):
    def refused(*words):
        monkeypatch.setattr("sys.argv", [str(TRAIN), *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TRAIN), run_name="__main__")
        assert ended.value.code not in (None, 0)
        return f"{capsys.readouterr().err}{ended.value.code}"

    assert "mnist-autoencoder, mnist-latent, mnist-flow" in refused("mnist-x").replace("'", "")
    missing = refused("mnist-flow", "--data", tmp_path, "--out", tmp_path / "out")
    assert "t10k-images-idx3-ubyte[.gz] is missing: name the folder of the IDX files" in missing
