"""Tiny components of offline pipelines, with random weights: networks, autoencoders, text encoders, tokenizers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch


def unet2d(channels, sample_size):
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def unet_text(**more):
    from diffusers import UNet2DConditionModel

    kwargs = {
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**kwargs, **more})


def vae(**more):
    from diffusers import AutoencoderKL

    kwargs = {
        "block_out_channels": [16, 16],
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    return AutoencoderKL(**{**kwargs, **more})


def clip_tokenizer():
    """CLIP's byte-pair tokenizer with the alphabet and three merges."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = ["a t</w>", "c at</w>", "o n</w>"]
    words = letters + [letter + "</w>" for letter in letters] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 16
    return tokenizer


def clip(tokenizer, *, projection=False, positions=16):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=positions,
        projection_dim=16,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


# The texts of messages, whose content is a text or a list of parts.
_CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %} {% endfor %}"
)


def word_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *["a", "cat", "dog", "on", "the", "mat", "red", "blue", "bell", "rings"],
    ]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=_CHAT,
    )


def t5_config(kind):
    return kind(
        vocab_size=16, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, tie_word_embeddings=False
    )


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(t5_config(T5Config))


def umt5():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(t5_config(UMT5Config))


def _decoder_config(kind, **more):
    """A decoder-only language model of two layers for the word tokenizer."""
    kwargs = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    return kind(**{**kwargs, **more})


def qwen3():
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(_decoder_config(Qwen3Config))


def gemma2():
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(_decoder_config(Gemma2Config))


def llama():
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(_decoder_config(LlamaConfig))


def qwen_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    text = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope, "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config)


def mistral3():
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {"model_type": "mistral", "vocab_size": 16, "hidden_size": 16, "intermediate_size": 16}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=3)
    return Mistral3ForConditionalGeneration(config)


def bert():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=16, max_position_embeddings=128, **sizes))


def clip_vision(*, projection=False, width=32):
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    return (CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config)


def image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=32, size=32)


def randomized(module):
    """Give every weight a value: control networks start with zeros, and have no effect."""
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return module


def plain_text():
    """Let diffusers' image-to-video pipeline do without ftfy, which it calls on every prompt: plain text is its own."""
    from diffusers.pipelines.wan import pipeline_wan_i2v

    if not hasattr(pipeline_wan_i2v, "ftfy"):
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)


def image(size, channels=3):
    """A picture ``(1, C, size, size)`` in [0, 1]."""
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(1))
