"""The shipped models by name: their cards, the models, and the diffusers pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gas.arguments import number
from gas.errors import UserError
from gas.registry import named
from gas.zoo.model import ZooModel, read_measuring, read_model
from gas.zoo.weights_file import WEIGHTS, read_card

if TYPE_CHECKING:
    from gas.pipelines.model import PipelineModel

_SOLVERS = Path(__file__).parent / "solvers"
_COMPONENTS = {"mnist-autoencoder"}  # files that are not models by themselves


def names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted({path.stem for path in WEIGHTS.glob("*.safetensors")} - _COMPONENTS)


def card(name: str | Path) -> dict[str, Any]:
    """Return a model's card: its training and its measured quality."""
    return read_card(_path(name))


def guidance(name: str | Path) -> float:
    """Return the guidance scale that a model is meant for, at which its card measured it; 1 for those without.

    >>> guidance("emoji"), guidance("digits")
    (3.0, 1.0)
    """
    return number("guidance of the card", card(name).get("guidance", 1.0), "[-1000, 1000]")


def load(name: str | Path) -> ZooModel | PipelineModel:
    """Load a shipped model by name, or another one by the path of its safetensors file.

    Latent models are diffusers pipelines (:func:`pipeline`). The labels of MNIST's are the digits' names, and the
    classifier of ``mnist`` measures their decoded samples; others have prompts and a classifier in their file.

    Raises:
        ValueError: for an unknown name (with the nearest known one), or a damaged file.
        ModuleNotFoundError: for a latent model without diffusers.

    >>> load("digits").sample_shape
    (1, 8, 8)
    """
    path = _path(name)
    description = read_card(path)
    if "pipeline" not in description:
        return read_model(path)
    from gas.zoo.latent import read_latent

    return read_latent(
        path, read_measuring(path if "classifier" in description else WEIGHTS / "mnist.safetensors")
    )


def pipeline(name: str | Path) -> Any:
    """Return the diffusers pipeline of a latent model: ``pipeline("mnist-latent")("three", guidance_scale=2.0)``."""
    path = _path(name)
    if "pipeline" not in read_card(path):
        known = ", ".join(n for n in names() if "pipeline" in card(n))
        raise UserError(f"model {str(name)!r} is not a diffusers pipeline; those are: {known}")
    from gas.zoo.latent import read_pipeline

    return read_pipeline(path)


def solver_path(name: str) -> Path | None:
    """Return the path of the solver file that ships with a model, ``None`` where there is none."""
    path = _SOLVERS / f"{name}.json"
    return path if name in names() and path.is_file() else None


def _path(name: str | Path) -> Path:
    if str(name).endswith(".safetensors"):
        return Path(name)
    if name not in names():
        if Path(name).is_dir() or str(name).count("/") == 1:
            raise UserError(
                f"model {str(name)[-80:]!r} is not in the zoo: for a folder or repository of diffusers use "
                f"--model diffusers:{str(name)[-80:]}, in Python gas.pipelines.open_pipeline"
            )
        named("model", str(name), dict.fromkeys([*names(), "FILE.safetensors"]))
    return WEIGHTS / f"{name}.safetensors"
