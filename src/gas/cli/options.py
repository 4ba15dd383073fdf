"""Option types that several commands share, and how their texts are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from gas.backbones import PipelineModel
    from gas.zoo import ZooModel

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
    "ZooName",
    "check_device",
    "interpolation",
    "load_model",
    "load_zoo",
    "parse_call",
    "parse_nfes",
    "parse_seeds",
    "recorded",
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
    typer.Option(help="A UTF-8 file of one prompt a line, for a pipeline: seed s takes line s mod lines."),
]
Call = Annotated[str, typer.Option(help="Arguments of the pipeline's call, as height=512,width=512.")]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on standard output.")]


def _truncating(precision: str) -> str:
    """What float32 means on CUDA is set for the whole process, which is this command's own."""
    from gas.tf32 import truncate

    truncate(precision == "tf32")
    return precision


Precision = Annotated[
    str,
    typer.Option(
        help="Of the network: float32, tf32 (CUDA's products of 10 bits), bf16 or fp16 (mixed: states and coefficients "
        "stay exact).",
        callback=_truncating,
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
    typer.Option(help="Space of distances: the model's own, or inception, dinov2, clip with --weights."),
]
FeatureWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Of --features: a file of pt_inception-2015-12-05's names, or a folder as transformers saves it.",
    ),
]
MetricWeights = Annotated[
    Path | None,
    typer.Option(
        help="Folder of vgg16-397923af.pth and lpips-vgg.pth, and of the folder clip; default: that of presets."
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(help="Statistics of real data in that space: gas statistics', EDM's or ADM's .npz."),
]
Real = Annotated[
    Path | None,
    typer.Option(
        help="Real images to measure against too, with --features: an .npz with arr_0 (ADM's reference batch) or a "
        "folder of pictures; for mnist in its own features a folder of MNIST's IDX files."
    ),
]
GasIterations = Annotated[
    int | None, typer.Option(help="Steps of Adam against the critic (gas); default 250.", min=1)
]
SolverFile = Annotated[Path, typer.Option("--solver", "-s", help="A solver file, as gas train writes it.")]


def was_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_seeds(text: str) -> range:
    """Read ``A:B`` (A up to, not including, B) or ``N`` (0 up to N) as a range of seeds.

    Raises:
        ValueError: shows both forms.
    """
    parts = text.split(":")
    try:
        first, stop = (0, int(parts[0])) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
        if len(parts) > 2 or not 0 <= first < stop:
            raise ValueError
    except ValueError:
        raise ValueError(f"seeds must be like 1024 or 50000:51024 with first < last, got {text!r}") from None
    return range(first, stop)


def parse_nfes(text: str) -> list[int]:
    """Read ``3-6,8,10`` as a sorted list of NFE.

    Raises:
        ValueError: shows the form.
    """
    parts: list[tuple[int, int]] = []
    nfes: set[int] = set()
    try:
        for part in text.split(","):
            ends = [int(end) for end in part.split("-")]
            if len(ends) > 2 or min(ends) < 1:
                raise ValueError
            parts.append((ends[0], ends[-1]))
    except ValueError:
        raise ValueError(f"nfe must be like 4 or 3-6,8,10 with numbers from 1 up, got {text!r}") from None
    for first, last in parts:
        if first > last:
            raise ValueError(f"nfe {text!r} has a range from high to low: write {last}-{first}")
        nfes.update(range(first, last + 1))
    return sorted(nfes)


def interpolation(around: tuple[int, int]) -> str:
    """Say which two trained NFE a table was made of."""
    return f"interpolated from NFE {around[0]} and {around[1]}"


def recorded(model: Any, wanted: bool) -> Any:
    """Return the model, recorded as CUDA graphs where that is wanted."""
    if not wanted:
        return model
    from gas.cuda_graphs import CudaGraphs

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
    from gas.precision import precise

    if name.startswith("diffusers:"):
        check_device(device)
        pipeline = _pipeline(name.removeprefix("diffusers:"), prompts, call, pairs).to(device)
        return cast("PipelineModel", precise(pipeline, precision, compiled=compiled))
    if name.startswith("preset:"):
        from gas.presets import open_backbone, preset_by_name

        check_device(device)
        if call:
            raise ValueError(
                f"--call is for --model diffusers:..., a preset has its own arguments; got {call!r}"
            )
        setup = open_backbone(preset_by_name(name.removeprefix("preset:")), prompts=prompts, device=device)
        return cast("PipelineModel", precise(setup, precision, compiled=compiled))
    if prompts is not None or call:
        raise ValueError(
            f"--prompts and --call are for pipelines (--model diffusers:...), got --model {name}"
        )
    if name.startswith("published:"):
        from gas.backbones import open_model

        check_device(device)
        published = open_model(name.removeprefix("published:"), device=device)
        return cast("ZooModel", precise(published, precision, compiled=compiled))
    from gas import zoo

    check_device(device)
    # A PreciseModel has all that the model it wraps has.
    return cast("ZooModel", precise(zoo.load(name).to(device), precision, compiled=compiled))


def load_zoo(name: str, device: str) -> ZooModel:
    """Load a zoo model of images onto a device.

    Raises:
        ValueError: for an unknown model, one of latents, or a device that is not there.
    """
    from gas import zoo

    check_device(device)
    if name.partition(":")[0] in ("diffusers", "published", "preset"):
        raise ValueError(
            f"this command takes zoo models of images, digits or mnist say, got --model {name[:80]}"
        )
    if "pipeline" in zoo.card(name):
        raise ValueError(
            f"model {name} is a pipeline of latents, which this command does not take: choose one of images"
        )
    return cast("ZooModel", zoo.load(name).to(device))


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: says why it cannot be used.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _pipeline(source: str, prompts: Path | None, call: str, pairs: Path | None) -> PipelineModel:
    from gas.backbones import from_pipeline, open_pipeline, read_prompts
    from gas.shards import MANIFEST, read_manifest

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
            raise ValueError(f"--call must be like height=512,width=512, got {text!r}")
        try:
            told[name.strip()] = json.loads(value)
        except ValueError:
            told[name.strip()] = value.strip()
    return told
