"""A diffusers pipeline from a folder or the hub, with one clear line where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["open_pipeline"]


def open_pipeline(source: str) -> Any:
    """Load a pipeline from safetensors; nothing that comes with it is executed or unpickled.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a repository's name on the Hugging Face hub.

    Raises:
        ModuleNotFoundError: without diffusers; says which extra to install.
        FileNotFoundError: when the folder does not exist.
        ValueError: when it is incomplete or damaged, or the repository cannot be had.
    """
    folder = Path(source).expanduser()
    local = folder.exists() or source.startswith((".", "/", "~"))
    without = _without(folder) if local else {}
    try:
        from diffusers import DiffusionPipeline
    except Exception as error:  # a broken torchvision raises RuntimeError
        raise ModuleNotFoundError(
            f"diffusers:{source} needs diffusers ({type(error).__name__}): pip install 'gas-solver[diffusers]'"
        ) from error
    place = str(folder) if local else source
    try:
        load: Any = DiffusionPipeline.from_pretrained
        return load(place, use_safetensors=True, local_files_only=local, **without)
    except Exception as error:  # whatever the libraries raise of a missing shard, a cut file, no network
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"model folder {source} is incomplete or damaged" if local else f"model {source} cannot be had"
        raise ValueError(f"{what}: {line[:200]}; download it again, whole and as safetensors") from error


def _without(folder: Path) -> dict[str, None]:
    """The components that a saved pipeline does without, which its class must be told."""
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}")
    try:
        listed = json.loads(index.read_text("utf-8"))
        return {name: None for name, value in listed.items() if value == [None, None]}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"model folder {folder} is incomplete or damaged: it has no readable model_index.json; download it again"
        ) from error
