"""Published feature networks: their numbers are those of independent implementations, their files are only data."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import gas
from gas.evaluation.spaces import feature_space
from gas.features.extractor import extractor_by_name
from gas.features.images import as_bytes, resize_as_tensorflow
from gas.features.inception import Inception
from gas.features.lpips import LPIPS
from gas.features.per_sample import sample_metrics
from gas.features.real import RealImages
from gas.features.transformer import ClipScore
from gas.io import sha256
from gas.metrics.frechet import extract, feature_statistics, frechet_distance
from gas.metrics.statistics import accumulate, read_images, read_statistics, save_statistics
from gas.models.protocol import weights_hash
from gas.paper.backbone import load_backbone
from gas.paper.presets import PRESETS
from gas.unpickle.loading import read_state
from support import inception, standins
from support.commands import run
from support.components import clip_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "inception.json"


def noise(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Inception


def test_inception_is_torch_fidelitys():
    golden = json.loads(GOLDEN.read_text())
    outputs = Inception(inception.weights())(noise(2, 3, 40, 52))
    assert outputs.shape == (2, 2048)
    for name, value in (
        ("first", outputs[:, :8]),
        ("norm", outputs.norm(dim=1)),
        ("mean", outputs.mean(dim=1)),
    ):
        torch.testing.assert_close(value, torch.tensor(golden[name]), rtol=1e-4, atol=0.5)


def test_inception_takes_the_published_names_and_no_others():
    state = inception.weights(divide=16)
    network = Inception({**state, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)})
    grey = noise(1, 1, 8, 8)
    assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(
        ValueError, match=r"lacks Mixed_7c\.branch_pool\.conv\.weight, 1 missing and 0 unknown"
    ):
        Inception({name: x for name, x in state.items() if name != "Mixed_7c.branch_pool.conv.weight"})
    with pytest.raises(ValueError, match="has an unknown head"):
        Inception({**state, "head": torch.zeros(1)})
    wrong = {**state, "Mixed_5b.branch1x1.conv.weight": torch.zeros(4, 5, 1, 1)}
    with pytest.raises(ValueError, match="do not fit together"):
        Inception(wrong)
    with pytest.raises(ValueError, match="decode latents"):
        network(noise(1, 4, 8, 8))


def test_resize_and_bytes_by_hand():
    row = torch.tensor([[0.0, 4.0]]).expand(1, 1, 2, 2)
    assert resize_as_tensorflow(row, 4)[0, 0, 0].tolist() == [0.0, 2.0, 4.0, 4.0]
    levels = torch.arange(256).float()
    assert torch.equal(as_bytes(levels / 127.5 - 1), levels)  # bytes stay what they are
    assert as_bytes(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("executed",))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_files_of_weights_are_only_read(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "program.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("evil.pth", "program.pt"):
        with pytest.raises(ValueError, match="is not a file of weights alone"):
            read_state(tmp_path / name)
    with pytest.raises(ValueError, match="holds a list, not tensors by name"):
        read_state(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        extractor_by_name("inceptoin", tmp_path / "evil.pth")


# LPIPS


def vgg_state():
    generator, state, deep = torch.Generator().manual_seed(0), {}, 3
    wide = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    for place, width in zip([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28], wide, strict=True):
        size = (width, deep, 3, 3)
        state[f"features.{place}.weight"] = torch.randn(size, generator=generator) * (2 / (9 * deep)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
        deep = width
    return state


def layers_of(state):
    """VGG-16's features as torchvision lays them out."""
    pools, layers = (4, 9, 16, 23, 30), []
    for place in range(31):
        if place in pools:
            layers.append(torch.nn.MaxPool2d(2))
        elif f"features.{place}.weight" in state:
            weight = state[f"features.{place}.weight"]
            layers.append(torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
            layers[-1].load_state_dict({"weight": weight, "bias": state[f"features.{place}.bias"]})
        else:
            layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


@pytest.mark.slow
def test_lpips_is_torchmetrics(monkeypatch):
    """Its copy of LPIPS, with LPIPS's published weights of channels, around a VGG-16 that needs no torchvision."""
    from torchmetrics.functional.image import lpips as theirs

    state = vgg_state()
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: layers_of(state))
    independent = theirs._LPIPS(pretrained=True, net="vgg")
    linear = torch.load(
        Path(theirs.__file__).parent / "lpips_models" / "vgg.pth", map_location="cpu", weights_only=True
    )
    ours, x, y = LPIPS(state, linear, resize=None), noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=2)
    expected = independent(x, y).flatten()
    torch.testing.assert_close(ours.distance(x, y), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.loss()(x, y), expected, rtol=1e-4, atol=1e-6)
    assert ours.distance(x, x).tolist() == [0.0, 0.0]
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    ours.distance(black, x[:1]).sum().backward()
    assert bool(black.grad.isfinite().all())
    with pytest.raises(ValueError, match=r"lack 'features\.0\.weight'"):
        LPIPS(linear, linear)
    linear["lin0.model.1.weight"][0, 0] = -1
    with pytest.raises(ValueError, match="must not be negative"):
        LPIPS(state, linear)


# DINOv2 and CLIP


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    tokenizer, folder = clip_tokenizer(), tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config={**small, **words, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 1},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_dinov2_answers_with_its_class_token(dinov2):
    from transformers import Dinov2Model

    extractor = extractor_by_name("dinov2", dinov2)
    assert extractor.fingerprint() == {
        "features": "dinov2",
        "weights_sha256": sha256(dinov2 / "model.safetensors"),
    }
    images = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.no_grad():
        network = Dinov2Model.from_pretrained(dinov2).eval()
        expected = network((images / 255 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(images / 127.5 - 1), expected, rtol=1e-4, atol=1e-5)
    assert extractor(noise(3, 1, 8, 8)).shape == (3, 8)


def test_clip_scores_are_the_cosines_of_clip(clip):
    from transformers import CLIPModel

    score, texts = ClipScore(clip), ["a photo of a cat", "a dog " * 40]
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    network = CLIPModel.from_pretrained(clip).eval()
    tokens = score.tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        answer = network(pixel_values=(images / 255 - mean) / std, **tokens)
    cosines = answer.logits_per_image.diag() / network.logit_scale.exp()
    torch.testing.assert_close(score(images / 127.5 - 1, texts), 100 * cosines.detach().clamp(min=0))
    torch.testing.assert_close(
        torch.nn.functional.normalize(extractor_by_name("clip", clip)(images / 127.5 - 1)),
        answer.image_embeds,
    )
    with pytest.raises(ValueError, match="every image needs its text, got 2 images and 1 texts"):
        score(images, texts[:1])
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        ClipScore(clip / "none")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_evaluate_has_lpips_and_clip_score(clip, tmp_path, monkeypatch):
    preset = PRESETS["coco"].changed(["size=16"])
    monkeypatch.setitem(PRESETS, "coco", preset)
    folder = standins.write_weights(preset, tmp_path / "weights")
    model = load_backbone(preset, folder)
    table = gas.Classical("ddim", "log_snr", 2, preset.t_end).table(model.schedule)
    master = gas.Classical("ddim", "log_snr", 3, preset.t_end)
    row_measures = {"guidance": preset.guidance, "teacher": master.config()}
    gas.save(tmp_path / "x.json", table, model=model, **row_measures)
    words = ["paper", "evaluate", "coco", "--solver", tmp_path / "x.json", "--preset-weights", folder]
    words += ["--seeds", "50:53", "--baselines", "", "--metrics", "lpips,clip-score"]
    assert f"lpips needs vgg16-397923af.pth: put it at {folder}/vgg16" in run(*words, code=2).stderr
    standins.write_lpips(folder)
    (folder / "clip").symlink_to(clip)
    report = json.loads(run(*words, "--json").stdout)
    denoise, noise = model.bind(torch.arange(50, 53) % 3, preset.guidance), model.noise(range(50, 53))
    with torch.no_grad():
        samples, taught = (
            model.decode(gas.sample(denoise, noise, solver_table))
            for solver_table in (table, master.table(model.schedule))
        )
    files = folder / "vgg16-397923af.pth", folder / "lpips-vgg.pth"
    row, teacher = report["rows"][0]["more"], report["rows"][-1]["more"]
    expected = LPIPS.read(*files).distance(samples, taught)
    assert row["lpips"][0] == pytest.approx(float(expected.mean()), rel=1e-3) and teacher["lpips"][0] == 0
    texts = [model.prompts[seed % 3] for seed in range(50, 53)]
    assert row["clip-score"][0] == pytest.approx(float(ClipScore(clip)(samples, texts).mean()), rel=1e-3)
    assert report["lpips_sha256"] == ",".join(map(sha256, files))
    assert report["clip_sha256"] == sha256(clip / "model.safetensors")
    monkeypatch.setenv("GAS_WEIGHTS", str(folder))
    same = ["--set", "teacher=ddim", "--set", "teacher_grid=log_snr"]
    run("paper", "pairs", "coco", *same, "--nfe", 2, "--seeds", 8, "--out", tmp_path / "pairs")
    words = [
        "compare",
        "--model",
        "preset:coco",
        "--pairs",
        tmp_path / "pairs",
        "--validation",
        2,
        "--rank",
        1,
    ]
    words += ["--seeds", "50:53", "--solvers", "ddim/log_snr", "--nfe", 2, "--out", tmp_path / "out"]
    (row_measures,) = [
        row["metrics"]["more"]
        for row in json.loads(run(*words, "--metrics", "mse,lpips,clip-score", "--json").stdout)
        if row["spec"] == "ddim/log_snr"
    ]
    assert row_measures == pytest.approx(
        {name: pytest.approx(value, rel=1e-3) for name, value in row.items()}
    )
    text = (tmp_path / "out" / "report.md").read_text()
    assert "LPIPS to the teacher" in text and "CLIP score of the prompts" in text and "lpips_sha256: " in text
    with pytest.raises(ValueError, match="unknown metric 'lpipps': did you mean 'lpips'"):
        sample_metrics(["lpipps"], model, folder)
    with pytest.raises(ValueError, match="model digits has none: give --prompts"):
        sample_metrics(["clip-score"], gas.zoo.load("digits"), folder)


# Statistics


def test_statistics_in_batches_are_those_of_all_and_come_back(tmp_path):
    x = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = feature_statistics(x), accumulate(lambda f: f, x.split(4))
    torch.testing.assert_close(parts.cov, whole.cov, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-12)
    description = {"features": "inception", "weights_sha256": "a" * 64}
    for name in ("s.npz", "s.safetensors"):
        path = save_statistics(tmp_path / name, whole, description)
        again = read_statistics(path, description)
        assert torch.equal(again.mean, whole.mean)
        torch.testing.assert_close(again.cov, whole.cov, rtol=0, atol=1e-15)
        assert again.count == 37
        with pytest.raises(ValueError, match="statistics of other features: features inception, not dinov2"):
            read_statistics(path, {"features": "dinov2"})
    with pytest.raises(ValueError, match="at least two samples"):
        accumulate(lambda f: f, x[:1].split(1))
    with pytest.raises(ValueError, match=r"a \.safetensors or \.npz file"):
        save_statistics(tmp_path / "s.txt", whole)


def test_published_references_are_read_and_nothing_in_them_runs(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    images = np.random.default_rng(1).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    mu, sigma = x.mean(0), np.cov(x, rowvar=False)
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    expected = feature_statistics(torch.from_numpy(x))
    for name in ("edm.npz", "adm.npz"):
        assert frechet_distance(read_statistics(tmp_path / name), expected) < 1e-12
    images_read = read_images(tmp_path / "adm.npz")
    assert torch.equal(images_read, torch.from_numpy(images).permute(0, 3, 1, 2))
    np.savez(tmp_path / "evil.npz", mu=np.array([Evil()], dtype=object), sigma=sigma)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "edm.npz").read_bytes()[:-30])
    np.savez(tmp_path / "images.npz", arr_0=images)
    for name, text in (
        ("evil.npz", "is no .npz of plain arrays"),
        ("cut.npz", "is no .npz of plain arrays"),
        ("images.npz", "no statistics mu and sigma"),
    ):
        with pytest.raises(ValueError, match=text):
            read_statistics(tmp_path / name)
    with pytest.raises(ValueError, match="has no images"):
        read_images(tmp_path / "edm.npz")


def test_real_images_of_a_file_and_of_a_folder_are_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=images)
    np.savez(tmp_path / "edm.npz", mu=np.zeros(3), sigma=np.eye(3))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "holds no pictures" in why(folder)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    batch, pictures = RealImages(tmp_path / "adm.npz"), RealImages(folder)
    assert len(batch) == len(pictures) == 5
    for alone, two in zip(batch.batches(2), pictures.batches(2), strict=True):
        assert torch.equal(alone, two)
    assert torch.equal(next(batch.batches(9)), torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    before = pictures.sha256()
    Image.fromarray(images[0, :5]).save(folder / "4.png")
    assert pictures.sha256() != before != batch.sha256()
    with pytest.raises(ValueError, match=r"4\.png is 5 x 4, the first 6 x 4"):
        list(pictures.batches(2))
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        list(pictures.batches(2))
    assert "coverage need those of ADM's reference batch" in why(tmp_path / "edm.npz")
    with pytest.raises(FileNotFoundError, match="no real images at"):
        RealImages(tmp_path / "none")


def why(path):
    with pytest.raises(ValueError) as caught:
        RealImages(path)
    return str(caught.value)


def test_a_models_own_features_say_whose_they_are(tmp_path):
    """Two models of one width of features: their statistics are not each other's."""
    words = ["statistics", "--model", "digits", "--pairs", tmp_path / "pairs"]
    run("pairs", "--model", "digits", "--seeds", "50:54", "--nfe", 2, "--out", tmp_path / "pairs")
    model, other = gas.zoo.load("digits"), gas.zoo.load("mnist")
    for name in ("s.npz", "s.safetensors"):
        shown = json.loads(run(*words, "--out", tmp_path / name, "--json").stdout)
        assert shown["features_of"] == "digits"
        assert shown["weights_sha256"] == weights_hash(model.classifier) != weights_hash(other.classifier)
        fingerprint = feature_space(model, reference=tmp_path / name).fingerprint
        assert fingerprint["features_of"] == "digits"
        with pytest.raises(ValueError, match=r"features_of digits, not mnist.*gas statistics --model"):
            feature_space(other, reference=tmp_path / name)
    statistics_read = read_statistics(tmp_path / "s.npz")
    save_statistics(tmp_path / "old.npz", statistics_read, {"features": "model"})
    with pytest.raises(ValueError, match="does not say whose: make them again with gas statistics --model d"):
        feature_space(model, reference=tmp_path / "old.npz")
    save_statistics(tmp_path / "edm.npz", statistics_read)  # as papers publish them
    feature_space(model, reference=tmp_path / "edm.npz")


# From the command line


@pytest.mark.slow
def test_commands_measure_in_a_published_space_and_say_whose_weights(tmp_path):
    weights, model = tmp_path / "tiny.safetensors", gas.zoo.load("digits")
    save_file(inception.weights(divide=16), weights)
    run("pairs", "--model", "digits", "--seeds", "50:56", "--nfe", 4, "--out", tmp_path / "pairs")
    table = gas.Classical("ddim", "log_snr", 2, 1e-3).table(model.schedule)
    gas.save(tmp_path / "ddim.json", table, model=model)
    options, digest = ["--features", "inception", "--weights", weights], sha256(weights)
    where = ["--model", "digits", "--pairs", tmp_path / "pairs"]
    shown = run("statistics", *where, *options, "--out", tmp_path / "s.npz", "--json")
    assert json.loads(shown.stdout)["weights_sha256"] == digest
    pairs, network = gas.read_pairs(tmp_path / "pairs"), extractor_by_name("inception", weights)
    reference = feature_statistics(extract(network, pairs.target))
    assert frechet_distance(read_statistics(tmp_path / "s.npz"), reference) < 1e-9 * float(
        reference.cov.trace()
    )
    words = ["--model", "digits", "--solver", tmp_path / "ddim.json", "--seeds", "50:56", "--baselines", ""]
    words += [*options, "--reference", tmp_path / "s.npz", "--teacher-nfe", 4, "--json"]
    report = json.loads(run("evaluate", *words).stdout)
    assert report["weights_sha256"] == digest
    assert report["reference_sha256"] == sha256(tmp_path / "s.npz")
    samples = gas.sample(model.bind(torch.arange(50, 56) % 10), model.noise(range(50, 56)), table)
    expected = frechet_distance(feature_statistics(extract(network, samples)), reference)
    assert report["rows"][0]["frechet_data"] == pytest.approx(expected, rel=1e-3)
    cell = ["--solvers", "ddim/log_snr", "--nfe", 2, "--seeds", "70:74", "--validation", 2]
    run("compare", *where, *cell, *options, "--out", tmp_path / "out")
    cell_content = json.loads((tmp_path / "out" / "cells" / "ddim+log_snr-2.json").read_text())
    assert cell_content["measured"]["weights_sha256"] == digest
    report_text = (tmp_path / "out" / "report.md").read_text()
    assert (
        f"compared in features inception (weights' SHA-256 {digest}); there are no statistics of data."
        in report_text
    )
    refusals = {
        ("--features", "inception"): "needs --weights: nothing is downloaded",
        ("--weights", weights): "name it with --features",
        ("--real", tmp_path / "s.npz"): "pictures need a published network",
        (
            *options,
            "--real",
            tmp_path / "s.npz",
        ): "need those of ADM's reference batch or a folder of pictures",
    }
    for option, text in refusals.items():
        assert text in run("evaluate", *words[:8], *option, code=2).stderr
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=images)
    out = tmp_path / "adm.safetensors"
    run("statistics", "--images", tmp_path / "adm.npz", *options, "--out", out)
    assert read_statistics(out).count == 3
    assert "either --pairs or --images" in run("statistics", "--out", out, code=2).stderr


def test_the_same_statistics_are_the_same_bytes(tmp_path):
    """safetensors writes several notes in an order of chance."""
    summed = accumulate(lambda x: x, [torch.arange(12.0).reshape(6, 2)])
    description = {
        name: f"{name}'s é" for name in ("features", "features_of", "weights_sha256", "a", "b", "c")
    }
    files = {save_statistics(tmp_path / "s.safetensors", summed, description).read_bytes() for _ in range(8)}
    assert len(files) == 1
    read = read_statistics(tmp_path / "s.safetensors", description)
    assert torch.equal(read.cov, summed.cov)
    assert torch.equal(read.mean, summed.mean)
