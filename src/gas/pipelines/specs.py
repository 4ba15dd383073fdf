"""What each diffusers pipeline needs beyond a denoising network: conditions, guidance, decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gas.errors import UserError

__all__ = ["FAMILIES", "Family", "spec_of", "spec_of_class"]

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


def spec_of(pipe: Any) -> Family:
    """Return the family of a pipeline, by the name of its class or of one that it is made from.

    Raises:
        ValueError: for any other object, with what is supported and what to do instead.
    """
    return spec_of_class(type(pipe))


def spec_of_class(kind: type) -> Family:
    """Return the family of a pipeline's class, as :func:`spec_of` does."""
    for base in kind.__mro__:
        if base.__name__ in FAMILIES:
            return FAMILIES[base.__name__]
    known = ", ".join(name.removesuffix("Pipeline") for name in FAMILIES)
    raise UserError(
        f"{kind.__name__[:40]} is not a pipeline that is supported ({known}): make a gas.OwnModel of a denoise(x, t) "
        "of yours around its network"
    )


def _encoded(*names: str | None) -> Encode:
    """Encode by the pipeline's ``encode_prompt``, whose answers become its call's arguments of these names."""

    def encode(
        pipe: Any, prompt: str, negative: str | None, arguments: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        told = {
            "prompt": [prompt],
            "negative_prompt": None if negative is None else [negative],
            "device": pipe._execution_device,
            "do_classifier_free_guidance": True,
            "num_images_per_prompt": 1,
            "num_videos_per_prompt": 1,
            **arguments,
        }
        # Where encoder and call have other defaults (Wan's length of a prompt), the call's are what will be used.
        called = inspect.signature(type(pipe).__call__).parameters
        taken = inspect.signature(pipe.encode_prompt).parameters
        usual = {name: called[name].default for name in taken if name in called}
        required = {name: None for name, p in taken.items() if p.default is p.empty}
        told = {**required, **usual, **told}
        answers = pipe.encode_prompt(**{name: value for name, value in told.items() if name in taken})
        return {name: x for name, x in zip(names, answers, strict=True) if name is not None and x is not None}

    return encode


def _stable_audio(
    pipe: Any, prompt: str, negative: str | None, arguments: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What its ``encode_prompt`` takes for an encoded prompt, which is not what it returns."""

    def hidden(text: str) -> tuple[Tensor, Tensor]:
        told = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = pipe.tokenizer([text], max_length=pipe.tokenizer.model_max_length, **told).to(
            pipe._execution_device
        )
        return pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[
            0
        ], tokens.attention_mask

    embeds, mask = hidden(prompt)
    encoded = {"prompt_embeds": embeds, "attention_mask": mask}
    if negative is not None:
        embeds, mask = hidden(negative)
        encoded["negative_prompt_embeds"] = embeds.where(mask.bool()[..., None], 0.0)
        encoded["negative_attention_mask"] = mask
    return encoded


def _unscaled(name: str) -> Any:
    """Decode by the autoencoder of this name, from the scale that its latents are denoised at."""

    def decode(pipe: Any, latents: Tensor) -> Tensor:
        autoencoder = getattr(pipe, name)
        image: Tensor = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
        return image

    return decode


_PAIR = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = (*_PAIR, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_MASKED = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)


def _never(pipe: Any) -> bool:
    return False


def _guidance_embeds(pipe: Any) -> bool:
    return bool(pipe.transformer.config.guidance_embeds)


FAMILIES: dict[str, Family] = {
    "DDPMPipeline": Family(
        "unet", takes_latents=False, guided=_never, decode=lambda pipe, x: x, data_range=2.0
    ),
    "DDIMPipeline": Family(
        "unet", takes_latents=False, guided=_never, decode=lambda pipe, x: x, data_range=2.0
    ),
    "LDMPipeline": Family("unet", takes_latents=False, guided=_never, decode=_unscaled("vqvae")),
    "DiTPipeline": Family(
        classes=lambda pipe: int(pipe.transformer.config.num_embeds_ada_norm),
        takes_latents=False,
        decode=_unscaled("vae"),
    ),
    "StableDiffusionPipeline": Family("unet", _encoded(*_PAIR)),
    "StableDiffusionXLPipeline": Family("unet", _encoded(*_POOLED)),
    "StableDiffusion3Pipeline": Family(encode=_encoded(*_POOLED)),
    "FluxPipeline": Family(
        encode=_encoded("prompt_embeds", "pooled_prompt_embeds", None),
        negative=False,
        guided=_guidance_embeds,
        embedded=_guidance_embeds,
    ),
    "WanPipeline": Family(encode=_encoded(*_PAIR)),
    "LTXPipeline": Family(encode=_encoded(*_MASKED)),
    "StableAudioPipeline": Family(encode=_stable_audio, centre=False),
}
