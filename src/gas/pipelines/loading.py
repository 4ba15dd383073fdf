"""Load a diffusers pipeline from a folder or the hub safely, with one clear line when it cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gas.errors import UserError
from gas.model_folder import check_model_folder, read_json

__all__ = ["open_pipeline", "read_index"]

_INDEX = "model_index.json"
# Base classes of a pipeline's components, by library.
_BASES = {
    "diffusers": ("ModelMixin", "SchedulerMixin"),
    "transformers": (
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "ImageProcessingMixin",
        "FeatureExtractionMixin",
        "ProcessorMixin",
    ),
}
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}  # in folders of 2022
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"}


def open_pipeline(source: str) -> Any:
    """Load a pipeline from safetensors; nothing that comes with it is executed or unpickled.

    Before diffusers loads from the folder or the download, it is checked to hold data alone
    (:func:`gas.model_folder.check_model_folder`), to be of a pipeline of diffusers with a scheduler, and to have only
    components of diffusers and transformers, or :class:`gas.GASScheduler`.

    Args:
        source: a folder written by ``save_pretrained``, or the name of a repository on the Hugging Face hub.

    Raises:
        ModuleNotFoundError: without diffusers; says which extra to install.
        FileNotFoundError: when the folder does not exist.
        ValueError: when it is incomplete, damaged or unsafe, or the repository cannot be downloaded.
    """
    folder = Path(source).expanduser()
    is_local = folder.exists() or source.startswith((".", "/", "~"))
    if is_local:
        read_index(folder)
        check_model_folder(folder)
    try:
        from diffusers import DiffusionPipeline
    except Exception as error:  # a broken torchvision raises RuntimeError
        raise ModuleNotFoundError(
            f"diffusers:{source} needs diffusers ({type(error).__name__}): pip install 'gas-solver[diffusers]'"
        ) from error
    if not is_local:
        folder = _download(source)
        check_model_folder(folder)
    index = read_index(folder)
    _check_classes(folder, index)
    absent = {name: None for name, value in index.items() if value == [None, None]}
    try:
        load: Any = DiffusionPipeline.from_pretrained
        pipe = load(str(folder), use_safetensors=True, local_files_only=True, **absent)
    except Exception as error:  # of any class, for a missing shard or a truncated file
        raise _unusable(f"model folder {source} is incomplete or damaged", error) from error
    if not is_local:
        pipe.register_to_config(_name_or_path=source)
    return pipe


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of ``model_index.json``.

    Raises:
        FileNotFoundError: when the folder does not exist.
        ValueError: when the file is missing or damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}")
    try:
        index = read_json(folder, folder / _INDEX)
        if not isinstance(index, dict):
            raise UserError(f"{_INDEX} holds a {type(index).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"model folder {folder} is incomplete or damaged: it has no readable {_INDEX}; download it again"
        ) from error
    return index


def _download(source: str) -> Path:
    """The folder in the hub's cache with a repository's files, of one commit whose index is checked first."""
    import huggingface_hub
    from diffusers import DiffusionPipeline

    try:
        snapshot = Path(huggingface_hub.hf_hub_download(source, _INDEX)).parent
    except Exception as error:  # of requests, httpx or the hub, by its version
        raise _unusable(f"model {source} cannot be downloaded", error) from error
    _check_pipeline(f"model {source}", read_index(snapshot))
    try:
        download: Any = DiffusionPipeline.download
        return Path(download(source, revision=snapshot.name, use_safetensors=True))
    except Exception as error:
        raise _unusable(f"model {source} cannot be downloaded", error) from error


def _unusable(subject: str, error: Exception) -> UserError:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{subject}: {line[:200]}; download it again, whole and as safetensors")


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
    bases = tuple(_member(module, base) for module, names in _BASES.items() for base in names)
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
