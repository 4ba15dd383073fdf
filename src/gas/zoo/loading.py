"""The shipped models by name: loaded, as diffusers pipelines, and what their cards say."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gas.errors import UserError
from gas.zoo.model import ZooModel, read_model
from gas.zoo.weights_file import read_card

if TYPE_CHECKING:
    from gas.pipelines.model import PipelineModel

__all__ = ["card", "load", "names", "pipeline"]

_WEIGHTS = Path(__file__).parent / "weights"
_PARTS = {"mnist-autoencoder"}  # no models of their own


def names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted({path.stem for path in _WEIGHTS.glob("*.safetensors")} - _PARTS)


def card(name: str | Path) -> dict[str, Any]:
    """Return how a model's weights were made, and what they measured.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`.
    """
    return read_card(_path(name))


def load(name: str | Path) -> ZooModel | PipelineModel:
    """Load a shipped model by name, or one of your own making by the path of its safetensors file.

    Those of latents are pipelines of diffusers (:func:`pipeline`) whose labels are the digits' names, measured by the
    classifier of ``mnist`` on decoded samples.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: for an unknown name (with the nearest known one), or a damaged file.
        ModuleNotFoundError: for a pipeline without diffusers; says which extra to install.

    >>> load("digits").sample_shape
    (1, 8, 8)
    """
    path = _path(name)
    if "pipeline" not in read_card(path):
        return read_model(path)
    from gas.zoo.latent.model import read_latent

    return read_latent(path, read_model(_WEIGHTS / "mnist.safetensors"))


def pipeline(name: str | Path) -> Any:
    """Return the diffusers pipeline of a model of latents: ``pipeline("mnist-latent")("three", guidance_scale=2.0)``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as :func:`load`.
        ValueError: as :func:`load`, and for a model of images, which is no pipeline.
    """
    path = _path(name)
    if "pipeline" not in read_card(path):
        known = ", ".join(n for n in names() if "pipeline" in card(n))
        raise UserError(
            f"model {str(name)!r} is no diffusers pipeline; of the shipped ones these are: {known}"
        )
    from gas.zoo.latent.model import read_pipeline

    return read_pipeline(path)


def _path(name: str | Path) -> Path:
    if str(name).endswith(".safetensors"):
        return Path(name)
    if name not in names():
        if Path(name).is_dir() or str(name).count("/") == 1:
            raise UserError(
                f"model {str(name)[-80:]!r} is none of the zoo: a folder or repository of diffusers is "
                f"--model diffusers:{str(name)[-80:]}, in Python gas.pipelines.open_pipeline"
            )
        near = difflib.get_close_matches(str(name).lower()[:60], names(), n=1, cutoff=0.4)
        hint = f": did you mean {near[0]!r}?" if near else "."
        known = f"Known: {', '.join(names())}, or the path of a .safetensors file"
        raise UserError(f"unknown model {str(name)[:100]!r}{hint} {known}")
    return _WEIGHTS / f"{name}.safetensors"
