"""Real images for metrics: an ADM reference batch, or a folder of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gas.display import error_text
from gas.errors import UserError, requires
from gas.io import open_regular, sha256
from gas.metrics.statistics import has_images, read_images

_PICTURE_BYTES, _PIXELS = 64 << 20, 1 << 24  # 4096 x 4096
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class RealImages:
    """Images on disk, read a batch at a time.

    ``path`` is an ``.npz`` with ``arr_0``, bytes ``(N, H, W, 1 or 3)``, or a folder of pictures of one size, at any
    depth, in the order of their names.

    Raises:
        FileNotFoundError: when the path does not exist.
        UserError: when it holds no images, such as statistics alone.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise FileNotFoundError(f"no real images at {self.path}")
        if self.path.is_dir():
            if not self._pictures:
                suffixes = ", ".join(_PICTURES)
                raise UserError(f"folder {self.path} holds no pictures ({suffixes}) of real data")
        elif not has_images(self.path):
            raise UserError(
                f"{self.path} has no images arr_0: precision, recall, density and coverage need those of ADM's "
                "reference batch or a folder of pictures; statistics mu and sigma alone are a --reference"
            )

    def sha256(self) -> str:
        """Return the hash of the file, or of a folder's pictures in their order."""
        if self.path.is_file():
            return sha256(self.path)
        return hashlib.sha256("".join(map(sha256, self._pictures)).encode()).hexdigest()

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield images ``(B, C, H, W)`` in [-1, 1], at most ``size`` at a time."""
        for part in self._bytes(size):
            yield part.float() / 127.5 - 1

    def __len__(self) -> int:
        return len(self._pictures) if self._stored is None else len(self._stored)

    @cached_property
    def _stored(self) -> Tensor | None:
        """Bytes ``(N, C, H, W)`` of a file."""
        return read_images(self.path) if self.path.is_file() else None

    def _bytes(self, size: int) -> Iterator[Tensor]:
        if self._stored is not None:
            yield from self._stored.split(size)
            return
        paths, first = self._pictures, None
        for start in range(0, len(paths), size):
            read = [_picture(path) for path in paths[start : start + size]]
            first = read[0].shape if first is None else first
            for path, image in zip(paths[start:], read, strict=False):
                if image.shape != first:
                    raise UserError(
                        f"picture {path} is {image.shape[1]} x {image.shape[2]}, the first {first[1]} x {first[2]}: "
                        "real images have one size, that of the samples"
                    )
            yield torch.stack(read)

    @cached_property
    def _pictures(self) -> list[Path]:
        """The pictures of a folder, in the order of their names."""
        return sorted(path for path in self.path.rglob("*") if path.suffix.lower() in _PICTURES)


def _picture(path: Path) -> Tensor:
    """Bytes ``(3, H, W)``."""
    with requires("plot", "pictures need Pillow"):
        from PIL import Image
    try:
        with open_regular(path, _PICTURE_BYTES) as file, Image.open(file) as image:
            if image.width * image.height > _PIXELS:
                raise UserError(f"it has {image.width} x {image.height} pixels")
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # Pillow's errors have no common class
        raise UserError(f"picture {path} cannot be read: {error_text(error)}") from error
