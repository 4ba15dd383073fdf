"""Feature networks by name, identified by the hash of their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gas.features.inception import Inception
from gas.features.transformer import ClipImages, DinoV2, folder_weights
from gas.io import sha256
from gas.models.protocol import Model, decoder_of, images_of
from gas.registry import named
from gas.unpickle.loading import read_state

# Name -> constructor from a path, and the file of weights to hash.
EXTRACTORS: dict[str, tuple[Callable[[Path], nn.Module], Callable[[Path], Path]]] = {
    "inception": (lambda path: Inception(read_state(path)), lambda path: path),
    "dinov2": (DinoV2, folder_weights),
    "clip": (ClipImages, folder_weights),
}


@dataclass(frozen=True, eq=False)
class Extractor:
    """A published feature network, images ``(B, C, H, W)`` in [-1, 1] -> ``(B, F)``.

    Distances by weights of another SHA-256 and the same name are not comparable.
    """

    name: str
    sha256: str
    network: nn.Module

    def fingerprint(self) -> dict[str, str]:
        """Return the network's name and the SHA-256 of its weights."""
        return {"features": self.name, "weights_sha256": self.sha256}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features ``(B, F)`` of images in [-1, 1]."""
        features: Tensor = self.network(images)
        return features

    def of(self, model: Model) -> Callable[[Tensor], Tensor]:
        """Return the features of a model's samples, decoded first where it has a decoder."""
        return self if decoder_of(model) is None else lambda x: self(images_of(model, x))


def extractor_by_name(name: str, weights: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """Read a feature network onto a device.

    Args:
        name: ``"inception"`` (weights: a file of ``pt_inception-2015-12-05``'s names), ``"dinov2"`` or ``"clip"``
            (weights: a folder as transformers saves it).
        weights: the file or folder.
        device: where it runs.

    Raises:
        FileNotFoundError: when there are no weights.
        UserError: for an unknown name, with the nearest known one, or weights of another network.
    """
    build, file = named("features", name, EXTRACTORS)
    path = Path(weights)
    digest = sha256(file(path)) if file(path).is_file() else ""
    return Extractor(name, digest, build(path).to(device))
