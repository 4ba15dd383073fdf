"""Training of ``emoji``: a denoiser of latents of pictures, jointly with the encoder of their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from emoji_data import Emoji
from latents import edge_loss, encode, limit_time_frequencies, train_autoencoder, velocity_targets
from loop import Progress, load_finished, train
from recipes import EMOJI_AUTOENCODER, LatentRecipe, Recipe
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from gas.workspace import claim
from gas.zoo.latent import autoencoder, denoiser, libraries, text_encoder, word_tokenizer

__all__ = [
    "AUTOENCODER_STATE",
    "TEXT_WIDTH",
    "Captioned",
    "train_all",
    "train_emoji",
    "trained_autoencoder",
    "vocabulary",
]

TEXT_WIDTH = 128  # of the text encoder
# Share of words that a training prompt has replaced by the unknown one, for prompts with words of no name.
_UNKNOWN = 0.03
AUTOENCODER_STATE = "emoji-autoencoder.state.pt"


class Captioned(nn.Module):
    """A U-Net with its text encoder: ``(B, C, H, W)``, steps ``(B,)`` and tokens ``(B, T)`` to the prediction."""

    def __init__(self, network: Any, text: Any) -> None:
        super().__init__()
        self.network, self.text = network, text

    def forward(self, x: Tensor, step: Tensor, tokens: Tensor) -> Tensor:
        words = self.text(tokens).last_hidden_state
        prediction: Tensor = self.network(x, step, encoder_hidden_states=words).sample
        return prediction


def vocabulary(emoji: Emoji) -> list[str]:
    """Return the words of all prompts that are trained on."""
    prompts = [prompt for row in _prompts(emoji) for prompt in row]
    return sorted({word for prompt in prompts for word in prompt.split()})


def train_all(latent: LatentRecipe, emoji: Emoji, folder: Path, *, device: str = "cpu") -> Iterator[Progress]:
    """Train the autoencoder, then the denoiser of its latents; resume from their checkpoints in a folder."""
    checkpoint, recipe = folder / AUTOENCODER_STATE, EMOJI_AUTOENCODER
    claim(folder, [AUTOENCODER_STATE])
    yield from train_autoencoder(recipe, emoji.images, checkpoint, error=edge_loss, device=device)
    vae = trained_autoencoder(recipe, emoji, checkpoint).to(device)
    state = folder / "emoji.state.pt"
    yield from train_emoji(latent, emoji, vae, state, device=device)


def trained_autoencoder(recipe: Recipe, emoji: Emoji, checkpoint: Path) -> Any:
    """Return the autoencoder of a finished training, as float16 stores it, with latents of variance 1."""
    state = {name: value.half().float() for name, value in load_finished(checkpoint, recipe)["ema"].items()}
    vae = autoencoder(recipe.network)
    vae.load_state_dict(state)
    mean, std = encode(vae.eval().requires_grad_(False), emoji.images.train[0])
    scale = round(float((mean.var() + std.square().mean()).rsqrt()), 4)
    vae.register_to_config(scaling_factor=scale)
    return vae


def train_emoji(
    latent: LatentRecipe,
    emoji: Emoji,
    vae: Any,
    checkpoint: Path,
    *,
    every: int = 100,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train U-Net and text encoder by :func:`loop.train`: the mean squared error of v at random training steps.

    A prompt is the name, the name with its subcategory, or the short name, in equal shares; a tenth are empty.

    Args:
        latent: the recipe.
        emoji: pictures and prompts; those held out and of other categories are not used.
        vae: the autoencoder, frozen.
        checkpoint: file of the resumable state; its final ``ema`` entry has the weights to ship.
        every: steps between reports.
        device: where to train.
    """
    recipe, words = latent.training, vocabulary(emoji)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = limit_time_frequencies(denoiser(latent.kind, recipe.network))
    text = text_encoder(TEXT_WIDTH, vocabulary=words).requires_grad_(True)
    model = Captioned(network, text).to(memory_format=torch.channels_last)
    tokenizer = word_tokenizer(words)
    tokens = _tokens(tokenizer, emoji)
    empty, special = tokens[-1, 0], {tokenizer.bos_token_id, tokenizer.eos_token_id}
    is_word = ~torch.isin(tokens, torch.tensor(sorted(special)))
    mean, std = encode(vae, emoji.images.x[emoji.trained])
    noised = velocity_targets(libraries()[0].DDIMScheduler(**latent.scheduler).config, recipe.time_shift)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(mean), (recipe.batch,), generator=generator)
        variant = torch.randint(tokens.shape[1], (recipe.batch,), generator=generator)
        x = mean[batch] + std[batch] * torch.randn(mean[batch].shape, generator=generator)
        prompt = tokens[batch, variant]
        is_unknown = torch.rand(prompt.shape, generator=generator) < _UNKNOWN
        prompt = torch.where(is_unknown & is_word[batch, variant], tokenizer.unk_token_id, prompt)
        is_empty = torch.rand(len(x), generator=generator) < recipe.label_dropout
        prompt = torch.where(is_empty[:, None], empty, prompt)
        noisy, step, target = noised(x, generator)
        noisy = noisy.to(device, memory_format=torch.channels_last)
        return mse_loss(model(noisy, step.to(device), prompt.to(device)), target.to(device))

    return train(recipe, model, loss, checkpoint, every=every, device=device)


def _prompts(emoji: Emoji) -> list[tuple[str, ...]]:
    """Return name and aliases of every picture that is trained on."""
    return [(emoji.names[i], *emoji.aliases[i]) for i in emoji.trained]


def _tokens(tokenizer: Any, emoji: Emoji) -> Tensor:
    """Return the tokens of the trained prompts ``(N, 3, T)``, with a last row of empty ones."""
    rows = _prompts(emoji)
    rows.append(("",) * len(rows[0]))
    flat = [prompt for row in rows for prompt in row]
    tokens: Tensor = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens.reshape(len(rows), -1, tokens.shape[-1])
