"""The zoo's latent pipelines from their files: one autoencoder and text encoder for both, and a denoiser each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas.errors import UserError
from gas.pipelines.model import PipelineModel, from_pipeline
from gas.zoo.latent.parts import WORDS, assemble, autoencoder, denoiser, text_encoder
from gas.zoo.latent.recipes import PLACES
from gas.zoo.model import ZooModel
from gas.zoo.weights_file import build, check_sizes, damaged, part, read_card, read_weights

__all__ = ["SHARED", "read_latent", "read_pipeline", "read_shared", "shared_beside", "weights_of"]

SHARED = "mnist-autoencoder"
_SHIPPED = Path(__file__).parents[1] / "weights"


def read_shared(path: str | Path) -> tuple[Any, Any]:
    """Return the autoencoder and the text encoder of a file, frozen and in evaluation mode.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged or of another kind.
        ModuleNotFoundError: without diffusers.
    """
    tensors, card = read_weights(path)
    try:
        config = {"config": card["autoencoder"], "scaling_factor": card["scaling_factor"]}
        vae = build(autoencoder, config, part(tensors, "vae."))
        text = build(text_encoder, {"width": card["text"]}, part(tensors, "text."))
    except (ArithmeticError, AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise damaged(path, error) from error
    return vae.eval().requires_grad_(False), text


def shared_beside(folder: Path) -> Path:
    """Return the file of the autoencoder in a folder, or the shipped one where there is none."""
    own = folder / f"{SHARED}.safetensors"
    return own if own.is_file() else _SHIPPED / f"{SHARED}.safetensors"


def read_pipeline(path: str | Path) -> Any:
    """Return the pipeline of a denoiser's file and of the autoencoder's beside it, or else the shipped one.

    Raises:
        FileNotFoundError: when either is missing.
        ValueError: when either is damaged, or the denoiser is of another autoencoder's latents.
        ModuleNotFoundError: without diffusers; says which extra to install.
    """
    path = Path(path)
    beside = shared_beside(path.parent)
    tensors, card = read_weights(path)
    vae, text = read_shared(beside)
    if card.get("autoencoder_scale") != read_card(beside)["scaling_factor"]:
        raise UserError(
            f"{path} denoises latents of another autoencoder than {beside}: put its own beside it"
        )
    try:
        check_sizes(card["scheduler"])
        config = {"kind": card["pipeline"], "config": card["network"]}
        network = build(denoiser, config, part(tensors, "network."))
        network.eval().requires_grad_(False)
        return assemble(card["pipeline"], network, vae, text, card["scheduler"])
    except (ArithmeticError, AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise damaged(path, error) from error


def read_latent(path: str | Path, measuring: ZooModel) -> PipelineModel:
    """Return the model of a pipeline's file, whose labels are the ten digits' names.

    Args:
        path: the denoiser's file.
        measuring: the model of images whose classifier and statistics of real images its decoded samples are measured
            by.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as :func:`read_pipeline`.
    """
    pipe = read_pipeline(path)
    short: dict[str, Any] = {"max_sequence_length": PLACES[0]} if hasattr(pipe, "transformer") else {}
    return from_pipeline(
        pipe,
        WORDS,
        name=str(read_card(path)["name"]),
        features=measuring.features,
        reference=measuring.reference,
        **short,
    )


def weights_of(module: nn.Module | Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a module's weights as they are stored: float16, under a prefix."""
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {f"{prefix}{name}": value.to(torch.float16) for name, value in state.items()}
