"""From finished trainings to shipped files of the latent models: weights in float16, measured after that rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gas.classical.registry import Classical
from gas.display import markdown
from gas.evaluation.sampler import fresh
from gas.io import write_text
from gas.metrics.distances import frechet_interval
from gas.metrics.frechet import extract, feature_statistics, frechet_distance
from gas.zoo.build import known_reference
from gas.zoo.data import Images
from gas.zoo.latent.model import SHARED, read_latent, read_shared, shared_beside, weights_of
from gas.zoo.latent.parts import autoencoder, text_encoder
from gas.zoo.latent.recipes import Kind
from gas.zoo.latent.train import encoded
from gas.zoo.model import ZooModel
from gas.zoo.train import Recipe
from gas.zoo.training import finished
from gas.zoo.weights_file import read_card, write_weights

__all__ = ["FINE", "GUIDANCE", "TEXT_WIDTH", "build_autoencoder", "build_latent", "measure"]

TEXT_WIDTH = 64
GUIDANCE = 2.0
# The fine-grained run that a model's own quality is measured with.
FINE = ("unipc-3-bh2", "log_snr", 50)


def build_autoencoder(
    images: Images, recipe: Recipe, checkpoint: Path, out: Path, measuring: ZooModel
) -> Path:
    """Write ``mnist-autoencoder.safetensors``, with the text encoder that both pipelines share, and its card.

    The latents' scaling factor brings them to a standard deviation of 1 over the training images.

    Raises:
        ValueError: when the training has not finished.
    """
    state = finished(checkpoint, recipe)
    tensors = {k: v.half() for k, v in state["ema"].items()}
    vae = autoencoder(recipe.network)
    vae.load_state_dict({k: v.float() for k, v in tensors.items()})
    mean, std = encoded(vae.eval(), images.train[0])
    factor = round(float((mean.var() + std.square().mean()).rsqrt()), 4)
    card: dict[str, Any] = {
        "name": SHARED,
        "data": images.told(),
        "autoencoder": recipe.network,
        "scaling_factor": factor,
        "text": TEXT_WIDTH,
        "parameters": sum(v.numel() for v in state["ema"].values()),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seconds": round(state["seconds"]),
        "device": state["device"],
    }
    path = out / f"{SHARED}.safetensors"
    stored = weights_of(tensors, "vae.") | weights_of(text_encoder(TEXT_WIDTH), "text.")
    write_weights(path, stored, card)
    card |= _of_reconstructions(read_shared(path)[0], images, measuring)
    write_weights(path, stored, card)
    write_text(path.with_suffix(".md"), _autoencoder_text(card))
    return path


def build_latent(
    name: str,
    kind: Kind,
    images: Images,
    checkpoint: Path,
    out: Path,
    measuring: ZooModel,
    *,
    samples: int = 400,
) -> Path:
    """Write a latent pipeline's denoiser beside its autoencoder, and its card.

    Raises:
        ValueError: when the training has not finished.
    """
    state = finished(checkpoint, kind.recipe)
    shared = read_card(shared_beside(out))
    card: dict[str, Any] = {
        "name": name,
        "data": images.told(),
        "pipeline": kind.kind,
        "scheduler": dict(kind.scheduler),
        "network": kind.recipe.network,
        "autoencoder_scale": shared["scaling_factor"],
        "sample_shape": [4, 8, 8],
        "parameters": sum(v.numel() for v in state["ema"].values()),
        "steps": kind.recipe.steps,
        "batch": kind.recipe.batch,
        "seconds": round(state["seconds"]),
        "device": state["device"],
    }
    path = out / f"{name}.safetensors"
    stored = weights_of(state["ema"], "network.")
    write_weights(path, stored, card)
    card |= measure(path, measuring, samples=samples)
    write_weights(path, stored, card)
    write_text(path.with_suffix(".md"), _latent_text(card))
    return path


@torch.no_grad()
def measure(path: Path, measuring: ZooModel, *, samples: int) -> dict[str, Any]:
    """Sample finely, guided and not, and report the distance to held-out real images and the share named right."""
    model = read_latent(path, measuring)
    fine = Classical(*FINE, t_end=model.t_end)
    told: dict[str, Any] = {"fine": fine.config(), "samples": samples, "guidance": GUIDANCE}
    for prefix, guidance in (("", GUIDANCE), ("unguided_", 1.0)):
        made = fresh(model, fine.table(model.schedule), range(samples), guidance=guidance)
        logits = torch.cat([measuring.classifier(model.decode(part)) for part in made.split(250)])
        asked = torch.arange(samples) % model.classes
        right = logits.argmax(dim=1).eq(asked).double().mean()
        features, reference = extract(model.features, made), known_reference(measuring)
        distance = frechet_distance(feature_statistics(features), reference)
        told |= {f"{prefix}named_right": float(right), f"{prefix}frechet_to_held_out": distance}
        told[f"{prefix}frechet_interval"] = frechet_interval(features, reference)[1]
    return told


@torch.no_grad()
def _of_reconstructions(vae: Any, images: Images, measuring: ZooModel) -> dict[str, Any]:
    """What the autoencoder keeps of the held-out images: the bound of what any denoiser of its latents can reach."""
    x, label = images.test
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in x.split(250)]
    made = torch.cat(parts)
    statistics = feature_statistics(extract(measuring.features, made))
    named = torch.cat([measuring.classifier(part) for part in made.split(250)]).argmax(dim=1)
    return {
        "squared_error_held_out": float((made - x).square().mean()),
        "named_right": float((named == label).double().mean()),
        "frechet_to_held_out": frechet_distance(statistics, known_reference(measuring)),
    }


def _autoencoder_text(card: Mapping[str, Any]) -> str:
    return f"""# {card["name"]}

What the latent models of the zoo share: an `AutoencoderKL` of {card["parameters"]:,} parameters, from images 1x32x32 to
latents 4x8x8, and a CLIP text encoder of random, frozen weights that reads the names of the ten digits. Stored in
float16; loaded, measured and run in float32.

| | |
|---|---|
| data | {markdown(card["data"])} |
| training | {card["steps"]:,} steps of {card["batch"]} images: squared error + 0.001 KL, EMA |
| time | {card["seconds"]:,} s on {markdown(card["device"])} |
| scaling factor of the latents | {card["scaling_factor"]} |
| mean squared error of held-out images, values in [-1, 1] | {card["squared_error_held_out"]:.4f} |
| Frechet distance of their reconstructions to themselves | {card["frechet_to_held_out"]:.3f} |
| reconstructions that the classifier of `mnist` names right | {card["named_right"]:.2%} |

Made by `gas zoo train {card["name"]} --data DIR`.
"""


def _latent_text(card: Mapping[str, Any]) -> str:
    fine, unet = card["fine"], card["pipeline"] == "unet"
    network = (
        "`UNet2DConditionModel` that predicts v" if unet else "`SD3Transformer2DModel` that predicts the flow"
    )
    pipeline = "StableDiffusionPipeline" if unet else "StableDiffusion3Pipeline"
    return f"""# {card["name"]}

A `{pipeline}` of MNIST: a {network}, of {card["parameters"]:,} parameters, on
latents 4x8x8 of `mnist-autoencoder`. Prompts are the names of the digits; a tenth were empty in training, so that it
can be guided. Stored in float16; loaded, measured and run in float32.

| | |
|---|---|
| data | {markdown(card["data"])} |
| training | {card["steps"]:,} steps of {card["batch"]} latents, EMA |
| noise embedding | frequencies of at most 0.03 radians a training step |
| time | {card["seconds"]:,} s on {markdown(card["device"])} |
| fine-grained run | {fine["solver"]}, {fine["grid"]} grid, {fine["nfe"]} NFE, seeds 0 to {card["samples"] - 1} |
| Frechet distance to held-out real images, guidance {card["guidance"]:g} | {_distance(card, "")} |
| the same without guidance | {_distance(card, "unguided_")} |
| samples that the classifier of `mnist` names as prompted, guidance {card["guidance"]:g} | {card["named_right"]:.2%} |
| the same without guidance | {card["unguided_named_right"]:.2%} |

Frechet distances are measured in the 64 features of `mnist`'s classifier on decoded samples, the 95% intervals without
the bias of so many samples: compare them with each other only. Made by `gas zoo train {card["name"]} --data DIR`.
"""


def _distance(card: Mapping[str, Any], prefix: str) -> str:
    low, high = card[f"{prefix}frechet_interval"] or (math.nan, math.nan)
    return f"{card[f'{prefix}frechet_to_held_out']:.2f}, without bias {low:.2f} to {high:.2f}"
