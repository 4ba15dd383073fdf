"""What commands measure samples with: a space of features, a reference in it, and real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gas.cli.options import check_space
from gas.cli.screen import tracked
from gas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gas.evaluation.evaluator import Yardstick
    from gas.features.judges import Judge
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs

__all__ = ["Space", "held_out", "judging", "measuring", "space", "space_told", "yardstick"]

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Space:
    """Features that distributions are compared in.

    Attributes:
        samples: of a model's samples, decoded first where it has a decoder; none where it has no features.
        images: of images in [-1, 1], where they are a published network's.
        told: what a result says of them.
    """

    samples: Callable[[Tensor], Tensor] | None
    images: Callable[[Tensor], Tensor] | None
    told: dict[str, str]


def yardstick(model: Model, pairs: Pairs, real: Tensor | None = None) -> Yardstick:
    """Measure in the model's features, where it has some, against its reference, and real images where there are."""
    from gas.evaluation.evaluator import Yardstick
    from gas.metrics.frechet import extract
    from gas.models.protocol import data_range_of, features_of, reference_of

    features = features_of(model)
    seen = None if real is None or features is None else extract(features, real)
    reference = reference_of(model)
    return Yardstick(pairs, features, reference, seen, data_range=data_range_of(model))


def space(model: Model, name: str, weights: Path | None) -> Space:
    """Return the features that samples are compared in.

    Args:
        model: whose samples they are.
        name: a key of :data:`gas.features.EXTRACTORS`, or ``"model"`` for the model's own, if it has some.
        weights: of a published network.

    Raises:
        ValueError: for an unknown name, or weights where none or no others are wanted.
    """
    from gas.models.protocol import features_of

    check_space(name, weights)
    if name == "model":
        return Space(features_of(model), None, _own(model))
    from gas.features.extractor import extractor_by_name

    extractor = extractor_by_name(name, weights or "", model.device)
    return Space(extractor.of(model), extractor, dict(extractor.told()))


def _own(model: Model) -> dict[str, str]:
    """What a result says of a model's own features: whose they are, and the hash of the network that has them."""
    from gas.models.protocol import weights_hash

    eyes = getattr(getattr(model, "feature_extractor", None), "__self__", model)
    seeing = getattr(eyes, "classifier", None)
    digest = eyes.fingerprint()["sha256"] if seeing is None else weights_hash(seeing)
    return {"features": "model", "features_of": eyes.name, "weights_sha256": digest}


def measuring(
    model: Model, real: Path | None, name: str, weights: Path | None, reference: Path | None
) -> tuple[Callable[[Pairs], Yardstick], dict[str, str]]:
    """Return what makes a yardstick of pairs, and what a result says of its space, reference and real images.

    All files are read before there are pairs, so that a bad one is refused before the teacher runs.
    """
    from gas.evaluation.evaluator import Yardstick
    from gas.io import sha256
    from gas.metrics.statistics import read_statistics
    from gas.models.protocol import data_range_of, reference_of

    seen = space(model, name, weights)
    told = dict(seen.told)
    statistics = reference_of(model) if name == "model" else None
    if reference is not None:
        statistics = read_statistics(reference, told)
        told["reference_sha256"] = sha256(reference)
    known = None
    if real is not None:
        known, told["real_sha256"] = _real(model, seen, real)
    span = data_range_of(model)
    return lambda pairs: Yardstick(pairs, seen.samples, statistics, known, data_range=span), told


def space_told(ruler: Yardstick, named: Mapping[str, str], reference: Path | None, real: Path | None) -> str:
    """Say in which features distributions are compared, by whose weights, and with which real data."""
    if ruler.features is None:
        return "The model has no features, so distributions are not compared."
    own = named["features"] == "model"
    space = f"the features of model {named['features_of']}" if own else f"features {named['features']}"
    if reference is not None:
        to = f"data are the statistics {reference.name} (SHA-256 {named['reference_sha256']})"
    else:
        to = (
            "there are no statistics of data"
            if ruler.reference is None
            else "data are the model's own statistics"
        )
    images = "" if real is None else f"; real images are {real.name} (SHA-256 {named['real_sha256']})"
    return (
        f"Distributions are compared in {space} (weights' SHA-256 {named['weights_sha256']}); {to}{images}."
    )


def judging(model: Model, names: str, weights: Path | None) -> tuple[dict[str, Judge], dict[str, str]]:
    """Return judges of each sample by name, and what a result says of their weights.

    Args:
        model: whose samples they are.
        names: keys of :data:`gas.features.judges.JUDGES`, comma-separated.
        weights: the folder of their weights; by default that of presets.

    Raises:
        ValueError: for an unknown name, or a model that one does not judge.
        FileNotFoundError: when weights are missing.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        return {}, {}
    from gas.features.judges import judge_by_name
    from gas.workspace import weights_folder

    found = {name: judge_by_name(name, model, weights_folder(weights)) for name in wanted}
    told = {key: value for _, said in found.values() for key, value in said.items()}
    return {name: judge for name, (judge, _) in found.items()}, told


def _real(model: Model, seen: Space, path: Path) -> tuple[Tensor, str]:
    """Features ``(R, F)`` of real images, and their hash."""
    from gas.features.real import RealImages
    from gas.io import sha256
    from gas.metrics.statistics import extract_all

    idx = sorted(path.glob("*-ubyte*"))
    if seen.images is not None and not idx:
        images = RealImages(path)
        parts = tracked("real images", images.batches(_BATCH), -(-len(images) // _BATCH))
        return extract_all(seen.images, parts), images.sha256()
    if seen.samples is None or (path.exists() and not idx):
        raise UserError(
            f"--real {path}: pictures are seen by a published network, name it with --features and --weights; "
            "a model's own features are measured against a folder of MNIST's IDX files alone (model mnist)"
        )
    return extract_all(seen.samples, held_out(model, path).split(_BATCH)), ",".join(map(sha256, idx))


def held_out(model: Model, folder: Path) -> Tensor:
    """Return the real images ``(R, 1, H, W)`` that neither network nor classifier of a zoo model was trained on.

    Raises:
        ValueError: when the folder's images are not of this model.
    """
    from gas.zoo.data import mnist

    images, _ = mnist(folder).test
    if model.name != "mnist" or tuple(images.shape[1:]) != model.sample_shape:
        raise UserError(f"--real takes MNIST's IDX files, which model {model.name} is not of: leave it out")
    return images
