"""Training of the denoisers of images, of their classifier, and the smoothing of the noise embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loop import Progress, train
from recipes import Recipe
from torch import Tensor, nn

from gas.zoo.data import Images
from gas.zoo.networks import EDMUNet

__all__ = ["MAX_FREQUENCY", "smoothed", "train_classifier", "train_denoiser"]

# Highest angular frequency of the shipped noise embeddings, in log(sigma) / 4: a period of 6.3 units of log sigma.
MAX_FREQUENCY = 4.0


def train_denoiser(
    recipe: Recipe, images: Images, checkpoint: Path, *, every: int = 100, device: str = "cpu"
) -> Iterator[Progress]:
    """Minimize EDM's weighted denoising error by :func:`loop.train`.

    ``E |D(x_0 + sigma eps; sigma) - x_0|^2 (sigma^2 + c^2) / (sigma c)^2`` with ``log sigma ~ N(-1.2, 1.2^2)`` and
    ``c = sigma_data``, on the training part of ``images``.

    References:
        arXiv 2206.00364, equations 8 and 108 and Table 1.
    """
    x, label = images.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = EDMUNet(**recipe.network)
    model.to(memory_format=torch.channels_last)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(x), (recipe.batch,), generator=generator)
        return _edm_loss(network, x[batch], label[batch], recipe.label_dropout, generator, device)

    return train(recipe, model, loss, checkpoint, every=every, device=device)


def _edm_loss(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    label_dropout: float,
    generator: torch.Generator,
    device: str,
) -> Tensor:
    c = float(model.sigma_data)
    sigma = torch.exp(torch.randn(len(x), generator=generator) * 1.2 - 1.2)
    noise = torch.randn(x.shape, generator=generator)
    dropped = torch.rand(len(x), generator=generator) < label_dropout
    label = torch.where(dropped, torch.full_like(label, int(model.classes)), label)
    noisy = (x + sigma[:, None, None, None] * noise).contiguous(memory_format=torch.channels_last)
    noisy, x, sigma, label = (tensor.to(device) for tensor in (noisy, x, sigma, label))
    weight = (sigma**2 + c**2) / (sigma * c) ** 2
    error = (model(noisy, sigma, label) - x).square().mean(dim=(1, 2, 3))
    return (weight * error).mean()


def smoothed(
    weights: Mapping[str, Tensor], network: Mapping[str, Any], *, steps: int = 3000, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Regress the noise embedding, a curve over log sigma, on low frequencies only.

    Trained on frequencies up to 1000, the embedding is noisy: the prediction changes by as much over 0.002 units of
    log-SNR as over 0.02, and its derivatives in time, from which a solver's times are learned, are up to ten times
    their average. Samples of both networks agree.

    Args:
        weights: state of an :class:`EDMUNet`.
        network: its arguments.
        steps: of Adam.
        seed: of the initial weights of the new embedding and of the noise levels regressed on.

    Returns:
        The state with a new embedding, and the arguments of its network.
    """
    old = EDMUNet(**network)
    old.load_state_dict(dict(weights))
    config = {**network, "max_frequency": MAX_FREQUENCY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = EDMUNet(**config)
        # A margin around the noise levels 0.002 to 80 that EDM samples between.
        noise = torch.linspace(math.log(0.001) / 4, math.log(160) / 4, 4096)
        with torch.no_grad():
            target = old.noise_embedding(noise)
        optimizer = torch.optim.Adam(new.noise.parameters(), lr=1e-2)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            batch = torch.randint(len(noise), (512,))
            loss = F.mse_loss(new.noise_embedding(noise[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    embedding = {f"noise.{name}": value.detach() for name, value in new.noise.state_dict().items()}
    return {**weights, **embedding}, config


def train_classifier(
    model: nn.Module, images: Images, *, epochs: int = 20, batch: int = 100, seed: int = 0
) -> float:
    """Train a classifier in place by cross-entropy on randomly shifted images; return its held-out accuracy."""
    x, label = images.train
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        torch.manual_seed(seed)
        for _ in range(steps):
            indices = torch.randint(len(x), (batch,), generator=generator)
            shifted = _shifted(x[indices], generator)
            loss = F.cross_entropy(model(shifted), label[indices], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        x, label = images.test
        return float((model(x).argmax(dim=1) == label).double().mean())


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift the whole batch by up to a sixteenth of its side, filling with background."""
    reach = x.shape[-1] // 16
    if reach == 0:
        return x
    dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, (reach, reach, reach, reach), value=-1.0)
    side = x.shape[-1]
    return padded[..., reach + dy : reach + dy + side, reach + dx : reach + dx + side]
