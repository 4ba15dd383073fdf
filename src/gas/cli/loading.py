"""The model that ``--model`` names, with the pipeline, precision and recording that further options ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gas


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A prefix of model names, as ``preset:`` of ``preset:cifar10``.

    Attributes:
        load: ``(name, prompts, call, device)`` -> the model.
        reported: name -> FID that a paper reports, by solver and NFE.
    """

    load: Callable[[str, Path | None, str, str], gas.models.Model]
    reported: Callable[[str], Mapping[tuple[str, int], float]] = lambda name: {}


# Endings of files that an argument of a pipeline's call may name.
_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}

# Sources beside the zoo and diffusers, by prefix; the paper's commands add theirs.
SOURCES: dict[str, ModelSource] = {}


def _source(name: str) -> tuple[ModelSource | None, str]:
    """Return the source of a model name, if it has one, and the name without its prefix."""
    prefix, _, rest = name.partition(":")
    return SOURCES.get(prefix), rest


def reported(name: str) -> Mapping[tuple[str, int], float]:
    """Return the FID that the paper reports for a model, by solver and NFE; empty for other models."""
    source, rest = _source(name)
    return {} if source is None else source.reported(rest)


def load_model(
    name: str,
    device: str,
    precision: str = "float32",
    compiled: bool = False,
    *,
    prompts: Path | None = None,
    call: str = "",
    pairs: Path | None = None,
    weights: Mapping[str, str | None] | None = None,
) -> gas.zoo.ZooModel | gas.pipelines.PipelineModel:
    """Load a model onto a device; ``weights`` are the dtype, quantization and offloading of a pipeline's."""
    source, rest = _source(name)
    weights = {key: value for key, value in (weights or {}).items() if value is not None}
    if weights and not name.startswith("diffusers:"):
        raise gas.UserError(
            f"--{next(iter(weights))} is for pipelines (--model diffusers:...), got --model {name}"
        )
    if not rest and (source is not None or name == "diffusers:"):
        raise gas.UserError(f"--model {name} wants a name after the colon")
    model: Any
    if name.startswith("diffusers:"):
        if "/" not in rest:
            Path(rest).stat()  # repositories are OWNER/NAME, so that this is a folder
        model = _pipeline(rest, prompts, call, pairs, device=device, **weights)
    elif source is not None:
        model = source.load(rest, prompts, call, device)
    elif prompts is not None or call:
        raise gas.UserError(
            f"--prompts and --call are for pipelines (--model diffusers:...), got --model {name}"
        )
    else:
        model = gas.zoo.load(name).to(device)
    # A PreciseModel has every attribute of the model inside.
    return cast("gas.zoo.ZooModel", gas.models.precise(model, precision, compiled=compiled))


def load_zoo(name: str, device: str) -> gas.zoo.ZooModel:
    """Load a zoo model of images onto a device."""
    if name.startswith("diffusers:") or _source(name)[0] is not None:
        raise gas.UserError(
            f"this command takes zoo models of images, digits or mnist say, got --model {name[:80]}"
        )
    if "pipeline" in gas.zoo.card(name):
        raise gas.UserError(
            f"model {name} is a pipeline of latents, which this command does not take: choose one of images"
        )
    return cast("gas.zoo.ZooModel", gas.zoo.load(name).to(device))


def _pipeline(
    source: str,
    prompts: Path | None,
    call: str,
    pairs: Path | None,
    *,
    device: str,
    dtype: str | None = None,
    quantize: str | None = None,
    offload: str | None = None,
) -> gas.pipelines.PipelineModel:
    kwargs = {"prompts": [] if prompts is None else gas.pipelines.read_prompts(prompts), **parse_call(call)}
    if prompts is None and pairs is not None and (pairs / gas.pairs.shards.MANIFEST).is_file():
        conditions = gas.pairs.shards.read_manifest(pairs)["recipe"].get("conditions", {})
        kwargs = {**conditions.get("arguments", {}), **kwargs, "prompts": conditions.get("prompts", [])}
        kwargs["negative_prompt"] = conditions.get("negative_prompt")
    for name, value in kwargs.items():
        if isinstance(value, dict) and "sha256" in value:
            raise gas.UserError(
                f"the pairs in {pairs} record an image by its hash: pass --call {name}=FILE again"
            )
        if isinstance(value, str) and Path(value).suffix.lower() in _PICTURES:
            kwargs[name] = _picture(Path(value))
    pipe = gas.pipelines.open_pipeline(source, dtype=dtype, quantize=quantize)
    gas.pipelines.loading.place_pipeline(pipe, device, offload)
    return gas.pipelines.from_pipeline(pipe, **kwargs)


def free_text_encoders(name: str, model: gas.models.Model, guidance: float) -> None:
    """Encode the prompts of a ``diffusers:`` model and let go of its text encoders."""
    if name.startswith("diffusers:"):
        cast("gas.pipelines.PipelineModel", model).free_text_encoders(guidance)


def _picture(path: Path) -> Any:
    import PIL.Image

    try:
        return PIL.Image.open(path).convert("RGB")
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise gas.UserError(f"--call {path} is no picture that can be read: {error}") from error


def parse_call(text: str) -> dict[str, Any]:
    """Read ``height=512,width=512`` as arguments of a pipeline's call; values are JSON, or else text."""
    arguments: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise gas.UserError(f"--call must be like height=512,width=512, got {text!r}")
        try:
            arguments[name.strip()] = json.loads(value)
        except ValueError:
            arguments[name.strip()] = value.strip()
    return arguments
