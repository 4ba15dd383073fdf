"""The recipes behind the latent models: an autoencoder of MNIST, and two denoisers of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gas.errors import UserError
from gas.pipelines.process import process_of
from gas.pipelines.specs import spec_of
from gas.zoo.data import Images
from gas.zoo.latent.parts import WORDS, assemble, autoencoder, denoiser, hear_slowly
from gas.zoo.latent.recipes import PLACES, Kind
from gas.zoo.train import Recipe
from gas.zoo.training import Progress, train

__all__ = ["Repeated", "conditions", "encoded", "train_autoencoder", "train_latent"]

# Of the divergence of the latents' distribution from a standard normal one, beside a squared error in [-1, 1].
_KL = 1e-3


def train_autoencoder(
    recipe: Recipe, images: Images, checkpoint: Path, *, every: int = 100, device: str = "cpu"
) -> Iterator[Progress]:
    """Minimise ``|decode(z) - x|^2 + 1e-3 KL(q(z|x) | N(0, 1))``, both a mean over entries, by :func:`train`."""
    x, _ = images.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = autoencoder(recipe.network).to(memory_format=torch.channels_last)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(x), (recipe.batch,), generator=generator)
        batch = x[chosen].to(device, memory_format=torch.channels_last)
        latents: Any = network.encode(batch).latent_dist  # type: ignore[operator]
        noise = torch.randn(latents.mean.shape, generator=generator).to(device)
        made: Tensor = network.decode(latents.mean + latents.std * noise).sample  # type: ignore[operator]
        divergence: Tensor = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()
        return F.mse_loss(made, batch) + _KL * divergence

    return train(recipe, model, loss, checkpoint, every=every, device=device)


def train_latent(
    kind: Kind,
    images: Images,
    vae: Any,
    text: Any,
    checkpoint: Path,
    *,
    every: int = 100,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train the denoiser of a kind on the latents of an autoencoder, by :func:`train`.

    Of the U-Net: the mean squared error of ``v = alpha eps - sigma x_0`` at uniform training steps; of the transformer
    that of ``eps - x_0`` at uniform ``sigma``. A tenth of the prompts are empty, for guidance.

    Args:
        kind: which.
        images: what to learn; the held-out part is not touched.
        vae: the autoencoder, frozen.
        text: the text encoder, frozen.
        checkpoint: file of the resumable state; its ``ema`` entry ends as the weights to ship.
        every: steps between reports.
        device: where to train.
    """
    recipe = kind.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = hear_slowly(denoiser(kind.kind, recipe.network)).to(memory_format=torch.channels_last)
    pipe = assemble(kind.kind, model, vae, text, kind.scheduler)
    told = conditions(pipe, WORDS)
    mean, std = encoded(vae, images.train[0])
    label = images.train[1]
    error = _velocity(pipe.scheduler.config) if kind.kind == "unet" else _flow

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(mean), (recipe.batch,), generator=generator)
        x = mean[chosen] + std[chosen] * torch.randn(mean[chosen].shape, generator=generator)
        dropped = torch.rand(len(x), generator=generator) < recipe.label_dropout
        shown = torch.where(dropped, len(WORDS), label[chosen])
        condition = {name: rows[shown].to(device) for name, rows in told.items()}
        return error(network, x, condition, generator, device)

    return train(recipe, model, loss, checkpoint, every=every, device=device)


@torch.no_grad()
def encoded(vae: Any, x: Tensor, *, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents ``(N, 4, 8, 8)`` of images, in the units that are denoised."""
    parts = [vae.encode(part).latent_dist for part in x.split(batch)]
    scale = vae.config.scaling_factor
    return scale * torch.cat([p.mean for p in parts]), scale * torch.cat([p.std for p in parts])


def conditions(pipe: Any, prompts: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what the network is told of each prompt, and last of none, as the pipeline encodes them."""
    encode = spec_of(pipe).encode
    if encode is None:
        raise UserError(f"{type(pipe).__name__} takes no prompts")
    rows = [encode(pipe, prompt, None, {"max_sequence_length": PLACES[0]}) for prompt in (*prompts, "")]
    names = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
    return {to: torch.cat([row[name] for row in rows]) for name, to in names.items() if name in rows[0]}


def _velocity(config: Mapping[str, Any]) -> Callable[..., Tensor]:
    schedule = process_of(config).schedule
    steps = 1000
    alphas, sigmas = (part.float() for part in schedule(torch.arange(1, steps + 1) / steps))

    def error(
        network: nn.Module,
        x: Tensor,
        condition: Mapping[str, Tensor],
        generator: torch.Generator,
        device: str,
    ) -> Tensor:
        step = torch.randint(steps, (len(x),), generator=generator)
        eps = torch.randn(x.shape, generator=generator)
        alpha, sigma = alphas[step, None, None, None], sigmas[step, None, None, None]
        noisy, wanted = (alpha * x + sigma * eps).to(device), (alpha * eps - sigma * x).to(device)
        return F.mse_loss(network(noisy, step.to(device), **condition).sample, wanted)

    return error


def _flow(
    network: nn.Module, x: Tensor, condition: Mapping[str, Tensor], generator: torch.Generator, device: str
) -> Tensor:
    sigma = torch.rand(len(x), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    places = PLACES[int(torch.randint(len(PLACES), (), generator=generator))]
    noisy = torch.lerp(x, eps, sigma[:, None, None, None]).to(device)
    with Repeated(places):
        made = network(noisy, timestep=1000 * sigma.to(device), **condition).sample
    return F.mse_loss(made, (eps - x).to(device))


class Repeated(TorchFunctionMode):
    """Attention in which the last place stands for ``times`` places that are all alike.

    Exact, for the others' outputs: ``softmax`` over n equal logits is that over one with ``log n`` added. So 256 empty
    places cost what one does.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        told = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            weight = torch.zeros(1, args[1].shape[-2], device=args[1].device, dtype=args[1].dtype)
            weight[:, -1] = math.log(self.times)
            told["attn_mask"] = weight
        return func(*args, **told)
