"""The pictures that ``emoji`` is trained on: Noto's, as the npm package ``emoji-datasource-google`` holds them."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from gas.display import brief, error_text
from gas.errors import UserError, explained
from gas.io import open_regular, parse_json
from gas.zoo.data import Images

__all__ = ["ARCHIVE", "DENOISER_CATEGORIES", "LICENSE", "SHA256", "Emoji", "read_emoji"]

# npm pack emoji-datasource-google@16.0.0
ARCHIVE = "emoji-datasource-google-16.0.0.tgz"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
LICENSE = "Noto Emoji, Apache-2.0, as in the npm package emoji-datasource-google 16.0.0 (MIT)"
SIDE = 64
# Categories that the denoiser learns. All nine are too many for an hour of a processor: docs/reference/pipelines.md.
DENOISER_CATEGORIES = ("Animals & Nature", "Food & Drink", "Smileys & Emotion")

_LIST = "package/emoji.json"
_PICTURE = re.compile(r"package/img/google/64/([0-9a-f]{1,8}(?:-[0-9a-f]{1,8}){0,15}\.png)")
# The archive has 74 MB and 3,809 members, its list 1.3 MB, its largest picture of 64x64 pixels 11 kB.
_ARCHIVE_BYTES, _MEMBERS, _LIST_BYTES, _PICTURE_BYTES = 128 << 20, 8_000, 4 << 20, 64 << 10
_TRUNCATED = (tarfile.TarError, EOFError, OSError, zlib.error)


@dataclass(frozen=True)
class Emoji:
    """Pictures with their prompts; the last ``images.held_out`` names are trained on by nothing.

    Attributes:
        images: ``(N, 3, 64, 64)`` on white; labels are indices of ``categories``.
        names: of the pictures: lower-case words.
        aliases: other prompts of each picture: name with subcategory, and short name.
        categories: their names.
        denoiser_categories: those that the denoiser learns; autoencoder and classifier learn all.
    """

    images: Images
    names: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    categories: tuple[str, ...]
    denoiser_categories: tuple[str, ...] = DENOISER_CATEGORIES

    @property
    def trained(self) -> list[int]:
        """Indices of the pictures that the denoiser is trained on."""
        return [i for i in self._of_denoiser() if i < len(self.names) - self.images.held_out]

    @property
    def held_out(self) -> list[int]:
        """Indices of the pictures of its categories that are held out."""
        return [i for i in self._of_denoiser() if i >= len(self.names) - self.images.held_out]

    def _of_denoiser(self) -> list[int]:
        chosen = [self.categories.index(name) for name in self.denoiser_categories]
        return [i for i, label in enumerate(self.images.label.tolist()) if label in chosen]


def read_emoji(path: str | Path, *, checksum: str = SHA256) -> Emoji:
    """Read the package's archive; pictures in skin tones are left out.

    Names whose SHA-256 begins with a byte below 13, which are 5 %, are held out.

    Raises:
        UserError: for an archive of another checksum, or with members that the package does not have.
        FileNotFoundError: when there is none.
    """
    path = Path(path)
    with open_regular(path, _ARCHIVE_BYTES) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum:  # type: ignore[arg-type]
            raise UserError(f"{path} is not {ARCHIVE}: its SHA-256 is not {checksum[:12]}...")
        file.seek(0)
        with explained(f"{path} is not the emoji package"):
            entries, pictures = _members(file)
            return _joined(_entries(entries), pictures)


def _members(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Return the list of emoji and the files of pictures by name; nothing is unpacked to disk."""
    entries, pictures = None, {}
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for count, member in enumerate(archive):
                if count >= _MEMBERS:
                    raise UserError(f"it has more than {_MEMBERS} members")
                match = _PICTURE.fullmatch(member.name)
                if member.name != _LIST and not match:
                    continue
                limit = _PICTURE_BYTES if match else _LIST_BYTES
                if not member.isreg() or member.size > limit:
                    raise UserError(f"member {brief(member.name)} is no file of at most {limit:,} bytes")
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                if match:
                    pictures[match[1]] = data
                else:
                    entries = parse_json(data)
    except _TRUNCATED as error:
        raise UserError(error_text(error)) from error
    return entries, pictures


def _entries(entries: Any) -> list[Mapping[str, Any]]:
    """Return the entries with a picture, those to hold out last, each part in a fixed random order."""
    if not isinstance(entries, list):
        raise UserError(f"{_LIST} is missing, or no list")
    # Components are swatches of skin tones and hair.
    usable = [e for e in entries if e["has_img_google"] is True and e["category"] != "Component"]
    return sorted(usable, key=lambda e: (_is_held_out(_name(e)), _digest(_name(e))[1:]))


def _joined(entries: list[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> Emoji:
    categories = tuple(sorted({str(e["category"]) for e in entries}))
    names = [_name(e) for e in entries]
    held_out = sum(map(_is_held_out, names))
    if not 0 < held_out < len(names):
        raise UserError(f"{held_out} of its {len(names)} names would be held out")
    x = np.stack([_pixels(e["image"], pictures[e["image"]]) for e in entries])
    images = Images(
        name="emoji",
        x=torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1,
        label=torch.tensor([categories.index(str(e["category"])) for e in entries]),
        held_out=held_out,
    )
    aliases = tuple(
        (f"{name} {_words(e['subcategory'])}", _words(e["short_name"]))
        for name, e in zip(names, entries, strict=True)
    )
    return Emoji(images=images, names=tuple(names), aliases=aliases, categories=categories)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _is_held_out(name: str) -> bool:
    return _digest(name)[0] < 13


def _name(entry: Mapping[str, Any]) -> str:
    return _words(entry["name"] or entry["short_name"])


def _words(text: str) -> str:
    """Return the words of a name, in lower case."""
    return " ".join(re.findall(r"[a-z0-9]+", str(text).lower().replace("'", "")))


def _pixels(name: str, data: bytes) -> np.ndarray:
    """Return a picture on white, ``(64, 64, 3)`` bytes."""
    try:
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
        if picture.size != (SIDE, SIDE):  # known from the header, before any pixel is unpacked
            raise UserError(f"it has {picture.size} pixels")
        pixels = picture.convert("RGBA")
    except Exception as error:  # Pillow's errors have no common class
        raise UserError(f"picture {brief(name)} cannot be read: {error_text(error)}") from error
    white = Image.new("RGBA", pixels.size, "white")
    return np.asarray(Image.alpha_composite(white, pixels).convert("RGB"))
