"""Models of images, as their safetensors files hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.denoise import Denoiser
from gas.display import brief
from gas.errors import UserError
from gas.io import is_integer_list, strip_prefix
from gas.metrics.frechet import FeatureStatistics
from gas.models.protocol import bind_labels, weights_hash
from gas.models.seeds import noise_of_seeds
from gas.schedule import EDMasVP
from gas.zoo.networks import Classifier, EDMUNet
from gas.zoo.weights_file import build, damaged, read_weights

_MAX_SAMPLE = 1 << 22  # entries of a sample; the zoo's samples have at most 1,024


@dataclass(frozen=True, eq=False)
class Measuring:
    """What measures samples: the classifier of a zoo file, and the statistics of real images' features."""

    name: str
    classifier: Classifier
    reference: FeatureStatistics | None

    def features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x.to(next(self.classifier.parameters()).device))


@dataclass(frozen=True, eq=False)
class ZooModel:
    """A small class-conditional EDM network on digits, with the classifier that measures it.

    Attributes:
        network: the frozen denoiser ``D(y; sigma, label)``.
        classifier: classifies digits; Frechet distances are measured in its features.
        reference: mean and covariance of the held-out real images' features.
        card: training of the weights, and their measured quality.
    """

    name: str
    network: EDMUNet
    classifier: Classifier
    reference: FeatureStatistics | None
    card: Mapping[str, Any]
    path: Path

    schedule = EDMasVP(t_end=1e-3, sigma_min=0.002, sigma_max=80.0)
    t_end = 1e-3
    data_range = 2.0  # images in [-1, 1]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.card["sample_shape"])

    @property
    def classes(self) -> int:
        return self.network.classes

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @cached_property
    def _sha256(self) -> str:
        return weights_hash(self.network)

    def fingerprint(self) -> dict[str, Any]:
        """Return name, hash of the network's weights (not of card or classifier), prediction type and shape."""
        return {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": "edm",
            "sample_shape": list(self.sample_shape),
        }

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def conditional(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict x_0 for classes ``(B,)``; class ``classes`` means no class."""
        alpha, sigma = self.schedule(t)
        level = (sigma / alpha).to(device=x.device, dtype=x.dtype).expand(x.shape[0])
        y = (x / alpha).contiguous(memory_format=torch.channels_last)
        prediction: Tensor = self.network(y, level, labels)
        return prediction

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes, guided when ``guidance`` is not 1."""
        return bind_labels(
            self.conditional,
            labels,
            classes=self.classes,
            null=self.classes,
            guidance=guidance,
            name=self.name,
            device=self.device,
        )

    def features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x.to(self.device))

    def to(self, device: torch.device | str) -> ZooModel:
        self.network.to(device)
        self.classifier.to(device)
        return self


def read_measuring(path: str | Path) -> Measuring:
    """Read what a zoo file has for measuring samples."""
    tensors, card = read_weights(path)
    with damaged(path):
        return _measuring(tensors, card)


def _measuring(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Measuring:
    classifier = build(Classifier, card["classifier"], strip_prefix(tensors, "classifier."))
    stats = strip_prefix(tensors, "reference.")
    reference = FeatureStatistics(stats["mean"], stats["cov"], int(stats["count"])) if stats else None
    classifier = classifier.eval().requires_grad_(False)
    return Measuring(name=str(card["name"]), classifier=classifier, reference=reference)


def read_model(path: str | Path) -> ZooModel:
    """Read a zoo model's safetensors file. The networks are frozen and in evaluation mode."""
    tensors, card = read_weights(path)
    with damaged(path):
        measuring = _measuring(tensors, card)
        name, shape = str(card["name"]), tuple(card["sample_shape"])
        network = build(EDMUNet, card["network"], strip_prefix(tensors, "network."))
        if not is_integer_list(shape, 3) or len(shape) != 3 or not 1 <= math.prod(shape) <= _MAX_SAMPLE:
            raise UserError(f"sample_shape is {brief(shape)}")
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.eval().requires_grad_(False)
    return ZooModel(
        name=name,
        network=network,
        classifier=measuring.classifier,
        reference=measuring.reference,
        card=card,
        path=Path(path),
    )
