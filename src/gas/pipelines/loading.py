"""A diffusers pipeline from a folder or the hub, with one clear line where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.errors import UserError
from gas.io import read_text
from gas.model_folder import check_model_folder, read_json
from gas.pipelines.specs import spec_of_class

__all__ = ["TextCache", "open_pipeline", "read_index", "read_prompts"]

_INDEX = "model_index.json"
# Bases of what a pipeline is made of, and by what their names begin with; a pipeline within a pipeline is none.
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
_OURS = ["gas", "GASScheduler"]


def open_pipeline(source: str) -> Any:
    """Load a pipeline from safetensors; nothing that comes with it is executed or unpickled.

    The folder, or what the hub sent, is looked at before diffusers loads from it. It must hold data alone
    (:func:`gas.model_folder.check_model_folder`), the pipeline must be one of the supported ones, and its components
    classes of diffusers or transformers, or :class:`gas.GASScheduler`.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a repository's name on the Hugging Face hub.

    Raises:
        ModuleNotFoundError: without diffusers; says which extra to install.
        FileNotFoundError: when the folder does not exist.
        ValueError: when it is incomplete, damaged or unsafe, or the repository cannot be had.
    """
    folder = Path(source).expanduser()
    local = folder.exists() or source.startswith((".", "/", "~"))
    if local:
        read_index(folder)
        check_model_folder(folder)
    try:
        from diffusers import DiffusionPipeline
    except Exception as error:  # a broken torchvision raises RuntimeError
        raise ModuleNotFoundError(
            f"diffusers:{source} needs diffusers ({type(error).__name__}): pip install 'gas-solver[diffusers]'"
        ) from error
    if not local:
        folder = _downloaded(source)
        check_model_folder(folder)
    index = read_index(folder)
    _check_classes(folder, index)
    without = {name: None for name, value in index.items() if value == [None, None]}
    try:
        load: Any = DiffusionPipeline.from_pretrained
        pipe = load(str(folder), use_safetensors=True, local_files_only=True, **without)
    except Exception as error:  # whatever the libraries raise of a missing shard or a cut file
        raise _unusable(f"model folder {source} is incomplete or damaged", error) from error
    if not local:
        pipe.register_to_config(_name_or_path=source)
    return pipe


def read_index(folder: Path) -> dict[str, Any]:
    """Return what ``model_index.json`` holds.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it is not there or damaged.
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


def _check_classes(folder: Path, index: dict[str, Any]) -> None:
    name = index.get("_class_name")
    if not _is_pipeline(name):
        raise UserError(
            f"model folder {folder} is refused: its _class_name must be a pipeline of the installed diffusers, "
            f"got {str(name)[:60]!r}"
        )
    spec_of_class(_member("diffusers", str(name)))
    for component, value in index.items():
        if component.startswith("_") or _is_setting(value):
            continue
        if not _is_component(component, value):
            raise UserError(
                f"model folder {folder} is refused: component {component[:40]!r} must be a model, scheduler, tokenizer "
                f"or processor of diffusers or transformers, got {str(value)[:60]}"
            )
        files = [file.suffix for file in (folder / component).glob("*")]
        if _PICKLED & set(files) and ".safetensors" not in files:
            raise UserError(
                f"model folder {folder} is refused: {component[:40]!r} holds pickled weights and no .safetensors: "
                "save it again as safetensors"
            )


def _downloaded(source: str) -> Path:
    """The folder in the hub's cache with a repository's files, of one commit whose index is checked first."""
    import huggingface_hub
    from diffusers import DiffusionPipeline

    try:
        snapshot = Path(huggingface_hub.hf_hub_download(source, _INDEX)).parent
    except Exception as error:  # of requests, httpx or the hub itself, by its version
        raise _unusable(f"model {source} cannot be had", error) from error
    name = read_index(snapshot).get("_class_name")
    if not _is_pipeline(name):
        raise UserError(
            f"model {source} is refused: its _class_name must be a pipeline of diffusers, got {str(name)[:60]!r}"
        )
    try:
        download: Any = DiffusionPipeline.download
        return Path(download(source, revision=snapshot.name, use_safetensors=True))
    except Exception as error:
        raise _unusable(f"model {source} cannot be had", error) from error


def _unusable(subject: str, error: Exception) -> ValueError:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{subject}: {line[:200]}; download it again, whole and as safetensors")


def _is_pipeline(name: Any) -> bool:
    from diffusers import DiffusionPipeline

    return isinstance(name, str) and _is_kind(_member("diffusers", str(name)), (DiffusionPipeline,))


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or value == [None, None]


def _is_component(name: str, value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        return False
    if value == _OURS or not name.isidentifier():
        return value == _OURS
    library, kind = value
    bases = tuple(_member(module, base) for module, names in _BASES.items() for base in names)
    return _is_kind(_member(str(library), str(_RENAMED.get(kind, kind))), bases)


def _is_kind(member: Any, bases: tuple[type, ...]) -> bool:
    return (
        isinstance(member, type)
        and issubclass(member, bases)
        and member.__module__.partition(".")[0] in ("diffusers", "transformers")
    )


def _member(library: str, name: str) -> Any:
    """A public member of diffusers, transformers or one of diffusers' folders of pipelines; ``None`` for another."""
    import diffusers
    import transformers

    home: Any = {"diffusers": diffusers, "transformers": transformers}.get(library)
    if home is None and library.isidentifier():
        home = getattr(diffusers.pipelines, library, None)
        home = home if str(getattr(home, "__name__", "")) == f"diffusers.pipelines.{library}" else None
    return getattr(home, name, None) if name.isidentifier() and not name.startswith("_") else None


class TextCache:
    """Encodings of prompts, each computed alone and once, kept on the CPU.

    Encoded alone, a prompt's numbers do not depend on what else was in its batch. How much they weigh depends on the
    encoders: 0.2 MB a prompt of Stable Diffusion 1 in half precision, 4 MB of one with T5-XXL.

    Args:
        encode: ``encode(prompt)`` -> named tensors, each with a batch of 1.
    """

    def __init__(self, encode: Callable[[str], dict[str, Tensor]]) -> None:
        self._encode = encode
        self._known: dict[str, dict[str, Tensor]] = {}

    def __call__(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return the encodings of a batch of prompts, each tensor ``(B, *)``, on a device."""
        for prompt in prompts:
            if prompt not in self._known:
                with torch.no_grad():
                    self._known[prompt] = {name: x.cpu() for name, x in self._encode(prompt).items()}
        rows = [self._known[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}


def read_prompts(path: str | Path) -> list[str]:
    """Read a UTF-8 text file of one prompt a line; blank lines are left out.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not UTF-8, or no line holds a prompt.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompt file {path} is not UTF-8 (byte {error.start}): save it as UTF-8, one prompt a line"
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"prompt file {path} is empty: write one prompt a line")
    return prompts
