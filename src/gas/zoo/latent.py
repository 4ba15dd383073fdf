"""The zoo's latent models as diffusers pipelines; the two of digits share an autoencoder and a text encoder.

Every part is an instance of a class of diffusers or transformers; importing this module needs neither.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gas.errors import UserError, requires
from gas.io import check_sizes, strip_prefix
from gas.pipelines.model import PipelineModel, from_pipeline
from gas.zoo.model import Measuring, ZooModel
from gas.zoo.weights_file import WEIGHTS, build, damaged, read_card, read_weights

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TOKENS = 8  # length of a prompt, with its start and end tokens
_WORD_TOKENS = 16  # the same for prompts of words
_VOCABULARY = 1 << 16  # characters of a vocabulary: that of emoji has 4,000
SHARED = "mnist-autoencoder"  # the file of the autoencoder and the text encoder


def read_latent(path: str | Path, measuring: Measuring | ZooModel) -> PipelineModel:
    """Return the model of a denoiser's file, whose labels are its card's prompts, or the names of the ten digits.

    The classifier and the statistics of real images of ``measuring`` measure decoded samples.
    """
    pipe, card = read_pipeline(path), read_card(path)
    with damaged(path):
        prompts = card["prompts"].split(", ") if "prompts" in card else WORDS
    # SD3 pads prompts with zeros in place of its absent third text encoder. One zero token is enough: the network was
    # trained on 1 and on 256 of them, and 256 cost nine times as much.
    arguments: dict[str, Any] = {"max_sequence_length": 1} if hasattr(pipe, "transformer") else {}
    return from_pipeline(
        pipe,
        prompts,
        name=str(card["name"]),
        features=measuring.features,
        reference=measuring.reference,
        **arguments,
    )


def read_pipeline(path: str | Path) -> Any:
    """Return the pipeline of a denoiser's file and of the autoencoder of :func:`shared_path`.

    Raises:
        ValueError: when a file is damaged, or the denoiser was trained on latents of another autoencoder.
    """
    path = Path(path)
    tensors, card = read_weights(path)
    shared = path if "autoencoder" in card else shared_path(path.parent)
    vae, text = read_shared(shared)
    if card.get("autoencoder_scale") != read_card(shared)["scaling_factor"]:
        raise UserError(f"{path} denoises latents of another autoencoder than {shared}")
    with damaged(path):
        check_sizes(card["scheduler"])
        config = {"kind": card["pipeline"], "config": card["network"]}
        network = build(denoiser, config, strip_prefix(tensors, "network."))
        network.eval().requires_grad_(False)
        return assemble(card["pipeline"], network, vae, text, card["scheduler"], _vocabulary(card))


def read_shared(path: str | Path) -> tuple[Any, Any]:
    """Return the autoencoder and the text encoder of a file, frozen and in evaluation mode."""
    tensors, card = read_weights(path)
    with damaged(path):
        config = {"config": card["autoencoder"], "scaling_factor": card["scaling_factor"]}
        vae = build(autoencoder, config, strip_prefix(tensors, "vae."))
        encoder = partial(text_encoder, vocabulary=_vocabulary(card))
        text = build(encoder, {"width": card["text"]}, strip_prefix(tensors, "text."))
    return vae.eval().requires_grad_(False), text


def _vocabulary(card: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the words of a card, ``None`` for those of the digits."""
    words = card.get("vocabulary")
    if words is None:
        return None
    if not isinstance(words, str) or len(words) > _VOCABULARY or len(set(words.split())) < len(words.split()):
        raise UserError("its vocabulary is no text of words, each once")
    return words.split()


def shared_path(folder: Path) -> Path:
    """Return the path of the autoencoder in a folder, or of the shipped one if the folder has none."""
    path = folder / f"{SHARED}.safetensors"
    return path if path.is_file() else WEIGHTS / path.name


def assemble(
    kind: str,
    network: nn.Module,
    vae: nn.Module,
    text: Any,
    scheduler: Mapping[str, Any],
    vocabulary: Sequence[str] | None = None,
) -> Any:
    """Return a ``StableDiffusionPipeline`` (kind ``"unet"``) or ``StableDiffusion3Pipeline`` (``"transformer"``)."""
    diffusers, _ = libraries()
    words = tokenizer() if vocabulary is None else word_tokenizer(vocabulary)
    if kind == "unet":
        pipe = diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=_without_projection(text),
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


def denoiser(kind: str, config: Mapping[str, Any]) -> Any:
    """Return a ``UNet2DConditionModel`` (kind ``"unet"``) or ``SD3Transformer2DModel`` of random weights."""
    diffusers, _ = libraries()
    network = diffusers.UNet2DConditionModel if kind == "unet" else diffusers.SD3Transformer2DModel
    return network(**config)


def autoencoder(config: Mapping[str, Any], scaling_factor: float = 1.0) -> Any:
    """Return an ``AutoencoderKL`` of random weights; ``scaling_factor`` times its latents are denoised."""
    levels = len(config["block_out_channels"])
    arguments = dict(
        in_channels=1,
        out_channels=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=scaling_factor,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    return libraries()[0].AutoencoderKL(**{**arguments, **config})


def text_encoder(
    width: int, state: Mapping[str, Tensor] | None = None, vocabulary: Sequence[str] | None = None
) -> Any:
    """Return the text encoder with a projection (SD3's) of the given weights, or of random ones from a fixed seed.

    Random weights tell ten words apart, and the denoisers learn their meaning. Token embeddings are scaled to the
    size that layers expect, since SD3 takes a layer's output before its normalization.
    """
    _, transformers = libraries()
    words = tokenizer() if vocabulary is None else word_tokenizer(vocabulary)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=words.model_max_length,
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.CLIPTextModelWithProjection(config)
    if state is None:
        with torch.no_grad():
            # CLIP draws them with a standard deviation of 0.02.
            encoder.get_input_embeddings().weight.mul_(50)
    else:
        encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


def _without_projection(encoder: Any) -> Any:
    """Return the same text encoder as Stable Diffusion's class, which has no projection."""
    plain = libraries()[1].CLIPTextModel(encoder.config)
    inner = getattr(plain, "text_model", plain)  # some versions of transformers have no inner module
    inner.load_state_dict(encoder.text_model.state_dict())
    return plain.eval().requires_grad_(False)


def tokenizer() -> Any:
    """Return CLIP's byte-pair tokenizer with the alphabet, and merges that make each of :data:`WORDS` one token."""
    letters = [chr(ord("a") + i) for i in range(26)]
    merges = list(dict.fromkeys(merge for word in WORDS for merge in _merges(word)))
    vocabulary = letters + [f"{letter}</w>" for letter in letters] + [m.replace(" ", "") for m in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as name:
        vocab_path, merges_path = Path(name) / "vocab.json", Path(name) / "merges.txt"
        vocab_path.write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
        merges_path.write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        words = libraries()[1].CLIPTokenizer(str(vocab_path), str(merges_path))
    words.model_max_length = TOKENS
    return words


def word_tokenizer(vocabulary: Sequence[str]) -> Any:
    """Return a tokenizer in which each of these words is one token, and any other word the same unknown one."""
    transformers = libraries()[1]
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end, unknown = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
    tokens = {word: i for i, word in enumerate((end, start, unknown, *vocabulary))}
    model = Tokenizer(models.WordLevel(tokens, unk_token=unknown))
    model.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("'", "")])
    model.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9]+"), "removed")
    ends = [(token, tokens[token]) for token in (start, end)]
    model.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=unknown,
        model_max_length=_WORD_TOKENS,
    )


def _merges(word: str) -> list[str]:
    """Return the merges from letters to the whole word, left to right."""
    ends = range(1, len(word) - 1)
    return [f"{word[:i]} {word[i]}" for i in ends] + [f"{word[:-1]} {word[-1]}</w>"]


def libraries() -> tuple[Any, Any]:
    """Return the modules ``diffusers`` and ``transformers``, or say which extra to install."""
    with requires("diffusers", "the zoo's latent models are diffusers pipelines"):
        import diffusers
        import transformers

        _ = diffusers.StableDiffusionPipeline, diffusers.StableDiffusion3Pipeline, transformers.CLIPTextModel
    return diffusers, transformers
