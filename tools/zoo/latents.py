"""Training of the latent models: an autoencoder of MNIST, and two denoisers of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loop import Progress, train
from recipes import LatentRecipe, Recipe
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gas.pipelines.process import process_of
from gas.zoo.data import Images
from gas.zoo.latent import WORDS, assemble, autoencoder, denoiser

__all__ = [
    "RepeatedLastToken",
    "edge_loss",
    "encode",
    "encode_prompts",
    "limit_time_frequencies",
    "train_autoencoder",
    "train_latent",
    "velocity_targets",
]

# Weight of the KL divergence beside the squared error in [-1, 1].
_KL = 1e-3
# Numbers of zero tokens after a prompt: SD3 has 256 in place of its absent third text encoder, the zoo samples with 1.
_ZERO_TOKENS = (1, 256)
# Highest frequency of the denoisers' time embedding, in radians a training step.
_MAX_FREQUENCY = 0.03


def train_autoencoder(
    recipe: Recipe,
    images: Images,
    checkpoint: Path,
    *,
    error: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    every: int = 100,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Minimize ``error(decode(z), x) + 1e-3 KL(q(z|x) | N(0, 1))``, both means over entries, by :func:`loop.train`."""
    x, _ = images.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = autoencoder(recipe.network).to(memory_format=torch.channels_last)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        indices = torch.randint(len(x), (recipe.batch,), generator=generator)
        batch = x[indices].to(device, memory_format=torch.channels_last)
        latents: Any = network.encode(batch).latent_dist
        noise = torch.randn(latents.mean.shape, generator=generator).to(device)
        decoded: Tensor = network.decode(latents.mean + latents.std * noise).sample
        divergence: Tensor = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()
        return error(decoded, batch) + _KL * divergence

    return train(recipe, model, loss, checkpoint, every=every, device=device)


def train_latent(
    latent: LatentRecipe,
    images: Images,
    vae: Any,
    text: Any,
    checkpoint: Path,
    *,
    every: int = 100,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train a denoiser of an autoencoder's latents by :func:`loop.train`.

    The loss of the U-Net is the mean squared error of ``v = alpha eps - sigma x_0`` at random training steps, that of
    the transformer the one of ``eps - x_0`` at uniform ``sigma``. A tenth of the prompts are empty, for guidance.

    Args:
        latent: the recipe.
        images: MNIST; the held-out part is not used.
        vae: the autoencoder, frozen.
        text: the text encoder, frozen.
        checkpoint: file of the resumable state; its final ``ema`` entry has the weights to ship.
        every: steps between reports.
        device: where to train.
    """
    recipe = latent.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = denoiser(latent.kind, recipe.network)
    model = limit_time_frequencies(network).to(memory_format=torch.channels_last)
    pipe = assemble(latent.kind, model, vae, text, latent.scheduler)
    conditions = encode_prompts(pipe, WORDS)
    mean, std = encode(vae, images.train[0])
    label = images.train[1]
    error = _velocity(pipe.scheduler.config, recipe.time_shift) if latent.kind == "unet" else _flow

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(mean), (recipe.batch,), generator=generator)
        x = mean[batch] + std[batch] * torch.randn(mean[batch].shape, generator=generator)
        dropped = torch.rand(len(x), generator=generator) < recipe.label_dropout
        prompt = torch.where(dropped, len(WORDS), label[batch])
        condition = {name: rows[prompt].to(device) for name, rows in conditions.items()}
        return error(network, x, condition, generator, device)

    return train(recipe, model, loss, checkpoint, every=every, device=device)


def edge_loss(decoded: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of pixels, plus half that of differences of neighbors: flat areas and sharp edges."""
    error = decoded - x
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges


@torch.no_grad()
def encode(vae: Any, x: Tensor, *, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the scaled latents ``(N, 4, 8, 8)`` of images."""
    parts = [vae.encode(part).latent_dist for part in x.split(batch)]
    scale = vae.config.scaling_factor
    return scale * torch.cat([p.mean for p in parts]), scale * torch.cat([p.std for p in parts])


def encode_prompts(pipe: Any, prompts: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the network's keyword arguments for each prompt, and last for the empty one, from the pipeline."""
    rows = [encode_prompt(pipe, prompt, _ZERO_TOKENS[0]) for prompt in (*prompts, "")]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def encode_prompt(pipe: Any, prompt: str, zero_tokens: int) -> dict[str, Tensor]:
    """Return the network's keyword arguments for a prompt; with these zero tokens for SD3's absent encoder."""
    if not hasattr(pipe, "transformer"):
        return {"encoder_hidden_states": pipe.encode_prompt([prompt], pipe.device, 1, False)[0]}
    embeds, _, pooled, _ = pipe.encode_prompt([prompt], None, None, max_sequence_length=zero_tokens)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def limit_time_frequencies(network: Any) -> Any:
    """Remove the fast frequencies from a denoiser's time embedding, also from its training, and return the denoiser.

    Trained on all frequencies of diffusers (up to a radian a training step), an embedding is noisy, and so are its
    derivatives in time, from which a solver's times are learned.
    """
    embedding = getattr(network, "time_embedding", None) or network.time_text_embed.timestep_embedder
    weight = embedding.linear_1.weight
    half = weight.shape[1] // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
    mask = (frequencies <= _MAX_FREQUENCY).to(weight.dtype).repeat(2)
    with torch.no_grad():
        weight.mul_(mask)
    weight.register_hook(lambda gradient: gradient * mask.to(gradient.device))
    return network


def velocity_targets(
    config: Mapping[str, Any], time_shift: float = 1.0
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a function from latents to noisy ones at random training steps, these steps, and v."""
    schedule = process_of(config).schedule
    steps = 1000
    alphas, sigmas = (values.float() for values in schedule(torch.arange(1, steps + 1) / steps))
    uniform = (torch.arange(steps) + 0.5) / steps
    shifted = (steps * time_shift * uniform / (1 + (time_shift - 1) * uniform)).long()

    def noised(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        step = shifted[torch.randint(steps, (len(x),), generator=generator)]
        eps = torch.randn(x.shape, generator=generator)
        alpha, sigma = alphas[step, None, None, None], sigmas[step, None, None, None]
        return alpha * x + sigma * eps, step, alpha * eps - sigma * x

    return noised


def _velocity(config: Mapping[str, Any], time_shift: float) -> Callable[..., Tensor]:
    noised = velocity_targets(config, time_shift)

    def error(
        network: nn.Module,
        x: Tensor,
        condition: Mapping[str, Tensor],
        generator: torch.Generator,
        device: str,
    ) -> Tensor:
        noisy, step, target = noised(x, generator)
        return F.mse_loss(network(noisy.to(device), step.to(device), **condition).sample, target.to(device))

    return error


def _flow(
    network: nn.Module, x: Tensor, condition: Mapping[str, Tensor], generator: torch.Generator, device: str
) -> Tensor:
    sigma = torch.rand(len(x), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    tokens = _ZERO_TOKENS[int(torch.randint(len(_ZERO_TOKENS), (), generator=generator))]
    noisy = torch.lerp(x, eps, sigma[:, None, None, None]).to(device)
    with RepeatedLastToken(tokens):
        velocity = network(noisy, timestep=1000 * sigma.to(device), **condition).sample
    return F.mse_loss(velocity, (eps - x).to(device))


class RepeatedLastToken(TorchFunctionMode):
    """Attention in which the last token stands for ``times`` identical ones.

    The outputs of the other tokens are exact: a ``softmax`` over n equal logits equals that over one of them plus
    ``log n``. So 256 zero tokens cost as much as one.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            bias = torch.zeros(1, args[1].shape[-2], device=args[1].device, dtype=args[1].dtype)
            bias[:, -1] = math.log(self.times)
            arguments["attn_mask"] = bias
        return func(*args, **arguments)
