"""The recipe of ``emoji`` (tools/zoo): its archive, its tokenizer, and a training that resumes to the same bits."""

import io
import json
import tarfile
from dataclasses import replace

import cards
import emoji_denoiser as recipe_of_emoji
import numpy as np
import pytest
import torch
from emoji_data import read_emoji
from latents import edge_loss, train_autoencoder
from PIL import Image
from recipes import EMOJI, EMOJI_AUTOENCODER

from gas import zoo
from gas.checkpoint import read_checkpoint
from gas.errors import UserError
from gas.io import sha256
from gas.zoo import latent as latent_models
from gas.zoo.weights_file import read_weights, write_weights

CATEGORIES = ("Flags", "Objects", "Symbols")
ANIMALS = ("cat", "dog", "owl", "fox", "bee", "ant", "cow", "pig", "bat", "rat", "yak", "emu")
COLORS = ("red", "blue", "teal", "pink")


def entry(index, name):
    return {
        "name": name.upper(),
        "short_name": name.replace(" ", "-"),
        "image": f"{index:04x}.png",
        "category": CATEGORIES[index % 3],
        "subcategory": "small things",
        "has_img_google": True,
    }


def png(index, side=64):
    pixels = np.random.default_rng(index).integers(0, 256, (4, 4, 4), np.uint8)
    picture = Image.fromarray(pixels).resize((side, side))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def files():
    """The members of a small package: 48 pictures of random squares."""
    names = [f"{color} {animal}" for color in COLORS for animal in ANIMALS]
    entries = [entry(i, name) for i, name in enumerate(names)]
    pictures = {f"package/img/google/64/{e['image']}": png(i) for i, e in enumerate(entries)}
    return {"package/emoji.json": json.dumps(entries).encode(), **pictures}


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            if member is data:
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def read(path):
    return read_emoji(path, checksum=sha256(path))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    emoji = read(archive(tmp_path_factory.mktemp("emoji") / "small.tgz", files()))
    return replace(emoji, denoiser_categories=("Flags", "Objects"))


def test_pictures_are_on_white_with_prompts_and_some_are_held_out(small):
    assert small.images.x.shape == (48, 3, 64, 64) and small.categories == CATEGORIES
    first = small.names.index("red cat")
    raw = np.asarray(Image.open(io.BytesIO(png(0))), float)
    opacity = raw[..., 3:] / 255
    expected = torch.from_numpy(raw[..., :3] * opacity + 255 * (1 - opacity)).permute(2, 0, 1)
    torch.testing.assert_close((small.images.x[first].double() + 1) * 127.5, expected, rtol=0, atol=1.0)
    assert small.aliases[first] == ("red cat small things", "red cat")
    drawn = [i for i, label in enumerate(small.images.label) if CATEGORIES[label] != "Symbols"]
    assert small.trained + small.held_out == drawn and len(drawn) == 32
    assert len(small.names) - small.images.held_out == min(small.held_out) > max(small.trained)
    words = recipe_of_emoji.vocabulary(small)
    assert {"red", "small", "things"} <= set(words) and words == sorted(set(words))


def test_a_hostile_archive_is_one_line(tmp_path):
    """Foreign bytes, members that are links or too large, lists without their pictures, pictures of other sizes."""
    members = files()
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    first = "package/img/google/64/0000.png"
    cases = {
        "is no file of at most": {**members, first: link},
        "is no file of at most 65,536": {**members, first: bytes(70_000)},
        "'0000.png'": {name: data for name, data in members.items() if name != first},
        "is missing, or no list": {name: data for name, data in members.items() if name.endswith("png")},
        "picture '0000.png' cannot be read": {**members, first: b"GIF89a"},
        "(65, 65) pixels": {**members, first: png(0, side=65)},
        "its 1 names": {**members, "package/emoji.json": json.dumps([entry(0, "red cat")]).encode()},
    }
    for i, (message, content) in enumerate(cases.items()):
        path = archive(tmp_path / f"{i}.tgz", content)
        with pytest.raises(UserError) as refused:
            read(path)
        text = str(refused.value)
        assert message in text and "\n" not in text and len(text) < 300, text
    (tmp_path / "cut.tgz").write_bytes(path.read_bytes()[:3000])
    (tmp_path / "text.tgz").write_text("hello")
    for name in ("cut.tgz", "text.tgz"):
        with pytest.raises(UserError, match="is not the emoji package"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="its SHA-256 is not fb5fd131b362"):
        read_emoji(path)


def test_members_elsewhere_are_never_written(tmp_path, small):
    """Names outside the package are passed over, whatever they are."""
    members = {"../../outside": b"x", "/tmp/outside": b"x", "package/img/google/64/../1.png": b"x", **files()}
    folder = tmp_path / "inner"
    folder.mkdir()
    assert read(archive(folder / "odd.tgz", members)).names == small.names
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "odd.tgz"]


def test_words_of_a_prompt_are_tokens_and_others_are_unknown():
    words = latent_models.word_tokenizer(["cat", "oclock", "red"])
    assert words("Red O'clock, CAT!").input_ids == [1, 5, 4, 3, 0]
    assert words("").input_ids == [1, 0]
    assert words("a red boat").input_ids == [1, 2, 5, 2, 0]
    long = words(" ".join(["cat"] * 40), truncation=True, padding="max_length").input_ids
    assert len(long) == 16 and long[-1] == words.eos_token_id


@pytest.mark.slow
def test_a_training_resumes_to_the_same_bits_and_builds(small, tmp_path, monkeypatch):
    """Of both stages; a denoiser may end at any step before its learning rate does, and its file is a model."""
    stage = replace(EMOJI_AUTOENCODER, steps=2, batch=2)
    whole_stage, broken_stage = tmp_path / recipe_of_emoji.AUTOENCODER_STATE, tmp_path / "broken.state.pt"
    list(train_autoencoder(stage, small.images, whole_stage, error=edge_loss, every=1))
    for _ in range(2):
        reports = train_autoencoder(stage, small.images, broken_stage, error=edge_loss, every=1)
        next(reports)
        reports.close()
    assert same(whole_stage, broken_stage)
    vae = recipe_of_emoji.trained_autoencoder(stage, small, whole_stage)
    mean, std = recipe_of_emoji.encode(vae, small.images.train[0])
    assert float((mean.var() + std.square().mean()).sqrt()) == pytest.approx(1, abs=0.01)

    network = {**EMOJI.training.network, "block_out_channels": [8, 8, 16]}

    def of(steps):
        recipe = replace(EMOJI.training, network=network, steps=steps, batch=2, warmup=1)
        return replace(EMOJI, training=recipe)

    def run(name, steps):
        return list(recipe_of_emoji.train_emoji(of(steps), small, vae, tmp_path / name, every=1))

    run("emoji.state.pt", 2)
    *_, resumed = run("emoji.state.pt", 3)
    *_, whole = run("long", 3)
    assert resumed.loss == whole.loss and same(tmp_path / "emoji.state.pt", tmp_path / "long")

    monkeypatch.setattr(cards, "_EMOJI_NFE", 2)
    path = cards.build_emoji(of(3), small, tmp_path, autoencoder_recipe=stage, samples=6)
    model = zoo.load(path)
    assert model.prompts == tuple(small.names[i] for i in small.trained)
    features = model.features(model.noise(range(2)))
    assert features.shape == (2, 64) and model.reference.count == 32
    trained = read_checkpoint(tmp_path / "long")["ema"]["network.conv_in.weight"]
    torch.testing.assert_close(model.network.conv_in.weight, trained, rtol=1e-3, atol=1e-3)
    picture = zoo.pipeline(path)("red cat", num_inference_steps=2, guidance_scale=2.0).images[0]
    assert picture.size == (64, 64)
    assert "3 steps of 2 latents" in path.with_suffix(".md").read_text()
    tensors, card = read_weights(path)
    for damage in (
        {"vocabulary": ["cat"]},
        {"vocabulary": "cat"},
        {"vocabulary": card["vocabulary"] + " cat cat"},
        {"vocabulary": "x " * 40_000},
        {"prompts": 3},
    ):
        write_weights(tmp_path / "damaged.safetensors", tensors, {**card, **damage})
        with pytest.raises(UserError, match="are damaged or not a zoo model"):
            zoo.load(tmp_path / "damaged.safetensors")


def same(one, other):
    states = read_checkpoint(one)["ema"], read_checkpoint(other)["ema"]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())
