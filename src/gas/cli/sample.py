"""``gas sample``: make samples with a solver file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gas.cli.app import command
from gas.cli.options import (
    Compile,
    Device,
    Json,
    ModelName,
    Precision,
    SolverFile,
    interpolation,
    load_model,
    parse_seeds,
)
from gas.cli.screen import note, print_json, tracked

__all__ = ["sample"]


@command("gas sample --model mnist --solver runs/mnist.json --nfe 4 --seeds 24 --out runs/samples.png")
def sample(
    solver: SolverFile,
    out: Annotated[Path, typer.Option(help="A .png picture, or .npz or .safetensors arrays.")],
    model: ModelName = "mnist",
    nfe: Annotated[
        int | None, typer.Option(help="Network evaluations a sample; default: the file's, or 4 of several.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, as N or FIRST:LAST.")] = "24",
    label: Annotated[int | None, typer.Option(help="One class for all; default: seed mod classes.")] = None,
    batch: Annotated[int, typer.Option(help="Samples a network call.")] = 64,
    device: Device = "cpu",
    precision: Precision = "float32",
    compiled: Compile = False,
    json: Json = False,
) -> None:
    """Sample a model with a learned solver; the noise of a seed does not depend on its batch."""
    import torch

    from gas.artefact import load
    from gas.model import labels_of_seeds
    from gas.sample import sample as run

    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")
    suffixes = (".png", ".npz", ".safetensors")
    if out.suffix not in suffixes:
        raise ValueError(f"--out must end in one of {', '.join(suffixes)}, got {str(out)!r}")
    loaded = load_model(model, device, precision, compiled)
    artefact, chosen = load(solver), parse_seeds(seeds)
    guidance = artefact.document.guidance
    artefact.check(loaded, guidance)
    if nfe is None:
        nfe = artefact.nfes[0] if len(artefact.nfes) == 1 else 4
    table = artefact.table(nfe, interpolate=True).folded()
    around = artefact.neighbours(nfe)
    if around is not None:
        note(f"NFE {nfe} is not trained: {interpolation(around)}; gas evaluate --nfe {nfe} measures it")
    made = []
    with torch.no_grad():
        starts = range(chosen.start, chosen.stop, batch)
        for start in tracked("samples", starts, len(starts)):
            part = range(start, min(start + batch, chosen.stop))
            labels = labels_of_seeds(loaded.classes, part)
            if labels is not None and label is not None:
                labels = torch.full_like(labels, label)
            made.append(run(loaded.bind(labels, guidance), loaded.noise(part), table).cpu())
    _write(
        out, torch.cat(made), chosen, f"{loaded.name}, NFE {nfe}, seeds {chosen.start} to {chosen.stop - 1}"
    )
    note(f"wrote {len(chosen)} samples to {out}")
    if json:
        told = {"out": str(out), "model": loaded.name, "nfe": nfe, "seeds": [chosen.start, chosen.stop]}
        print_json({**told, "interpolated_from": around})


def _write(out: Path, x: object, seeds: range, title: str) -> None:
    import io

    import numpy as np
    import torch
    from safetensors.torch import save

    from gas.files import write_bytes
    from gas.report import sample_grid

    if not isinstance(x, torch.Tensor):
        raise TypeError(f"samples must be a tensor, got {type(x).__name__}")
    numbers = torch.arange(seeds.start, seeds.stop)
    if out.suffix == ".png":
        columns = min(12, len(x))
        blank = -torch.ones((-len(x)) % columns, *x.shape[1:])
        pages = torch.cat([x.clamp(-1, 1), blank]).split(columns)
        sample_grid(
            out, [(f"seed {seeds.start + i * columns}", page) for i, page in enumerate(pages)], title=title
        )
    elif out.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, samples=x.numpy(), seeds=numbers.numpy())
        write_bytes(out, buffer.getvalue())
    else:
        write_bytes(out, save({"samples": x.contiguous(), "seeds": numbers}))
