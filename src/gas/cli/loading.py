"""The model that the options of a network name, with the pipeline and precision that they ask for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gas
from gas.cli.screen import note

if TYPE_CHECKING:
    from gas.cli.options import NetworkOptions

# Endings of files that an argument of a pipeline's call may name.
_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}

# Prefixes of --model beside diffusers: -> the loader of a name onto a device, some with prompts; the paper's commands
# add theirs, and the FID that a paper reports of a name, by solver and NFE.
SOURCES: dict[str, Callable[..., gas.models.Model]] = {}
WITH_PROMPTS: set[str] = set()
REPORTED: dict[str, Callable[[str], Mapping[tuple[str, int], float]]] = {}


def load_model(network: NetworkOptions, pairs: Path | None = None) -> gas.models.Model:
    """Load a model onto its device; prompts that are not given come from a folder of pairs."""
    name, prompts, call, device = network.model, network.prompts, network.call, network.device
    prefix, _, rest = name.partition(":")
    is_pipeline = name.startswith("diffusers:")
    weights = {key: getattr(network, key) for key in ("dtype", "quantize", "offload")}
    weights = {key: value for key, value in weights.items() if value is not None}
    quantize = None if is_pipeline else weights.pop("quantize", None)
    if weights and not is_pipeline:
        raise gas.UserError(f"--{next(iter(weights))} is for pipelines (diffusers:...), got --model {name}")
    if not is_pipeline and (call or (prompts is not None and prefix not in WITH_PROMPTS)):
        raise gas.UserError(f"--prompts and --call are for pipelines (diffusers:...), got --model {name}")
    if not rest and (prefix in SOURCES or is_pipeline):
        raise gas.UserError(f"--model {name} wants a name after the colon")
    model: Any
    if is_pipeline:
        if "/" not in rest:
            Path(rest).stat()  # repositories are OWNER/NAME, so that this is a folder
        arguments, offload = _call_arguments(prompts, call, pairs), weights.pop("offload", None)
        pipe = gas.pipelines.open_pipeline(rest, **weights)
        gas.pipelines.loading.place_pipeline(pipe, device, offload)
        model = gas.pipelines.from_pipeline(pipe, **arguments)
    elif prefix in SOURCES:
        model = SOURCES[prefix](rest, device, **({} if prompts is None else {"prompts": prompts}))
    else:
        model = gas.zoo.load(name).to(device)
    if network.max_batch is not None:  # inside of the precision, which finite differences take off
        model = gas.models.SmallBatches(model, network.max_batch)
    model = gas.models.precise(model, network.precision, compiled=network.compiled, quantize=quantize)
    return gas.models.CudaGraphs(model) if network.cuda_graphs else model


def load_zoo(name: str, device: str) -> gas.zoo.ZooModel | gas.pipelines.PipelineModel:
    """Load a zoo model onto a device."""
    prefix = name.partition(":")[0]
    if prefix in (*SOURCES, "diffusers"):
        raise gas.UserError(f"this command takes zoo models, as digits, got --model {name[:80]}")
    return gas.zoo.load(name).to(device)


def load_zoo_images(name: str, device: str) -> gas.zoo.ZooModel:
    """Load a zoo model of images onto a device."""
    if ":" not in name and "pipeline" in gas.zoo.card(name):
        raise gas.UserError(
            f"model {name} is a pipeline of latents, which this command does not take: choose one of images"
        )
    return cast("gas.zoo.ZooModel", load_zoo(name, device))


def _call_arguments(prompts: Path | None, call: str, pairs: Path | None) -> dict[str, Any]:
    """Return the arguments of a pipeline's call: as given, else those that pairs were made with."""
    arguments = {
        "prompts": [] if prompts is None else gas.pipelines.read_prompts(prompts),
        **parse_call(call),
    }
    if prompts is None and pairs is not None and (pairs / gas.pairs.shards.MANIFEST).is_file():
        conditions = gas.pairs.shards.read_manifest(pairs)["recipe"].get("conditions", {})
        arguments = {**conditions.get("arguments", {}), **arguments}
        arguments["prompts"] = conditions.get("prompts", [])
        arguments["negative_prompt"] = conditions.get("negative_prompt")
    for name, value in arguments.items():
        if isinstance(value, dict) and "sha256" in value:
            raise gas.UserError(f"pairs {pairs} record an image by its hash: pass --call {name}=FILE again")
        if isinstance(value, str) and Path(value).suffix.lower() in _PICTURES:
            arguments[name] = _picture(Path(value))
    return arguments


def guidance_of(name: str, model: gas.models.Model, given: float | None) -> float:
    """Return the guidance scale of the pairs: as given, or of the zoo's card, or of a pipeline's own call, or 1."""
    pipeline = gas.models.runtime.unwrapped(model)
    if not isinstance(pipeline, gas.pipelines.PipelineModel):
        return 1.0 if given is None else given
    if pipeline.takes_prompts and not pipeline.prompts:
        if given is None:
            raise gas.UserError(
                f"--prompts is needed: {pipeline.name[-80:]} makes what a prompt says "
                "(with --guidance 1 pairs of the empty prompt are made)"
            )
        note("no --prompts: every pair is of the empty prompt")
    if given is not None:
        return given
    usual, why = 1.0, "none"
    if name.startswith("diffusers:"):
        usual, why = pipeline.default_guidance, f"the default of {pipeline.name}'s call"
    elif ":" not in name:
        usual, why = gas.zoo.guidance(name), "that of its card"
    if pipeline.default_guidance != 1:
        note(f"guidance {usual:g}: {why}; --guidance changes it")
    return usual


def free_text_encoders(name: str, model: gas.models.Model, *scales: float) -> None:
    """Encode the prompts of a ``diffusers:`` model and let go of its text encoders."""
    if name.startswith("diffusers:"):
        cast("gas.pipelines.PipelineModel", model).free_text_encoders(*scales)


def _picture(path: Path) -> Any:
    import PIL.Image

    try:
        return PIL.Image.open(path).convert("RGB")
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise gas.UserError(f"--call {path} is no picture that can be read: {error}") from error


def parse_call(text: str) -> dict[str, Any]:
    """Read ``height=512,width=512`` as arguments of a pipeline's call; values are JSON, or else text."""
    arguments: dict[str, Any] = {}
    # What from_pipeline takes for itself is no argument of a call; the negative prompt is both.
    reserved = inspect.signature(gas.pipelines.from_pipeline).parameters.keys() - {"negative_prompt"}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise gas.UserError(f"--call must be like height=512,width=512, got {text!r}")
        if name.strip() in reserved:
            raise gas.UserError(f"--call {name.strip()} is no argument of a pipeline's call: leave it out")
        try:
            arguments[name.strip()] = json.loads(value)
        except ValueError:
            arguments[name.strip()] = value.strip()
    return arguments
