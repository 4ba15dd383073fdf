"""The recipe of ``emoji`` (tools/zoo): its archive, its tokenizer, and a training that resumes to the same bits."""

import io
import json
import tarfile
from dataclasses import replace

import emoji as recipe_of_emoji
import numpy as np
import pytest
import torch
from emoji_data import read_emoji
from latents import edge_loss, train_autoencoder
from PIL import Image
from recipes import EMOJI, EMOJI_AUTOENCODER

from gas.checkpoint import read_checkpoint
from gas.errors import UserError
from gas.io import sha256
from gas.zoo import latent as latent_models

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
    return read(archive(tmp_path_factory.mktemp("emoji") / "small.tgz", files()))


def test_pictures_are_on_white_with_prompts_and_some_are_held_out(small):
    assert small.images.x.shape == (48, 3, 64, 64) and small.categories == CATEGORIES
    first = small.names.index("red cat")
    raw = np.asarray(Image.open(io.BytesIO(png(0))), float)
    opacity = raw[..., 3:] / 255
    expected = torch.from_numpy(raw[..., :3] * opacity + 255 * (1 - opacity)).permute(2, 0, 1)
    torch.testing.assert_close((small.images.x[first].double() + 1) * 127.5, expected, rtol=0, atol=1.0)
    assert small.aliases[first] == ("red cat small things", "red cat")
    assert 0 < len(small.held_out) < 8
    words = recipe_of_emoji.vocabulary(small)
    assert {"red", "small", "things"} <= set(words) and words == sorted(set(words))


def test_a_training_resumes_to_the_same_bits(small, tmp_path):
    """Of both stages; and a denoiser may end at any step before its learning rate does."""
    stage = replace(EMOJI_AUTOENCODER, steps=2, batch=2)
    for name in ("whole", "broken"):
        for _ in range(1 if name == "whole" else 2):
            reports = train_autoencoder(stage, small.images, tmp_path / name, error=edge_loss, every=1)
            next(reports) if name == "broken" else list(reports)
            reports.close()
    assert same(tmp_path / "whole", tmp_path / "broken")
    vae = recipe_of_emoji.trained_autoencoder(stage, small, tmp_path / "whole")
    mean, std = recipe_of_emoji.encode(vae, small.images.train[0])
    assert float((mean.var() + std.square().mean()).sqrt()) == pytest.approx(1, abs=0.01)

    def run(name, steps):
        latent = replace(EMOJI, training=replace(EMOJI.training, steps=steps, batch=2, warmup=1))
        return list(recipe_of_emoji.train_emoji(latent, small, vae, tmp_path / name, every=1))

    run("short", 2)
    *_, resumed = run("short", 3)
    *_, whole = run("long", 3)
    assert resumed.loss == whole.loss and same(tmp_path / "short", tmp_path / "long")


def same(one, other):
    states = read_checkpoint(one)["ema"], read_checkpoint(other)["ema"]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())
