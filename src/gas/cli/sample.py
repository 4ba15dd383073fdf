"""``gas sample``: make samples with a solver file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas.arguments import MAX_NFE, MAX_SEED
from gas.cli.app import command
from gas.cli.checks import checked, class_label, output_file
from gas.cli.options import Json, NetworkOptions, SamplesBatch, SolverFile, interpolation, parse_seeds
from gas.cli.screen import note, print_json, tracked
from gas.cli.solver_files import nfe_of, warn_of_unknown_model
from gas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gas.models.protocol import Model

__all__ = ["sample"]

# Samples of one picture, 12 a row: 100 rows are as high as a picture can be drawn.
_PICTURED = 1200


@command(
    "gas sample --model mnist --solver runs/mnist.json --nfe 4 --seeds 24 --out runs/samples.png", file="out"
)
def sample(
    solver: SolverFile,
    out: Annotated[
        Path,
        typer.Option(
            help="A .png picture, or .npz or .safetensors arrays.",
            callback=checked(output_file(".png", ".npz", ".safetensors")),
        ),
    ],
    nfe: Annotated[
        int | None,
        typer.Option(
            help="Network evaluations a sample; default: the file's, or 4 of several.", min=1, max=MAX_NFE
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds, as N or FIRST:LAST.", callback=checked(parse_seeds))
    ] = "24",
    label: Annotated[
        int | None, typer.Option(help="One class for all; default: seed mod classes.", min=0, max=MAX_SEED)
    ] = None,
    batch: SamplesBatch = 64,
    *,
    network: NetworkOptions,
    json: Json = False,
) -> None:
    """Sample a model with a learned solver; the noise of a seed does not depend on its batch."""
    import torch

    from gas.models.seeds import labels_of_seeds
    from gas.sampling import sample as run
    from gas.solver_file import load

    loaded = network.load()
    class_label(loaded, label)
    artefact, chosen = load(solver), parse_seeds(seeds)
    guidance = artefact.document.guidance
    artefact.check(loaded, guidance)
    warn_of_unknown_model(artefact, loaded)
    nfe = nfe_of(artefact, nfe)
    table = artefact.table(nfe, interpolate=True).folded()
    around = artefact.neighbours(nfe)
    if around is not None:
        note(f"NFE {nfe} is not trained: {interpolation(around)}; gas evaluate --nfe {nfe} measures it")
    if out.suffix == ".png":
        _check_picture(loaded, len(chosen))
    decode, made, shown = getattr(loaded, "decode", None), [], []
    with torch.no_grad():
        starts = range(chosen.start, chosen.stop, batch)
        for start in tracked("samples", starts, len(starts)):
            part = range(start, min(start + batch, chosen.stop))
            labels = labels_of_seeds(loaded.classes, part)
            if labels is not None and label is not None:
                labels = torch.full_like(labels, label)
            x = run(loaded.bind(labels, guidance), loaded.noise(part), table)
            if not bool(x.isfinite().all()):
                raise UserError(
                    f"samples of {solver} at NFE {nfe} are not finite: train it anew, or take another NFE"
                )
            made.append(x.cpu())
            if decode is not None:
                shown.append(decode(x).cpu())
    title = f"{loaded.name}, NFE {nfe}, seeds {chosen.start} to {chosen.stop - 1}"
    _write(out, torch.cat(made), torch.cat(shown) if shown else None, chosen, title)
    note(f"wrote {len(chosen)} samples to {out}")
    if json:
        told = {"out": str(out), "model": loaded.name, "nfe": nfe, "seeds": [chosen.start, chosen.stop]}
        print_json({**told, "interpolated_from": around})


def _check_picture(model: Model, count: int) -> None:
    """Refuse a picture of what is none, or of too many, before any work."""
    import torch

    from gas.models.protocol import decoder_of
    from gas.plotting.style import require_matplotlib

    require_matplotlib()
    if count > _PICTURED:
        raise UserError(f"a .png shows at most {_PICTURED} samples, got {count:,}: use .npz or .safetensors")
    decode = decoder_of(model)
    shape = tuple(model.sample_shape)
    if decode is not None:
        with torch.no_grad():
            shape = tuple(decode(model.noise([0])).shape[1:])
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(
            f"a .png shows images, the samples of {model.name} are of shape {shape}: use .npz or .safetensors"
        )


def _write(out: Path, x: Tensor, shown: Tensor | None, seeds: range, title: str) -> None:
    """Write samples, of a pipeline beside what it decodes them to; a picture is of the latter."""
    import io

    import numpy as np
    import torch
    from safetensors.torch import save

    from gas.archives import arrays_with_checksum
    from gas.io import metadata_with_checksum, write_bytes
    from gas.plotting.samples import sample_grid

    arrays = {"samples": x, "seeds": torch.arange(seeds.start, seeds.stop)}
    if shown is not None:
        arrays["decoded"] = shown
    if out.suffix == ".png":
        x = x if shown is None else shown
        columns = min(12, len(x))
        blank = -torch.ones((-len(x)) % columns, *x.shape[1:])
        pages = torch.cat([x.clamp(-1, 1), blank]).split(columns)
        sample_grid(
            out, [(f"seed {seeds.start + i * columns}", page) for i, page in enumerate(pages)], title=title
        )
    elif out.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **arrays_with_checksum({name: value.numpy() for name, value in arrays.items()}))  # type: ignore[arg-type]
        write_bytes(out, buffer.getvalue())
    else:
        tensors = {name: value.contiguous() for name, value in arrays.items()}
        write_bytes(out, save(tensors, metadata_with_checksum(tensors, {})))
