"""What the library must know of each diffusers pipeline: its network, conditions, guidance and decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gas.errors import UserError

__all__ = ["PIPELINES", "PipelineSpec", "spec_of", "spec_of_class"]

Encode = Callable[[Any, str, "str | None", Mapping[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class PipelineSpec:
    """One class of pipelines.

    Args:
        network: name of the component that denoises.
        encode: ``encode(pipe, prompt, negative_prompt, arguments)`` -> the call arguments that stand for a prompt, each
            with a batch of 1; ``None`` for a pipeline without prompts.
        classes: ``classes(pipe)`` -> number of classes; the label after the last means *no class*.
        negative: whether ``encode`` encodes the negative prompt.
        takes_latents: whether the call takes ``latents``; otherwise x replaces the network's input.
        guided: ``guided(pipe)`` -> whether the pipeline uses guidance.
        embedded: ``embedded(pipe)`` -> whether the guidance scale is an input of the network (guidance distillation).
        decode: ``decode(pipe, latents)`` in [-1, 1], for pipelines that take no latents.
        centre: whether the call returns values in [0, 1], to be mapped to [-1, 1].
        data_range: largest minus smallest value of a sample, ``None`` for latents.
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


def spec_of(pipe: Any) -> PipelineSpec:
    """Return the spec of a pipeline, by the name of its class or of a base class.

    Raises:
        ValueError: for any other object; lists the supported pipelines.
    """
    return spec_of_class(type(pipe))


def spec_of_class(kind: type) -> PipelineSpec:
    """Return the spec of a pipeline class, as :func:`spec_of` does."""
    for base in kind.__mro__:
        if base.__name__ in PIPELINES:
            return PIPELINES[base.__name__]
    names = ", ".join(name.removesuffix("Pipeline") for name in PIPELINES)
    raise UserError(
        f"{kind.__name__[:40]} is not a pipeline that is supported ({names}): make a gas.OwnModel of a denoise(x, t) "
        "of yours around its network"
    )


def _encode_prompt(*names: str | None) -> Encode:
    """Encode by the pipeline's ``encode_prompt``, whose return values are the call arguments of these names."""

    def encode(
        pipe: Any, prompt: str, negative: str | None, arguments: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        parameters = inspect.signature(pipe.encode_prompt).parameters
        call = inspect.signature(type(pipe).__call__).parameters
        kwargs = {
            **{name: None for name, parameter in parameters.items() if parameter.default is parameter.empty},
            # Where the defaults of encoder and call differ (Wan's prompt length), sampling uses those of the call.
            **{name: call[name].default for name in parameters if name in call},
            "prompt": [prompt],
            "negative_prompt": None if negative is None else [negative],
            "device": pipe._execution_device,
            "do_classifier_free_guidance": True,
            "num_images_per_prompt": 1,
            "num_videos_per_prompt": 1,
            **arguments,
        }
        values = pipe.encode_prompt(**{name: value for name, value in kwargs.items() if name in parameters})
        return {name: x for name, x in zip(names, values, strict=True) if name is not None and x is not None}

    return encode


def _encode_audio_prompt(
    pipe: Any, prompt: str, negative: str | None, arguments: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Encode for Stable Audio, whose ``encode_prompt`` returns something else than its call takes."""

    def embed(text: str) -> tuple[Tensor, Tensor]:
        tokens = pipe.tokenizer(
            [text],
            max_length=pipe.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(pipe._execution_device)
        mask = tokens.attention_mask
        return pipe.text_encoder(tokens.input_ids, attention_mask=mask)[0], mask

    embeds, mask = embed(prompt)
    encoded = {"prompt_embeds": embeds, "attention_mask": mask}
    if negative is not None:
        embeds, mask = embed(negative)
        encoded["negative_prompt_embeds"] = embeds.where(mask.bool()[..., None], 0.0)
        encoded["negative_attention_mask"] = mask
    return encoded


def _unscaled(name: str) -> Callable[[Any, Tensor], Tensor]:
    """Decode by the autoencoder of this name, which takes latents divided by its scaling factor."""

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


def _guidance_embeds(pipe: Any) -> bool:
    return bool(pipe.transformer.config.guidance_embeds)


_PIXELS = PipelineSpec(
    "unet", takes_latents=False, guided=lambda pipe: False, decode=lambda pipe, x: x, data_range=2.0
)

PIPELINES: dict[str, PipelineSpec] = {
    "DDPMPipeline": _PIXELS,
    "DDIMPipeline": _PIXELS,
    "LDMPipeline": PipelineSpec(
        "unet", takes_latents=False, guided=lambda pipe: False, decode=_unscaled("vqvae")
    ),
    "DiTPipeline": PipelineSpec(
        classes=lambda pipe: int(pipe.transformer.config.num_embeds_ada_norm),
        takes_latents=False,
        decode=_unscaled("vae"),
    ),
    "StableDiffusionPipeline": PipelineSpec("unet", _encode_prompt(*_PAIR)),
    "StableDiffusionXLPipeline": PipelineSpec("unet", _encode_prompt(*_POOLED)),
    "StableDiffusion3Pipeline": PipelineSpec(encode=_encode_prompt(*_POOLED)),
    "FluxPipeline": PipelineSpec(
        encode=_encode_prompt("prompt_embeds", "pooled_prompt_embeds", None),
        negative=False,
        guided=_guidance_embeds,
        embedded=_guidance_embeds,
    ),
    "WanPipeline": PipelineSpec(encode=_encode_prompt(*_PAIR)),
    "LTXPipeline": PipelineSpec(encode=_encode_prompt(*_MASKED)),
    "StableAudioPipeline": PipelineSpec(encode=_encode_audio_prompt, centre=False),
}
