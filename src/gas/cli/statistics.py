"""``gas statistics``: mean and covariance of features, once, to measure distances to later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas import distributed
from gas.cli.app import command
from gas.cli.checks import checked, existing_folder, existing_path, output_file
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


@command(
    "gas statistics --features inception --weights pt_inception.pth --images VIRTUAL_imagenet256.npz --out ref.npz",
    shared=True,
    file="out",
)
def statistics(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            help="A .safetensors file, or an .npz of mu and sigma.",
            callback=checked(output_file(".safetensors", ".npz")),
        ),
    ],
    features: Features = "model",
    weights: FeatureWeights = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Folder of pairs: of the teacher's samples.", callback=checked(existing_folder)),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="An .npz of images, arr_0 of bytes (N, H, W, 3), or a folder.",
            callback=checked(existing_path),
        ),
    ] = None,
    model: ModelName = "mnist",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Write the statistics of features of the teacher's samples (--pairs, with --model) or of images (--images)."""
    from gas.features.extractor import extractor_by_name
    from gas.metrics.statistics import accumulate, save_statistics

    if (pairs is None) == (images is None):
        raise UserError("give either --pairs or --images")
    check_space(features, weights)
    if images is not None and was_given(context, "model"):
        raise UserError("--model is of --pairs: leave it out, or --images")
    if features == "model" and images is not None:
        raise UserError("--images are for a published network: name it with --features")
    seen: Callable[[Tensor], Tensor]
    if images is not None:
        extractor = extractor_by_name(features, weights or "", device)
        batches, told, seen = _of_images(images), dict(extractor.told()), extractor
    else:
        batches, told, seen = _of_pairs(pairs or Path(), model, device, features, weights)
    found = accumulate(seen, batches)
    if distributed.is_first():
        save_statistics(out, found, told)
    note(f"wrote {out}: {found.count} samples, {len(found.mean)} features")
    if json:
        print_json({"out": str(out), "count": found.count, "size": len(found.mean), **told})


def _of_images(path: Path) -> Iterator[Tensor]:
    from gas.features.real import RealImages

    found = RealImages(path)
    return tracked("features", found.batches(_BATCH), -(-len(found) // _BATCH))


def _of_pairs(
    folder: Path, name: str, device: str, features: str, weights: Path | None
) -> tuple[Iterator[Tensor], dict[str, str], Callable[[Tensor], Tensor]]:
    from gas.cli.measuring import space
    from gas.pairs.dataset import read_pairs

    loaded = load_model(name, device, pairs=folder)
    found = read_pairs(folder, model=loaded, hold=False)
    found_in = space(loaded, features, weights)
    if found_in.samples is None:
        raise UserError(f"model {loaded.name} has no features of its own: name others with --features")
    parts = tracked("features", found.batches(_BATCH), -(-len(found) // _BATCH))
    return (part.target for part in parts), found_in.told, found_in.samples
