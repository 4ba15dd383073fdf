"""``gas statistics``: mean and covariance of features, as a reference for Frechet distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from gas import distributed
from gas.cli.app import command
from gas.cli.checks import existing_folder, existing_path, option, output_file
from gas.cli.loading import load_model
from gas.cli.options import (
    Device,
    Features,
    FeatureWeights,
    Json,
    ModelName,
    check_space,
    was_given,
)
from gas.cli.screen import note, print_json, tracked
from gas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["statistics"]

_BATCH = 64

# Batches, the features to take of them, and the fingerprint of these.
Source: TypeAlias = "tuple[Iterator[Tensor], Callable[[Tensor], Tensor], Mapping[str, str]]"


@command(
    "gas statistics --features inception --weights pt_inception.pth --images VIRTUAL_imagenet256.npz --out ref.npz",
    shared=True,
    file="out",
)
def statistics(
    context: typer.Context,
    out: Annotated[
        Path,
        option(
            "File to write: .safetensors, or .npz with mu and sigma.", output_file(".safetensors", ".npz")
        ),
    ],
    features: Features = "model",
    weights: FeatureWeights = None,
    pairs: Annotated[
        Path | None, option("Folder of pairs whose teacher's samples to use.", existing_folder)
    ] = None,
    images: Annotated[
        Path | None,
        option("Images to use: an .npz with arr_0, bytes (N, H, W, 3), or a folder.", existing_path),
    ] = None,
    model: ModelName = "mnist",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Write feature statistics of the teacher's samples (--pairs, with --model) or of images (--images)."""
    from gas.metrics.statistics import accumulate, save_statistics

    if (pairs is None) == (images is None):
        raise UserError("give either --pairs or --images")
    check_space(features, weights)
    if images is not None and was_given(context, "model"):
        raise UserError("--model is for --pairs: leave it out, or --images")
    if features == "model" and images is not None:
        raise UserError("--images are for a published network: name it with --features")
    if images is not None:
        batches, function, fingerprint = _of_images(images, features, weights, device)
    else:
        batches, function, fingerprint = _of_pairs(pairs or Path(), model, device, features, weights)
    result = accumulate(function, batches)
    if distributed.is_first():
        save_statistics(out, result, fingerprint)
    note(f"wrote {out}: {result.count} samples, {len(result.mean)} features")
    if json:
        print_json({"out": str(out), "count": result.count, "size": len(result.mean), **fingerprint})


def _of_images(path: Path, features: str, weights: Path | None, device: str) -> Source:
    from gas.features.extractor import extractor_by_name
    from gas.features.real import RealImages

    extractor, images = extractor_by_name(features, weights or "", device), RealImages(path)
    batches = tracked("features", images.batches(_BATCH), -(-len(images) // _BATCH))
    return batches, extractor, extractor.fingerprint()


def _of_pairs(folder: Path, name: str, device: str, features: str, weights: Path | None) -> Source:
    from gas.evaluation.spaces import feature_space
    from gas.pairs.dataset import read_pairs

    loaded = load_model(name, device, pairs=folder)
    pairs = read_pairs(folder, model=loaded, hold=False)
    space = feature_space(loaded, features, weights)
    if space.features is None:
        raise UserError(f"model {loaded.name} has no features of its own: name others with --features")
    parts = tracked("features", pairs.batches(_BATCH), -(-len(pairs) // _BATCH))
    return (part.target for part in parts), space.features, space.fingerprint
