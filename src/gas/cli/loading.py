"""The model that ``--model`` names, with the pipeline, precision and recording that further options ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gas.cli.checks import existing_path
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.pipelines.model import PipelineModel
    from gas.zoo.model import ZooModel

__all__ = ["SOURCES", "ModelSource", "check_model_name", "load_model", "load_zoo", "parse_call", "reported"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A prefix of model names, as ``preset:`` of ``preset:cifar10``.

    Attributes:
        check: refuses a name after the prefix before the model is loaded.
        load: ``(name, prompts, call, device)`` -> the model.
        reported: name -> FID that a paper reports, by solver and NFE.
    """

    check: Callable[[str], object]
    load: Callable[[str, Path | None, str, str], Model]
    reported: Callable[[str], Mapping[tuple[str, int], float]] = lambda name: {}


# Sources beside the zoo and diffusers, by prefix; the paper's commands add theirs.
SOURCES: dict[str, ModelSource] = {}


def _source(name: str) -> tuple[ModelSource | None, str]:
    """Return the source of a model name, if it has one, and the name without its prefix."""
    prefix, _, rest = name.partition(":")
    return SOURCES.get(prefix), rest


def check_model_name(name: str) -> None:
    """Refuse a model that does not exist, as far as its name shows.

    Raises:
        UserError: for an empty name after a prefix, or one that its source does not know.
        OSError: when a file does not exist.
    """
    source, rest = _source(name)
    if source is None and not name.startswith("diffusers:"):
        return
    if not rest:
        raise UserError(f"--model {name} wants a name after the colon")
    if source is not None:
        source.check(rest)
    elif "/" not in rest:
        existing_path(Path(rest))


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
) -> ZooModel | PipelineModel:
    """Load a model onto a device.

    Args:
        name: as ``--model`` takes it.
        device: as ``--device`` takes it.
        precision: as ``--precision`` takes it.
        compiled: as ``--compile`` takes it.
        prompts: a prompt file, for pipelines.
        call: further arguments of the pipeline's call, ``height=512,width=512``.
        pairs: a folder of pairs, which gives prompts and arguments where ``prompts`` is missing.

    Raises:
        UserError: for an unknown model or precision, an unusable device, or prompts for a model without any.
    """
    from gas import zoo
    from gas.models.runtime import precise

    source, rest = _source(name)
    model: Any
    if name.startswith("diffusers:"):
        model = _pipeline(name.removeprefix("diffusers:"), prompts, call, pairs).to(device)
    elif source is not None:
        model = source.load(rest, prompts, call, device)
    elif prompts is not None or call:
        raise UserError(f"--prompts and --call are for pipelines (--model diffusers:...), got --model {name}")
    else:
        model = zoo.load(name).to(device)
    # A PreciseModel has every attribute of the model inside.
    return cast("ZooModel", precise(model, precision, compiled=compiled))


def load_zoo(name: str, device: str) -> ZooModel:
    """Load a zoo model of images onto a device.

    Raises:
        UserError: for an unknown model, one of latents, or an unusable device.
    """
    from gas import zoo

    if name.startswith("diffusers:") or _source(name)[0] is not None:
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

    kwargs = {"prompts": [] if prompts is None else read_prompts(prompts), **parse_call(call)}
    if prompts is None and pairs is not None and (pairs / MANIFEST).is_file():
        conditions = read_manifest(pairs)["recipe"].get("conditions", {})
        kwargs = {**conditions.get("arguments", {}), **kwargs, "prompts": conditions.get("prompts", [])}
        kwargs["negative_prompt"] = conditions.get("negative_prompt")
    return from_pipeline(open_pipeline(source), **kwargs)


def parse_call(text: str) -> dict[str, Any]:
    """Read ``height=512,width=512`` as arguments of a pipeline's call; values are JSON, or else text.

    Raises:
        UserError: shows the form.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"--call must be like height=512,width=512, got {text!r}")
        try:
            arguments[name.strip()] = json.loads(value)
        except ValueError:
            arguments[name.strip()] = value.strip()
    return arguments
