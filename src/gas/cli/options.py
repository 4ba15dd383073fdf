"""Option types that several commands share, and how their texts are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gas.arguments import MAX_BATCH, MAX_ITERATIONS, MAX_NFE, MAX_ORDER_SEED, MAX_SEED, MAX_SEEDS
from gas.cli.checks import (
    checked,
    existing_file,
    existing_folder,
    existing_path,
    is_in,
    output_file,
    registered,
)
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.pairs.dataset import Pairs
    from gas.pipelines.model import PipelineModel
    from gas.zoo.model import ZooModel

__all__ = [
    "Call",
    "Compile",
    "CudaGraphs",
    "Device",
    "FeatureWeights",
    "Features",
    "GasIterations",
    "Json",
    "MetricWeights",
    "ModelName",
    "Precision",
    "Prompts",
    "Real",
    "Reference",
    "SolverFile",
    "Validation",
    "ZooName",
    "interpolation",
    "load_model",
    "load_zoo",
    "parse_call",
    "parse_nfes",
    "parse_seeds",
    "recorded",
    "split_pairs",
    "was_given",
]

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A zoo model (digits, mnist; mnist-latent, mnist-flow) or the path of its .safetensors file; "
        "or diffusers:FOLDER_OR_REPOSITORY, published:FILE, a network of gas convert, or preset:NAME, a published "
        "setup's.",
        callback=checked(lambda name: check_model_name(name)),
    ),
]
ZooName = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A zoo model of images (digits, mnist), or the path of its .safetensors file."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="A UTF-8 file of one prompt a line, for a pipeline: seed s takes line s mod lines.",
        callback=checked(existing_file),
    ),
]
Call = Annotated[
    str,
    typer.Option(
        help="Arguments of the pipeline's call, as height=512,width=512.",
        callback=checked(lambda text: parse_call(text)),
    ),
]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on standard output.")]


def check_model_name(name: str) -> None:
    """Refuse a model that is not there, as far as its name tells.

    Raises:
        ValueError: for an empty name after a prefix, or an unknown preset.
        OSError: when a file does not exist.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or prefix not in ("diffusers", "published", "preset"):
        return
    if not rest:
        raise UserError(f"--model {prefix}: wants a name after the colon")
    if prefix == "preset":
        from gas.paper.presets import preset_by_name

        preset_by_name(rest)
    if prefix == "published" or (prefix == "diffusers" and "/" not in rest):
        existing_path(Path(rest))


# What --method takes; auto is one of the next two by the loss.
METHODS = ("auto", "gauss-newton", "adam", "paper")


def _losses() -> Iterable[str]:
    from gas.losses import LOSSES

    return LOSSES


def _check_start(text: str) -> None:
    from gas.training.initialization import check_start

    check_start(text)


def check_classical(text: str) -> None:
    """Refuse what is no ``SOLVER`` or ``SOLVER/GRID`` of a classical solver."""
    from gas.training.initialization import check_start

    if text in ("best", "uniform"):
        raise UserError(f"a classical solver is SOLVER or SOLVER/GRID, got {text!r}")
    check_start(text)


def _check_matplotlib() -> None:
    from gas.plotting.style import require_matplotlib

    require_matplotlib()


def solver_names() -> Iterable[str]:
    from gas.classical.registry import SOLVERS

    return SOLVERS


def check_grid(text: str) -> None:
    from gas.training.initialization import check_start

    check_start(f"ddim/{text}")


def _precisions() -> Iterable[str]:
    from gas.models.runtime import PRECISIONS

    return PRECISIONS


def _spaces() -> Iterable[str]:
    from gas.features.extractor import EXTRACTORS

    return ("model", *EXTRACTORS)


def check_space(features: str, weights: Path | None) -> None:
    """Refuse weights without a network's name, or a name without weights.

    Raises:
        ValueError: says which of both is missing.
    """
    if features == "model" and weights is not None:
        raise UserError("--weights are of a published network: name it with --features")
    if features != "model" and weights is None:
        raise UserError(f"--features {features} needs --weights: nothing is downloaded")


Precision = Annotated[
    str,
    typer.Option(
        help="Of the network: float32, tf32 (CUDA's products of 10 bits), bf16 or fp16 (mixed: states and coefficients "
        "stay exact).",
        callback=checked(registered("precision", _precisions)),
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Run the network through torch.compile; slow to start.")
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs",
        help="Record the network and replay it wherever no gradient is wanted: small ones are then several times as "
        "fast on CUDA. Not for pipelines.",
    ),
]
Features = Annotated[
    str,
    typer.Option(
        help="Space of distances: the model's own, or inception, dinov2, clip with --weights.",
        callback=checked(registered("features", _spaces)),
    ),
]
FeatureWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Of --features: a file of pt_inception-2015-12-05's names, or a folder as transformers saves it.",
        callback=checked(existing_path),
    ),
]
MetricWeights = Annotated[
    Path | None,
    typer.Option(
        help="Folder of vgg16-397923af.pth and lpips-vgg.pth, and of the folder clip; default: that of presets.",
        callback=checked(existing_folder),
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        help="Statistics of real data in that space: gas statistics', EDM's or ADM's .npz.",
        callback=checked(existing_file),
    ),
]
Real = Annotated[
    Path | None,
    typer.Option(
        help="Real images to measure against too, with --features: an .npz with arr_0 (ADM's reference batch) or a "
        "folder of pictures; for mnist in its own features a folder of MNIST's IDX files.",
        callback=checked(existing_path),
    ),
]
GasIterations = Annotated[
    int | None,
    typer.Option(help="Steps of Adam against the critic (gas); default 250.", min=1, max=MAX_ITERATIONS),
]
Iterations = Annotated[
    int | None,
    typer.Option(help="Optimiser steps for each NFE; default 18 for l2.", min=0, max=MAX_ITERATIONS),
]
PairsBatch = Annotated[
    int | None,
    typer.Option(help="Pairs a step; default 24, and growing for l2.", min=1, max=MAX_BATCH),
]
SamplesBatch = Annotated[int, typer.Option(help="Samples a network call.", min=1, max=MAX_BATCH)]
Validation = Annotated[
    int | None,
    typer.Option(
        help="Pairs, from the end, kept for choosing; by default 256, of fewer than 512 pairs a quarter.",
        min=2,
        max=MAX_SEEDS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(help="Of the batches' order, and of a critic's first weights.", min=0, max=MAX_ORDER_SEED),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Of adam and paper.", callback=checked(is_in("learning_rate", "(0, 100]"))),
]
Relax = Annotated[
    float | None,
    typer.Option(
        help="Radius that a pair's noise may move in (adam, paper), as LD3 and S4S do; default 0.",
        callback=checked(is_in("relax", "[0, 1000]")),
    ),
]
LossName = Annotated[
    str, typer.Option(help="l2, l1 or pseudo_huber.", callback=checked(registered("loss", _losses)))
]
Method = Annotated[
    str,
    typer.Option(
        help="auto, gauss-newton (for l2), adam, or paper (its settings of Adam).",
        callback=checked(registered("method", lambda: METHODS)),
    ),
]
Start = Annotated[
    str,
    typer.Option(
        help="Of learned solvers: best, uniform (the paper's), or SOLVER/GRID.",
        callback=checked(_check_start),
    ),
]
PairsFolder = typer.Option(
    help="Folder of teacher pairs, as gas pairs writes it.", callback=checked(existing_folder)
)
Picture = Annotated[
    Path | None,
    typer.Option(
        help="A .png to draw: the learned times, or the error over NFE.",
        callback=checked(output_file(".png"), lambda _: _check_matplotlib()),
    ),
]
SolverFile = Annotated[
    Path,
    typer.Option(
        "--solver", "-s", help="A solver file, as gas train writes it.", callback=checked(existing_file)
    ),
]


def was_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_seeds(text: str) -> range:
    """Read ``A:B`` (A up to, not including, B) or ``N`` (0 up to N) as a range of seeds.

    Raises:
        ValueError: shows both forms, or the bounds.
    """
    form = re.fullmatch(r"\s*(?:(\d{1,30})\s*:)?\s*(\d{1,30})\s*", text, re.ASCII)
    first, stop = (int(form[1] or 0), int(form[2])) if form else (0, 0)
    if not first < stop:
        raise UserError(f"seeds must be like 1024 or 50000:51024 with first < last, got {text[:60]!r}")
    if stop - first > MAX_SEEDS or stop > MAX_SEED:
        raise UserError(f"seeds must be at most {MAX_SEEDS:,} and below 2^63, got {text!r}")
    return range(first, stop)


def measured_seeds(text: str) -> range:
    """Read seeds to measure on: a spread, and so an interval, is of two samples at least.

    Raises:
        ValueError: as :func:`parse_seeds`, and for a single seed.
    """
    seeds = parse_seeds(text)
    if len(seeds) < 2:
        raise UserError(f"at least two seeds are needed to measure on, got {text!r}")
    return seeds


def split_pairs(pairs: Pairs, validation: int | None) -> tuple[Pairs, Pairs]:
    """Return the pairs to learn from and those to choose on, as ``--validation`` says."""
    count = len(pairs)
    if validation is None:
        validation = 256 if count >= 512 else count // 4
        if validation < 2:
            raise UserError(f"{count} pairs are too few to learn from and to choose on: make more")
    if not validation < count:
        raise UserError(
            f"--validation must be below the {count} pairs, got {validation}: leave it out, or make more pairs"
        )
    return pairs.split(validation)


def parse_nfes(text: str) -> list[int]:
    """Read ``3-6,8,10`` as a sorted list of NFE.

    Raises:
        ValueError: shows the form, or the bounds.
    """
    nfes: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,30})\s*(?:-\s*(\d{1,30}))?\s*", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if first < 1:
            raise UserError(f"nfe must be like 4 or 3-6,8,10 with numbers from 1 up, got {text[:60]!r}")
        if max(first, last) > MAX_NFE:
            raise UserError(f"nfe must be from 1 to {MAX_NFE:,}, got {text[:60]!r}")
        if first > last:
            raise UserError(f"nfe {text[:60]!r} has a range from high to low: write {last}-{first}")
        nfes.update(range(first, last + 1))
    return sorted(nfes)


def interpolation(around: tuple[int, int]) -> str:
    """Say which two trained NFE a table was made of."""
    return f"interpolated from NFE {around[0]} and {around[1]}"


def recorded(model: Any, wanted: bool) -> Any:
    """Return the model, recorded as CUDA graphs where that is wanted."""
    if not wanted:
        return model
    from gas.models.runtime import CudaGraphs

    return CudaGraphs(model)


def load_model(
    name: str,
    device: str,
    precision: str = "float32",
    compiled: bool = False,
    *,
    prompts: Path | None = None,
    call: str = "",
    pairs: Path | None = None,
) -> ZooModel | PipelineModel:
    """Load a zoo model, or with ``diffusers:`` before its folder or repository a pipeline, onto a device.

    Args:
        name: as ``--model`` takes it.
        device: as ``--device`` takes it.
        precision: as ``--precision`` takes it.
        compiled: as ``--compile`` takes it.
        prompts: a prompt file; for pipelines.
        call: more arguments of the pipeline's call, ``height=512,width=512``.
        pairs: a folder of pairs, whose prompts and arguments to take where none are given.

    Raises:
        ValueError: for an unknown model or precision, a device that is not there, or prompts for a model that takes
            none.
    """
    from gas.models.runtime import precise

    if name.startswith("diffusers:"):
        pipeline = _pipeline(name.removeprefix("diffusers:"), prompts, call, pairs).to(device)
        return cast("PipelineModel", precise(pipeline, precision, compiled=compiled))
    if name.startswith("preset:"):
        from gas.paper.backbone import open_backbone
        from gas.paper.presets import preset_by_name

        if call:
            raise UserError(
                f"--call is for --model diffusers:..., a preset has its own arguments; got {call!r}"
            )
        setup = open_backbone(preset_by_name(name.removeprefix("preset:")), prompts=prompts, device=device)
        return cast("PipelineModel", precise(setup, precision, compiled=compiled))
    if prompts is not None or call:
        raise UserError(f"--prompts and --call are for pipelines (--model diffusers:...), got --model {name}")
    if name.startswith("published:"):
        from gas.paper.published import open_model

        published = open_model(name.removeprefix("published:"), device=device)
        return cast("ZooModel", precise(published, precision, compiled=compiled))
    from gas import zoo

    # A PreciseModel has all that the model it wraps has.
    return cast("ZooModel", precise(zoo.load(name).to(device), precision, compiled=compiled))


def load_zoo(name: str, device: str) -> ZooModel:
    """Load a zoo model of images onto a device.

    Raises:
        ValueError: for an unknown model, one of latents, or a device that is not there.
    """
    from gas import zoo

    if name.partition(":")[0] in ("diffusers", "published", "preset"):
        raise UserError(
            f"this command takes zoo models of images, digits or mnist say, got --model {name[:80]}"
        )
    if "pipeline" in zoo.card(name):
        raise UserError(
            f"model {name} is a pipeline of latents, which this command does not take: choose one of images"
        )
    return cast("ZooModel", zoo.load(name).to(device))


def _pipeline(source: str, prompts: Path | None, call: str, pairs: Path | None) -> PipelineModel:
    from gas.pairs.shards import MANIFEST, read_manifest
    from gas.pipelines.loading import open_pipeline, read_prompts
    from gas.pipelines.model import from_pipeline

    told: dict[str, Any] = {"prompts": [] if prompts is None else read_prompts(prompts), **parse_call(call)}
    if prompts is None and pairs is not None and (pairs / MANIFEST).is_file():
        kept = read_manifest(pairs)["recipe"].get("conditions", {})
        told = {**kept.get("arguments", {}), **told, "prompts": kept.get("prompts", [])}
        told["negative_prompt"] = kept.get("negative_prompt")
    return from_pipeline(open_pipeline(source), **told)


def parse_call(text: str) -> dict[str, Any]:
    """Read ``height=512,width=512`` as arguments of a pipeline's call; values are JSON, or else text.

    Raises:
        ValueError: shows the form.
    """
    told: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"--call must be like height=512,width=512, got {text!r}")
        try:
            told[name.strip()] = json.loads(value)
        except ValueError:
            told[name.strip()] = value.strip()
    return told
