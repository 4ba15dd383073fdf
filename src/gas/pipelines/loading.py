"""Load a diffusers pipeline from a folder or the hub safely, with one clear line when it cannot be loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from gas.display import error_text
from gas.errors import UserError, explained, requires
from gas.model_folder import check_model_folder, read_json
from gas.registry import named

# Names of dtypes of weights: torch's.
DTYPES = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# Backends of diffusers that quantize while weights are loaded, with their arguments; none for its own storage in fp8.
QUANTIZATIONS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "fp8": None,
    "int8": ("bitsandbytes_8bit", {"load_in_8bit": True}),
    "int4": ("bitsandbytes_4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}
OFFLOADS = {"model": "enable_model_cpu_offload", "group": "enable_group_offload"}
_DENOISERS = ("transformer", "transformer_2", "unet")

# Errors of requests, httpx, the hub or diffusers, by its version.
_explained = partial(explained, foreign=True, advice="; download it as safetensors")

_INDEX = "model_index.json"
# Base classes of a pipeline's components, by library.
_BASES = {
    "diffusers": "ModelMixin SchedulerMixin",
    "transformers": "PreTrainedModel PreTrainedTokenizerBase ImageProcessingMixin FeatureExtractionMixin "
    "ProcessorMixin",
}
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}  # in folders of 2022
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"}


def open_pipeline(source: str, *, dtype: str | None = None, quantize: str | None = None) -> Any:
    """Load a pipeline from safetensors; nothing that comes with it is executed or unpickled.

    Before diffusers loads from the folder or the download, it is checked to hold data alone
    (:func:`gas.model_folder.check_model_folder`), to be of a pipeline of diffusers with a scheduler, and to have only
    components of diffusers and transformers, or :class:`gas.GASScheduler`.

    Args:
        source: a folder written by ``save_pretrained``, or the name of a repository on the Hugging Face hub.
        dtype: of the weights, a name in :data:`DTYPES`; default as diffusers has it, float32.
        quantize: a name in :data:`QUANTIZATIONS`, for the denoising networks: ``"fp8"`` stores weights in 8 bits and
            computes in ``dtype`` (default bfloat16); ``"int8"`` and ``"int4"`` need bitsandbytes.

    Raises:
        ModuleNotFoundError: without diffusers.
        FileNotFoundError: when the folder does not exist.
        ValueError: when it is incomplete, damaged or unsafe, or the repository cannot be downloaded.
    """
    folder = Path(source).expanduser()
    is_local = folder.exists() or source.startswith((".", "/", "~"))
    if is_local:
        read_index(folder)
        check_model_folder(folder)
    with requires("diffusers", f"diffusers:{source} needs diffusers"):
        from diffusers import DiffusionPipeline
    if not is_local:
        folder = _download(source)
        check_model_folder(folder)
    index = read_index(folder)
    _check_classes(folder, index)
    absent = {name: None for name, value in index.items() if value == [None, None]}
    load: Any = DiffusionPipeline.from_pretrained
    with _explained(f"model folder {source} is incomplete or damaged"):
        weights = _weights(dtype, quantize)
        pipe = load(str(folder), use_safetensors=True, local_files_only=True, **weights, **absent)
    if quantize == "fp8":  # stored in 8 bits; each layer computes in a wider dtype
        storage, compute = torch.float8_e4m3fn, getattr(torch, DTYPES[dtype or "bf16"])
        for network in filter(None, (getattr(pipe, name, None) for name in _DENOISERS)):
            network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
    if not is_local:
        pipe.register_to_config(_name_or_path=source)
    return pipe


def _weights(dtype: str | None, quantize: str | None) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` for the dtype and the quantization of weights."""
    arguments: dict[str, Any] = {}
    if quantize is not None:
        backend, dtype = named("quantize", quantize, QUANTIZATIONS), dtype or "bf16"
        if backend is not None:
            arguments["quantization_config"] = _quantization(quantize, *backend)
    if dtype is not None:
        arguments["torch_dtype"] = getattr(torch, named("dtype", dtype, DTYPES))
    return arguments


def _quantization(name: str, backend: str, kwargs: dict[str, Any]) -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
        from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig
    except Exception as error:
        raise UserError(f"quantize {name!r} needs bitsandbytes: install it, or use 'fp8'") from error
    if not torch.cuda.is_available():
        raise UserError(f"quantize {name!r} needs a CUDA device: use 'fp8'")
    return PipelineQuantizationConfig(
        quant_backend=backend, quant_kwargs=kwargs, components_to_quantize=list(_DENOISERS)
    )


def place_pipeline(pipe: Any, device: str, offload: str | None = None) -> None:
    """Move a pipeline to a device, or with ``offload`` keep only what runs there: one component, or one layer.

    Raises:
        ValueError: for an unknown way, or one that diffusers refuses on this machine.
    """
    if offload is None:
        pipe.to(device)
        return
    enable = getattr(pipe, named("offload", offload, OFFLOADS))
    options = {"onload_device": torch.device(device), "offload_type": "leaf_level"}
    try:
        enable(**({"device": device} if offload == "model" else options))
    except Exception as error:  # of accelerate, or for a component that cannot be moved
        raise UserError(f"offload {offload!r} does not work on {device}: {error_text(error)}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of ``model_index.json``."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}")
    try:
        index = read_json(folder, folder / _INDEX)
        if not isinstance(index, dict):
            raise UserError(f"{_INDEX} holds a {type(index).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"model folder {folder} is incomplete or damaged: it has no readable {_INDEX}"
        ) from error
    return index


def _download(source: str) -> Path:
    """The folder in the hub's cache with a repository's files, of one commit whose index is checked first."""
    import huggingface_hub
    from diffusers import DiffusionPipeline

    download: Any = DiffusionPipeline.download
    with _explained(f"model {source} cannot be downloaded"):
        snapshot = Path(huggingface_hub.hf_hub_download(source, _INDEX)).parent
        _check_pipeline(f"model {source}", read_index(snapshot))
        return Path(download(source, revision=snapshot.name, use_safetensors=True))


def _check_classes(folder: Path, index: dict[str, Any]) -> None:
    _check_pipeline(f"model folder {folder}", index)
    for component, value in index.items():
        is_setting = value is None or isinstance(value, (bool, int, float, str)) or value == [None, None]
        if component.startswith("_") or is_setting:
            continue
        if not _is_component(component, value):
            raise UserError(
                f"model folder {folder} is refused: component {component[:40]!r} must be a model, scheduler, tokenizer "
                f"or processor of diffusers or transformers, got {str(value)[:60]}"
            )
        suffixes = {file.suffix for file in (folder / component).glob("*")}
        if _PICKLED & suffixes and ".safetensors" not in suffixes:
            raise UserError(
                f"model folder {folder} is refused: {component[:40]!r} holds pickled weights and no .safetensors: "
                "save it again as safetensors"
            )


def _check_pipeline(subject: str, index: dict[str, Any]) -> None:
    """Refuse an index that does not name a pipeline class of diffusers, or names one without a scheduler."""
    from diffusers import DiffusionPipeline

    name = index.get("_class_name")
    kind: Any = _member("diffusers", name) if isinstance(name, str) else None
    if not _derives(kind, (DiffusionPipeline,)):
        raise UserError(
            f"{subject} is refused: its _class_name must be a pipeline of the installed diffusers, "
            f"got {str(name)[:60]!r}"
        )
    if "scheduler" not in index:
        raise UserError(f"{subject} is refused: {name} has no scheduler, so it is not sampled step by step")


def _is_component(name: str, value: Any) -> bool:
    if value == ["gas", "GASScheduler"]:
        return True
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        return False
    library, kind = map(str, value)
    bases = tuple(_member(module, base) for module, names in _BASES.items() for base in names.split())
    return name.isidentifier() and _derives(_member(library, _RENAMED.get(kind, kind)), bases)


def _derives(member: Any, bases: tuple[type, ...]) -> bool:
    return (
        isinstance(member, type)
        and issubclass(member, bases)
        and member.__module__.partition(".")[0] in ("diffusers", "transformers")
    )


def _member(library: str, name: str) -> Any:
    """A public member of diffusers, transformers or a module in ``diffusers.pipelines``; ``None`` for another."""
    import diffusers
    import transformers

    module: Any = {"diffusers": diffusers, "transformers": transformers}.get(library)
    if module is None and library.isidentifier():
        module = getattr(diffusers.pipelines, library, None)
        if getattr(module, "__name__", "") != f"diffusers.pipelines.{library}":
            return None
    return getattr(module, name, None) if name.isidentifier() and not name.startswith("_") else None
