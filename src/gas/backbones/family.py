"""What the library must know of each kind of diffusers pipeline; the rest the pipeline does itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Family"]

Encode = Callable[[Any, str, "str | None", Mapping[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """One kind of pipeline, in its own words.

    Args:
        network: name of the component that denoises.
        encode: ``encode(pipe, prompt, negative_prompt, arguments)`` -> the arguments of its call, each with a batch of
            1, that stand for a prompt; ``None`` where it takes no prompts.
        classes: ``classes(pipe)`` -> how many classes it knows; the label after the last means none.
        negative: whether a negative prompt goes into what ``encode`` returns.
        takes_latents: whether its call takes ``latents``; else x is put in the place of the network's input.
        guided: ``guided(pipe)`` -> whether guidance means anything to it.
        embedded: ``embedded(pipe)`` -> whether guidance is an input of the network (a guidance-distilled model).
        decode: ``decode(pipe, latents)`` for pipelines that take no latents, in [-1, 1].
        centre: whether its call returns values in [0, 1] that are to be brought to [-1, 1].
        data_range: largest minus smallest value of what it samples, where that is no latent.
    """

    network: str = "transformer"
    encode: Encode | None = None
    classes: Callable[[Any], int] | None = None
    negative: bool = True
    takes_latents: bool = True
    guided: Callable[[Any], bool] = lambda pipe: True
    embedded: Callable[[Any], bool] = lambda pipe: False
    decode: Callable[[Any, Tensor], Tensor] | None = None
    centre: bool = True
    data_range: float | None = None
