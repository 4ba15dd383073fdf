"""``gas sample``: make samples with a solver file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import gas
from gas.arguments import MAX_SEED
from gas.cli.app import command
from gas.cli.checks import NFE, option, output_file
from gas.cli.evaluate import warn_of_provenance
from gas.cli.options import (
    GuidanceScale,
    Json,
    NetworkOptions,
    SamplesBatch,
    SolverFile,
    interpolation,
    load_solver,
    parse_seeds,
)
from gas.cli.screen import note, print_json, tracked

if TYPE_CHECKING:
    from torch import Tensor


# Most samples in one picture, 12 per row: matplotlib draws no more than about 100 rows.
_PICTURED = 1200


@command(
    "gas sample --model mnist --solver runs/mnist.json --nfe 4 --seeds 24 --out runs/samples.png", file="out"
)
def sample(
    solver: SolverFile,
    out: Annotated[
        Path, option("A picture, or arrays of samples.", output_file(".png", ".npz", ".safetensors"))
    ],
    nfe: Annotated[int | None, option("NFE; default: the file's only one, or 4.", **NFE)] = None,
    forwards: Annotated[
        int | None, option("Take the table of so many forward passes instead.", **NFE)
    ] = None,
    guidance: GuidanceScale = None,
    seeds: Annotated[str, option("Seeds, as N or FIRST:STOP (not included).", parse_seeds)] = "24",
    label: Annotated[int | None, option("Class; default: seed mod classes.", min=0, max=MAX_SEED)] = None,
    batch: SamplesBatch = 64,
    *,
    network: NetworkOptions,
    json: Json = False,
) -> None:
    """Sample a model with a learned solver; the noise of a seed does not depend on its batch."""
    loaded = network.load()
    artefact, chosen = load_solver(solver, guidance), parse_seeds(seeds)
    artefact.check(loaded, artefact.document.guidance)
    warn_of_provenance(artefact, loaded)
    if forwards is not None and nfe is not None:
        raise gas.UserError("--nfe and --forwards name two tables: say one of them")
    if nfe is None and forwards is None:
        nfe = gas.evaluation.solver_files.default_nfe(artefact)
    around = None if nfe is None else artefact.neighbours(nfe)
    table = artefact.table(nfe, forwards=forwards, interpolate=True)
    size = f"NFE {nfe}" if forwards is None else f"{forwards} forward passes"
    if around is not None:
        note(f"NFE {nfe} is not trained: {interpolation(around)}; gas evaluate --nfe {nfe} measures it")
    if out.suffix == ".png":
        _check_picture(loaded, len(chosen))
    batches = gas.evaluation.sampler.seed_batches(loaded, chosen, label=label, batch=batch)
    results = gas.evaluation.sampler.sample_batches(loaded, table, batches, artefact.document.guidance)
    samples = []
    for x in tracked("samples", results, -(-len(chosen) // batch)):
        if not bool(x.isfinite().all()):
            raise gas.UserError(
                f"samples of {artefact.source} at {size} are not finite: train it anew, or take another table"
            )
        samples.append(x)
    title = f"{loaded.name}, {size}, seeds {chosen.start} to {chosen.stop - 1}"
    _write(out, loaded, samples, chosen, title)
    note(f"wrote {len(chosen)} samples to {out}")
    if json:
        count = {"nfe": nfe} if forwards is None else {"forwards": forwards}
        result = {"out": str(out), "model": loaded.name, **count, "seeds": [chosen.start, chosen.stop]}
        print_json({**result, "guidance": artefact.document.guidance, "interpolated_from": around})


def _check_picture(model: gas.models.Model, count: int) -> None:
    """Refuse a picture of samples that are not images, or of too many, before any work."""
    if count > _PICTURED:
        raise gas.UserError(f"a .png shows at most {_PICTURED} samples, got {count:,}: write .safetensors")
    shape = tuple(gas.models.protocol.images_of(model, model.noise([0])).shape[1:])
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise gas.UserError(
            f"a .png shows images, the samples of {model.name} are of shape {shape}: use .npz or .safetensors"
        )


def _write(out: Path, model: gas.models.Model, batches: list[Tensor], seeds: range, title: str) -> None:
    """Write batches of samples, with what the model decodes them to; a picture shows the latter, where there is any."""
    import torch

    x = torch.cat(batches)
    arrays = {"samples": x, "seeds": torch.arange(seeds.start, seeds.stop)}
    if gas.models.protocol.decoder_of(model) is not None:
        x = torch.cat([gas.models.protocol.images_of(model, each).cpu() for each in batches])
        arrays["decoded"] = x
    if out.suffix == ".png":
        columns = min(12, len(x))
        blank = -torch.ones((-len(x)) % columns, *x.shape[1:])
        pages = torch.cat([x.clamp(-1, 1), blank]).split(columns)
        gas.plotting.sample_grid(
            out, [(f"seed {seeds.start + i * columns}", page) for i, page in enumerate(pages)], title=title
        )
    elif out.suffix == ".npz":
        gas.archives.write_arrays(out, {name: value.numpy() for name, value in arrays.items()})
    else:
        gas.io.write_safetensors(out, arrays, {})
