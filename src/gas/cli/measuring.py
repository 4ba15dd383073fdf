"""What commands measure samples with: a space of features, a reference in it, and real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gas.compare import Yardstick
    from gas.model import Model
    from gas.pairs import Pairs

__all__ = ["held_out", "measuring", "space", "yardstick"]


def yardstick(model: Model, pairs: Pairs, real: Tensor | None = None) -> Yardstick:
    """Measure in the model's features, where it has some, against its reference, and real images where there are."""
    from gas.compare import Yardstick

    return Yardstick(pairs, getattr(model, "features", None), getattr(model, "reference", None), real)


def space(
    model: Model, name: str, weights: Path | None
) -> tuple[Callable[[Tensor], Tensor] | None, dict[str, str]]:
    """Return the features that samples are compared in, and what a result says of them.

    Args:
        model: whose samples they are.
        name: a key of :data:`gas.features.EXTRACTORS`, or ``"model"`` for the model's own, if it has some.
        weights: of a published network.

    Raises:
        ValueError: for an unknown name, or weights where none or no others are wanted.
    """
    if name == "model":
        if weights is not None:
            raise ValueError("--weights are of a published network: name it with --features")
        return getattr(model, "features", None), {"features": "model"}
    from gas.features import extractor_by_name

    if weights is None:
        raise ValueError(f"--features {name} needs --weights: nothing is downloaded")
    extractor = extractor_by_name(name, weights, model.device)
    return extractor.of(model), dict(extractor.told())


def measuring(
    model: Model, pairs: Pairs, real: Tensor | None, name: str, weights: Path | None, reference: Path | None
) -> tuple[Yardstick, dict[str, str]]:
    """Return what samples are measured with, and what a result says of its space and reference."""
    from gas.compare import Yardstick
    from gas.files import sha256
    from gas.metrics.statistics import read_statistics

    seen, told = space(model, name, weights)
    if reference is not None:
        statistics = read_statistics(reference, told)
        return Yardstick(pairs, seen, statistics, real), {**told, "reference_sha256": sha256(reference)}
    own = getattr(model, "reference", None) if name == "model" else None
    return Yardstick(pairs, seen, own, real), told


def held_out(model: Model, folder: Path) -> Tensor:
    """Return the real images ``(R, 1, H, W)`` that neither network nor classifier of a zoo model was trained on.

    Raises:
        ValueError: when the folder's images are not of this model.
    """
    from gas.zoo.data import mnist

    images, _ = mnist(folder).test
    if model.name != "mnist" or tuple(images.shape[1:]) != model.sample_shape:
        raise ValueError(f"--real takes MNIST's IDX files, which model {model.name} is not of: leave it out")
    return images
