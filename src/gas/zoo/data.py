"""The real images that the zoo's models are trained on and compared with."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gas.display import error_text
from gas.errors import UserError, requires
from gas.io import open_regular

_IDX_BYTES = 64 << 20  # MNIST's 60,000 images have 47 MB


@dataclass(frozen=True)
class Images:
    """Images ``(N, 1, H, W)`` in [-1, 1] with labels ``(N,)``; the last ``held_out`` are for measuring only."""

    name: str
    x: Tensor
    label: Tensor
    held_out: int

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x[: -self.held_out], self.label[: -self.held_out]

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.x[-self.held_out :], self.label[-self.held_out :]

    def description(self) -> str:
        return f"{self.name}: {len(self.x) - self.held_out} images trained on, {self.held_out} held out"


def digits() -> Images:
    """UCI handwritten digits: 1,797 images 8x8, as scikit-learn ships them; 297 held out."""
    with requires("zoo", "the digits images need scikit-learn"):
        from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float()[:, None] / 8 - 1
    return _shuffled("digits", x, raw.target, held_out=297)


def mnist(folder: str | Path) -> Images:
    """MNIST's published 10,000-image set, 28x28 padded to 32x32; 1,000 held out.

    The folder holds ``t10k-images-idx3-ubyte[.gz]`` and ``t10k-labels-idx1-ubyte[.gz]``.
    """
    folder = Path(folder)
    raw = read_idx(_find(folder, "t10k-images-idx3-ubyte"))
    label = read_idx(_find(folder, "t10k-labels-idx1-ubyte"))
    if raw.ndim != 3 or label.shape != raw.shape[:1]:
        raise UserError(f"{folder}: images {raw.shape} and labels {label.shape} do not belong together")
    x = F.pad(torch.from_numpy(raw.copy()).float()[:, None] / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    return _shuffled("mnist", x, label, held_out=1000)


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not; refuse one whose header and length do not agree."""
    path = Path(path)
    try:
        with open_regular(path, _IDX_BYTES) as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            zero, kind, ndim = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
            count = math.prod(shape)
            if zero != 0 or kind != 8 or not 1 <= ndim <= 4 or not 0 < count <= _IDX_BYTES:
                raise UserError(f"kind {kind}, {ndim} dimensions, shape {shape[:4]}")
            body = bytearray(file.read(count + 1))
            if len(body) != count:
                raise UserError(f"shape {shape} in {'more' if len(body) > count else 'fewer'} bytes")
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not a readable IDX file of bytes: {error_text(error)}") from error
    return np.frombuffer(body, np.uint8).reshape(shape)


def _shuffled(name: str, x: Tensor, label: np.ndarray, *, held_out: int) -> Images:
    """Return images in a fixed random order: both sets are sorted by writer, and we hold out some of each."""
    order = np.random.default_rng(0).permutation(len(x))
    labels = torch.from_numpy(label[order]).long()
    return Images(name=name, x=x[torch.from_numpy(order)], label=labels, held_out=held_out)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{folder / name}[.gz] is missing: name the folder of the IDX files")
