"""Small pretrained models shipped with the library: ``digits`` (8x8) for tests, ``mnist`` (32x32) for demos."""

from __future__ import annotations

import difflib
from pathlib import Path

from gas.zoo.model import ZooModel, read_model

__all__ = ["ZooModel", "load", "names"]

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def load(name: str | Path) -> ZooModel:
    """Load a shipped model by name, or one of your own making by the path of its safetensors file.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: for an unknown name (with the nearest known one), or a damaged file.

    >>> load("digits").sample_shape
    (1, 8, 8)
    """
    if str(name).endswith(".safetensors"):
        return read_model(name)
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)
        hint = f": did you mean {near[0]!r}? Known: {', '.join(names())}" if near else ""
        raise ValueError(f"unknown model {str(name)!r}{hint}, or the path of a .safetensors file")
    return read_model(_WEIGHTS / f"{name}.safetensors")
