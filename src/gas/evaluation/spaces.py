"""Feature spaces: the features in which distributions are compared, and the real data to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from gas.errors import UserError
from gas.features.extractor import extractor_by_name
from gas.features.real import RealImages
from gas.io import sha256
from gas.metrics.frechet import FeatureStatistics
from gas.metrics.statistics import extract_all, read_statistics
from gas.models.protocol import Model, classifier_of, features_of, reference_of, weights_hash
from gas.zoo.data import mnist

_BATCH = 64

# Wraps an iterable of so many batches, such as a progress bar.
Progress = Callable[[Iterable[Tensor], int], Iterable[Tensor]]


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """The features in which distributions are compared, with real data in that space.

    Args:
        features: ``(B, *) -> (B, F)`` of a model's samples; without it, distributions are not compared.
        reference: statistics of real data.
        real: features ``(R, F)`` of real images, for the metrics that statistics cannot give.
        fingerprint: the feature network and the files of real data, by name and SHA-256.
        description: one sentence for reports.
    """

    features: Callable[[Tensor], Tensor] | None = None
    reference: FeatureStatistics | None = None
    real: Tensor | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


def feature_space(
    model: Model,
    name: str = "model",
    weights: Path | None = None,
    *,
    reference: Path | None = None,
    real: Path | None = None,
    progress: Progress = lambda batches, count: batches,
) -> FeatureSpace:
    """Return a feature space for a model's samples; all its files are read at once.

    Args:
        model: whose samples are compared.
        name: a key of :data:`gas.features.EXTRACTORS`, or ``"model"`` for the model's own features, if it has any.
        weights: of a published network.
        reference: statistics of real data; for ``"model"``, the default is the model's own.
        real: real images, an ``.npz`` or a folder; a folder of MNIST's IDX files for the zoo model of MNIST.
        progress: wraps the batches of real images.
    """
    images = None if name == "model" else extractor_by_name(name, weights or "", model.device)
    if images is None:
        features, statistics = features_of(model), reference_of(model)
        fingerprint = _model_features_fingerprint(model)
    else:
        features, statistics, fingerprint = images.of(model), None, images.fingerprint()
    if reference is not None:
        if features is None:
            raise UserError(
                f"--reference {reference}: {model.name} has no features of its own: name a published network with "
                "--features and --weights"
            )
        statistics = read_statistics(reference, fingerprint)
        fingerprint["reference_sha256"] = sha256(reference)
    real_features = None
    if real is not None:
        real_features, fingerprint["real_sha256"] = _real_features(model, features, images, real, progress)
    space = FeatureSpace(features, statistics, real_features, fingerprint)
    return replace(space, description=_description(space, reference, real))


def _model_features_fingerprint(model: Model) -> dict[str, str]:
    """The model whose features these are, and the hash of the network that computes them."""
    source = getattr(getattr(model, "feature_extractor", None), "__self__", model)
    classifier = classifier_of(model)
    digest = source.fingerprint()["sha256"] if classifier is None else weights_hash(classifier)
    return {"features": "model", "features_of": source.name, "weights_sha256": digest}


def _description(space: FeatureSpace, reference: Path | None, real: Path | None) -> str:
    if space.features is None:
        return "The model has no features, so distributions are not compared."
    names, data = space.fingerprint, "data are the model's own statistics"
    of_model = names["features"] == "model"
    network = f"the features of model {names['features_of']}" if of_model else f"features {names['features']}"
    if reference is not None:
        data = f"data are the statistics {reference.name} (SHA-256 {names['reference_sha256']})"
    elif space.reference is None:
        data = "there are no statistics of data"
    images = "" if real is None else f"; real images are {real.name} (SHA-256 {names['real_sha256']})"
    digest = names["weights_sha256"]
    return f"Distributions are compared in {network} (weights' SHA-256 {digest}); {data}{images}."


def _real_features(
    model: Model,
    features: Callable[[Tensor], Tensor] | None,
    extractor: Callable[[Tensor], Tensor] | None,
    path: Path,
    progress: Progress,
) -> tuple[Tensor, str]:
    """Features ``(R, F)`` of real images, and the hash of the images."""
    idx_files = sorted(path.glob("*-ubyte*"))
    if extractor is not None and not idx_files:
        images = RealImages(path)
        batches = progress(images.batches(_BATCH), -(-len(images) // _BATCH))
        return extract_all(extractor, batches), images.sha256()
    if features is None or (path.exists() and not idx_files):
        raise UserError(
            f"--real {path}: pictures need a published network, name it with --features and --weights; "
            "a model's own features are measured against a folder of MNIST's IDX files alone (model mnist)"
        )
    held_out, _ = mnist(path).test  # neither network nor classifier of the zoo model was trained on these
    if model.name != "mnist" or tuple(held_out.shape[1:]) != model.sample_shape:
        raise UserError(f"--real with MNIST's IDX files needs model mnist, got {model.name}: leave it out")
    return extract_all(features, held_out.split(_BATCH)), ",".join(map(sha256, idx_files))
