"""The parts of the zoo's latent pipelines, built by the libraries' own classes: text, autoencoder, denoisers."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "TOKENS",
    "WORDS",
    "assemble",
    "autoencoder",
    "denoiser",
    "hear_slowly",
    "libraries",
    "text_encoder",
    "tokenizer",
]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TOKENS = 8  # of a prompt, the marks of its start and end among them

# What the denoisers are told of time turns by at most this many radians a training step.
_FASTEST = 0.03


def libraries() -> tuple[Any, Any]:
    """Return the modules ``diffusers`` and ``transformers``.

    Raises:
        ModuleNotFoundError: without them; says which extra to install.
    """
    try:
        import diffusers
        import transformers

        _ = diffusers.StableDiffusionPipeline, diffusers.StableDiffusion3Pipeline, transformers.CLIPTextModel
    except Exception as error:  # a broken torchvision raises RuntimeError
        raise ModuleNotFoundError(
            f"the zoo's latent models are diffusers pipelines ({type(error).__name__}): "
            "pip install 'gas-solver[diffusers]'"
        ) from error
    return diffusers, transformers


def tokenizer() -> Any:
    """Return CLIP's byte-pair tokenizer with the alphabet and a merge chain for each of :data:`WORDS`."""
    letters = [chr(ord("a") + i) for i in range(26)]
    chains = [_merges(word) for word in WORDS]
    merges = list(dict.fromkeys(merge for chain in chains for merge in chain))
    vocabulary = letters + [f"{letter}</w>" for letter in letters] + [m.replace(" ", "") for m in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as name:
        vocab, table = Path(name) / "vocab.json", Path(name) / "merges.txt"
        vocab.write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
        table.write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        made = libraries()[1].CLIPTokenizer(str(vocab), str(table))
    made.model_max_length = TOKENS
    return made


def _merges(word: str) -> list[str]:
    """From letters to the whole word, left to right."""
    ends = range(1, len(word) - 1)
    return [f"{word[:i]} {word[i]}" for i in ends] + [f"{word[:-1]} {word[-1]}</w>"]


def text_encoder(width: int, state: Mapping[str, Tensor] | None = None) -> Any:
    """Return the text encoder with a projection (SD3's), of given weights or of random ones from a fixed seed.

    Random is enough to tell ten words apart: the denoisers learn what they mean. Tokens are drawn as wide as layers
    expect them, for SD3 takes a layer's output before it is normalised.
    """
    _, transformers = libraries()
    words = tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.CLIPTextModelWithProjection(config)
    if state is None:
        with torch.no_grad():
            encoder.get_input_embeddings().weight.mul_(50)
    else:
        encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


def _unprojected(encoder: Any) -> Any:
    """The same encoder without its projection: Stable Diffusion's."""
    plain = libraries()[1].CLIPTextModel(encoder.config)
    inner = getattr(plain, "text_model", plain)  # a level that some versions have
    inner.load_state_dict(encoder.text_model.state_dict())
    return plain.eval().requires_grad_(False)


def autoencoder(config: Mapping[str, Any], scaling_factor: float = 1.0) -> Any:
    """Return an ``AutoencoderKL`` of random weights whose latents, times the factor, are what is denoised."""
    told: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": 32,
        "scaling_factor": scaling_factor,
        "shift_factor": 0.0,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    levels = len(config["block_out_channels"])
    told |= {"down_block_types": ["DownEncoderBlock2D"] * levels}
    told |= {"up_block_types": ["UpDecoderBlock2D"] * levels}
    return libraries()[0].AutoencoderKL(**{**told, **config})


def denoiser(kind: str, config: Mapping[str, Any]) -> Any:
    """Return a ``UNet2DConditionModel`` (kind ``"unet"``) or ``SD3Transformer2DModel`` (``"transformer"``), random."""
    diffusers, _ = libraries()
    network = diffusers.UNet2DConditionModel if kind == "unet" else diffusers.SD3Transformer2DModel
    return network(**config)


def hear_slowly(network: Any) -> Any:
    """Let a denoiser in training hear of time through slow frequencies only, and return it.

    Trained on all of diffusers' (up to a radian a training step), an embedding follows their noise, and derivatives in
    time, which a solver's times are learned from, are noise too.
    """
    embedding = getattr(network, "time_embedding", None) or network.time_text_embed.timestep_embedder
    heard = embedding.linear_1.weight
    half = heard.shape[1] // 2
    speed = torch.exp(-math.log(10_000) * torch.arange(half) / half)
    slow = (speed <= _FASTEST).to(heard.dtype).repeat(2)
    with torch.no_grad():
        heard.mul_(slow)
    heard.register_hook(lambda gradient: gradient * slow.to(gradient.device))
    return network


def assemble(kind: str, network: nn.Module, vae: nn.Module, text: Any, scheduler: Mapping[str, Any]) -> Any:
    """Return the diffusers pipeline: ``StableDiffusionPipeline`` of a U-Net, ``StableDiffusion3Pipeline`` of a
    transformer."""
    diffusers, _ = libraries()
    words = tokenizer()
    if kind == "unet":
        pipe = diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=_unprojected(text),
            tokenizer=words,
            unet=network,
            scheduler=diffusers.DDIMScheduler(**scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    else:
        pipe = diffusers.StableDiffusion3Pipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=words,
            text_encoder_2=text,
            tokenizer_2=words,
            text_encoder_3=None,
            tokenizer_3=None,
            transformer=network,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
