"""``gas statistics``: mean and covariance of features, as a reference for Frechet distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

import gas
from gas.cli import options
from gas.cli.app import command
from gas.cli.checks import FOLDER, option, output_file
from gas.cli.screen import note, print_json, tracked

if TYPE_CHECKING:
    from torch import Tensor

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
    out: Annotated[Path, option(".safetensors or .npz file to write.", output_file(".safetensors", ".npz"))],
    pairs: Annotated[Path | None, option("Folder of pairs whose teacher's samples to use.", **FOLDER)] = None,
    images: Annotated[Path | None, option("Folder of images, or .npz with bytes arr_0.", exists=True)] = None,
    model: options.ModelName = "mnist",
    device: options.Device = "cpu",
    *,
    features: options.FeatureNetworkOptions,
    json: options.Json = False,
) -> None:
    """Write feature statistics of the teacher's samples (--pairs, with --model) or of images (--images)."""
    if (pairs is None) == (images is None):
        raise gas.UserError("give either --pairs or --images")
    if images is not None and options.was_given(context, "model"):
        raise gas.UserError("--model is for --pairs: leave it out, or --images")
    if features.features == "model" and images is not None:
        raise gas.UserError("--images are for a published network: name it with --features")
    if images is not None:
        batches, function, fingerprint = _of_images(images, features, device)
    else:
        network = options.NetworkOptions(model=model, device=device)
        batches, function, fingerprint = _of_pairs(pairs or Path(), network, features)
    result = gas.metrics.statistics.accumulate(function, batches)
    if gas.distributed.is_first():
        gas.metrics.statistics.save_statistics(out, result, fingerprint)
    note(f"wrote {out}: {result.count} samples, {len(result.mean)} features")
    if json:
        print_json({"out": str(out), "count": result.count, "size": len(result.mean), **fingerprint})


def _of_images(path: Path, features: options.FeatureNetworkOptions, device: str) -> Source:
    extractor = gas.features.extractor_by_name(features.features, features.weights or "", device)
    images = gas.features.real.RealImages(path)
    batches = tracked("features", images.batches(_BATCH), -(-len(images) // _BATCH))
    return batches, extractor, extractor.fingerprint()


def _of_pairs(
    folder: Path, network: options.NetworkOptions, features: options.FeatureNetworkOptions
) -> Source:
    loaded = network.load(folder)
    pairs = gas.read_pairs(folder, model=loaded, hold=False)
    space = gas.evaluation.feature_space(loaded, features.features, features.weights)
    if space.features is None:
        raise gas.UserError(f"model {loaded.name} has no features of its own: name others with --features")
    parts = tracked("features", pairs.batches(_BATCH), -(-len(pairs) // _BATCH))
    return (part.target for part in parts), space.features, space.fingerprint
