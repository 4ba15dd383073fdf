"""From a finished training to a shipped file: weights in float16, measured after that rounding, and their card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from denoiser import smoothed, train_classifier
from emoji_data import LICENSE, Emoji
from emoji_denoiser import AUTOENCODER_STATE, TEXT_WIDTH as CAPTION_WIDTH, trained_autoencoder, vocabulary
from latents import encode
from loop import load_finished
from recipes import EMOJI_AUTOENCODER, LatentRecipe, Recipe
from torch import Tensor, nn

import gas
from gas.display import markdown
from gas.evaluation import sample_seeds
from gas.io import write_text
from gas.metrics.distances import frechet_interval
from gas.metrics.frechet import extract, feature_statistics, frechet_distance
from gas.zoo.data import Images
from gas.zoo.latent import (
    SHARED,
    autoencoder,
    read_latent,
    read_pipeline,
    read_shared,
    shared_path,
    text_encoder,
)
from gas.zoo.model import Measuring, ZooModel, read_measuring, read_model
from gas.zoo.networks import Classifier
from gas.zoo.weights_file import read_card, write_weights

__all__ = [
    "FINE",
    "GUIDANCE",
    "build_autoencoder",
    "build_emoji",
    "build_latent",
    "build_model",
    "measure",
    "measure_emoji",
    "measure_latent",
]

# The fine sampling run that measures a model's own quality.
FINE = gas.Classical("unipc-3-bh2", "log_snr", nfe=50, t_end=1e-3)
GUIDANCE = 2.0  # of the latent models' run
EMOJI_GUIDANCE, _EMOJI_NFE = 3.0, 20
TEXT_WIDTH = 64  # of the text encoder of digits
_PROMPTS = 256  # number of names that are labels of the model: pairs and solver files list them
_BATCH = 250


def build_model(
    name: str, images: Images, recipe: Recipe, checkpoint: Path, out: Path, *, samples: int = 5000
) -> ZooModel:
    """Write a model of images, ``<out>/<name>.safetensors``, and its card ``<out>/<name>.md``.

    The file has mean and covariance of the features of the held-out images, so that distances can be measured without
    these images.

    Args:
        name: of the model.
        images: those of the training.
        recipe: of the training.
        checkpoint: its state.
        out: folder to write to.
        samples: number of generated images that measure its quality.

    Raises:
        ValueError: when the training has not finished.
    """
    state = load_finished(checkpoint, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = Classifier(size=images.x.shape[-1])
    accuracy = train_classifier(classifier, images, seed=recipe.seed)
    weights, network = smoothed(_spread(state["ema"], recipe.label_spread), recipe.network)
    tensors = _stored(weights, "network.") | _stored(classifier, "classifier.")
    card: dict[str, Any] = {
        "name": name,
        "data": images.description(),
        "sample_shape": list(images.x.shape[1:]),
        "network": network,
        "classifier": {"size": images.x.shape[-1]},
        "parameters": sum(v.numel() for v in state["ema"].values()),
        "steps": recipe.steps,
        "label_spread": recipe.label_spread,
        "batch": recipe.batch,
        "seconds": round(state["seconds"]),
        "device": state["device"],
        "classifier_accuracy_held_out": accuracy,
    }
    path = out / f"{name}.safetensors"
    write_weights(path, tensors, card)
    features = read_model(path).classifier.features  # after rounding to float16
    reference = feature_statistics(extract(features, images.test[0]))
    training = feature_statistics(extract(features, images.train[0]))
    card["frechet_of_training_images"] = frechet_distance(training, reference)
    tensors |= {"reference.mean": reference.mean.float(), "reference.cov": reference.cov.float()}
    tensors["reference.count"] = torch.tensor(reference.count)
    write_weights(path, tensors, card)
    card |= measure(read_model(path), samples=samples)
    write_weights(path, tensors, card)
    write_text(path.with_suffix(".md"), _model_text(card))
    return read_model(path)


@torch.no_grad()
def measure(model: ZooModel, *, samples: int) -> dict[str, Any]:
    """Sample finely; return the Frechet distance to held-out images and the classifier's accuracy on samples."""
    x, labels = _samples(model, FINE.table(model.schedule), range(samples))
    accuracy = _accuracy(model, x, labels)
    statistics = feature_statistics(extract(model.features, x))
    return {
        "fine": FINE.config(),
        "samples": samples,
        "frechet_to_held_out": frechet_distance(statistics, model.reference),
        "named_right": accuracy,
    }


def build_autoencoder(
    images: Images, recipe: Recipe, checkpoint: Path, out: Path, measuring: ZooModel
) -> Path:
    """Write ``mnist-autoencoder.safetensors``, with the text encoder of both pipelines, and its card.

    The scaling factor gives latents of the training images a standard deviation of 1.

    Raises:
        ValueError: when the training has not finished.
    """
    state = load_finished(checkpoint, recipe)
    tensors = _stored(state["ema"], "vae.")
    vae = autoencoder(recipe.network)
    vae.load_state_dict({k.removeprefix("vae."): v.float() for k, v in tensors.items()})
    mean, std = encode(vae.eval(), images.train[0])
    card: dict[str, Any] = {
        "name": SHARED,
        "data": images.description(),
        "autoencoder": recipe.network,
        "scaling_factor": round(float((mean.var() + std.square().mean()).rsqrt()), 4),
        "text": TEXT_WIDTH,
        "parameters": sum(v.numel() for v in state["ema"].values()),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seconds": round(state["seconds"]),
        "device": state["device"],
    }
    path = out / f"{SHARED}.safetensors"
    tensors |= _stored(text_encoder(TEXT_WIDTH), "text.")
    write_weights(path, tensors, card)
    card |= _measure_reconstructions(read_shared(path)[0], images, measuring)
    write_weights(path, tensors, card)
    write_text(path.with_suffix(".md"), _autoencoder_text(card))
    return path


@torch.no_grad()
def _measure_reconstructions(vae: Any, images: Images, measuring: ZooModel) -> dict[str, Any]:
    """Measure reconstructions of the held-out images: the best that a denoiser of the latents can reach."""
    x, labels = images.test
    decoded = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in x.split(_BATCH)]
    reconstructions = torch.cat(decoded)
    statistics = feature_statistics(extract(measuring.features, reconstructions))
    return {
        "squared_error_held_out": float((reconstructions - x).square().mean()),
        "named_right": _accuracy(measuring, reconstructions, labels),
        "frechet_to_held_out": frechet_distance(statistics, measuring.reference),
    }


def build_latent(
    name: str,
    latent: LatentRecipe,
    images: Images,
    checkpoint: Path,
    out: Path,
    measuring: ZooModel,
    *,
    samples: int = 400,
) -> Path:
    """Write the denoiser of a latent model beside its autoencoder, and its card.

    Raises:
        ValueError: when the training has not finished.
    """
    recipe = latent.training
    state = load_finished(checkpoint, recipe)
    card: dict[str, Any] = {
        "name": name,
        "data": images.description(),
        "pipeline": latent.kind,
        "scheduler": dict(latent.scheduler),
        "network": recipe.network,
        "autoencoder_scale": read_card(shared_path(out))["scaling_factor"],
        "sample_shape": [4, 8, 8],
        "parameters": sum(v.numel() for v in state["ema"].values()),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seconds": round(state["seconds"]),
        "device": state["device"],
    }
    path = out / f"{name}.safetensors"
    tensors = _stored(state["ema"], "network.")
    write_weights(path, tensors, card)
    card |= measure_latent(path, measuring, samples=samples)
    write_weights(path, tensors, card)
    write_text(path.with_suffix(".md"), _latent_text(card))
    return path


def build_emoji(
    latent: LatentRecipe,
    emoji: Emoji,
    folder: Path,
    *,
    autoencoder_recipe: Recipe = EMOJI_AUTOENCODER,
    samples: int = 200,
) -> Path:
    """Write ``emoji.safetensors``, with autoencoder, text encoder and classifier, and its card beside the checkpoints.

    Raises:
        ValueError: when the training has not finished.
    """
    recipe = latent.training
    state = load_finished(folder / "emoji.state.pt", recipe)
    autoencoder_state = folder / AUTOENCODER_STATE
    vae = trained_autoencoder(autoencoder_recipe, emoji, autoencoder_state)
    config = {"size": 16, "pool": 4, "channels": 3, "width": 16, "classes": len(emoji.categories)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = Classifier(**config)
    accuracy = train_classifier(classifier, emoji.images, epochs=60, seed=recipe.seed)
    tensors = _stored(state["ema"], "") | _stored(vae, "vae.") | _stored(classifier, "classifier.")
    real = emoji.images.x[emoji.trained + emoji.held_out]
    features = feature_statistics(extract(classifier.features, real))
    tensors |= {"reference.mean": features.mean.float(), "reference.cov": features.cov.float()}
    tensors["reference.count"] = torch.tensor(features.count)
    card: dict[str, Any] = {
        "name": "emoji",
        "data": emoji.images.description(),
        "denoiser_data": f"{len(emoji.trained)} trained on, {len(emoji.held_out)} held out, of "
        f"{', '.join(emoji.denoiser_categories)}",
        "license": LICENSE,
        "pipeline": latent.kind,
        "scheduler": dict(latent.scheduler),
        "network": recipe.network,
        "autoencoder": autoencoder_recipe.network,
        "scaling_factor": vae.config.scaling_factor,
        "autoencoder_scale": vae.config.scaling_factor,
        "text": CAPTION_WIDTH,
        "classifier": config,
        "sample_shape": list(encode(vae, emoji.images.x[:1])[0].shape[1:]),
        "parameters": sum(v.numel() for v in state["ema"].values()),
        "steps": state["step"],
        "batch": recipe.batch,
        "seconds": round(state["seconds"] + load_finished(autoencoder_state, autoencoder_recipe)["seconds"]),
        "device": state["device"],
        "classifier_accuracy_held_out": accuracy,
        "vocabulary": " ".join(vocabulary(emoji)),
        "prompts": ", ".join(emoji.names[i] for i in emoji.trained[:_PROMPTS]),
    }
    path = folder / "emoji.safetensors"
    write_weights(path, tensors, card)
    card |= measure_emoji(path, emoji, samples=samples)
    write_weights(path, tensors, card)
    write_text(path.with_suffix(".md"), _emoji_text(card))
    return path


@torch.no_grad()
def measure_emoji(path: Path, emoji: Emoji, *, samples: int) -> dict[str, Any]:
    """Sample with guidance from names trained on and held out; return what :func:`measure` does, by category."""
    measuring, pipe = read_measuring(path), read_pipeline(path)
    vae = pipe.vae
    x, _ = emoji.images.test
    error = (
        (vae.decode(encode(vae, x)[0] / vae.config.scaling_factor).sample.clamp(-1, 1) - x).square().mean()
    )
    measured: dict[str, Any] = {
        "samples": samples,
        "guidance": EMOJI_GUIDANCE,
        "squared_error_held_out": float(error),
    }
    for prefix, chosen in (("", emoji.trained[:samples]), ("held_out_", emoji.held_out)):
        model = gas.pipelines.from_pipeline(pipe, [emoji.names[i] for i in chosen], name="emoji")
        fine = replace(FINE, t_end=model.t_end, nfe=_EMOJI_NFE)
        latents, labels = _samples(model, fine.table(model.schedule), range(len(chosen)), EMOJI_GUIDANCE)
        images = torch.cat([model.decode(part) for part in latents.split(_BATCH)])
        features = extract(measuring.features, images)
        measured["fine"] = fine.config()
        measured[f"{prefix}named_right"] = _accuracy(measuring, images, emoji.images.label[chosen][labels])
        measured[f"{prefix}frechet"] = frechet_distance(feature_statistics(features), measuring.reference)
    return measured


@torch.no_grad()
def measure_latent(path: Path, measuring: ZooModel, *, samples: int) -> dict[str, Any]:
    """Sample finely with and without guidance; return what :func:`measure` does, of decoded samples."""
    model = read_latent(path, measuring)
    fine = replace(FINE, t_end=model.t_end)
    measured: dict[str, Any] = {"fine": fine.config(), "samples": samples, "guidance": GUIDANCE}
    for prefix, guidance in (("", GUIDANCE), ("unguided_", 1.0)):
        x, labels = _samples(model, fine.table(model.schedule), range(samples), guidance)
        images = torch.cat([model.decode(part) for part in x.split(_BATCH)])
        features = extract(model.features, x)
        distance = frechet_distance(feature_statistics(features), measuring.reference)
        measured[f"{prefix}named_right"] = _accuracy(measuring, images, labels)
        measured[f"{prefix}frechet_to_held_out"] = distance
        measured[f"{prefix}frechet_interval"] = frechet_interval(features, measuring.reference)[1]
    return measured


def _samples(
    model: Any, table: gas.Table, seeds: Sequence[int], guidance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return samples and labels of seeds."""
    samples = sample_seeds(model, table, seeds, guidance=guidance, batch=_BATCH)
    return samples, gas.models.labels_of_seeds(model.classes, seeds)


def _accuracy(measuring: Measuring | ZooModel, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the classifier assigns to their labels."""
    logits = torch.cat([measuring.classifier(part) for part in images.split(_BATCH)])
    return float((logits.argmax(dim=1) == labels).double().mean())


def _spread(weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Move every class embedding away from the *no class* one, which is the last, by a factor."""
    label = weights["label.weight"]
    return {**weights, "label.weight": torch.lerp(label[-1:], label, factor)}


def _stored(module: nn.Module | Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return weights in float16, with a prefix before their names."""
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {f"{prefix}{name}": value.to(torch.float16) for name, value in state.items()}


def _model_text(card: Mapping[str, Any]) -> str:
    fine = card["fine"]
    return f"""# {card["name"]}

A class-conditional denoiser of {card["parameters"]:,} parameters (`gas.zoo.networks.EDMUNet`), EDM-preconditioned,
with a small classifier. Stored in float16; loaded, measured and run in float32.

| | |
|---|---|
| data | {markdown(card["data"])} |
| sample shape | {"x".join(map(str, card["sample_shape"]))}, values in [-1, 1] |
| training | {card["steps"]:,} steps of {card["batch"]} images, EDM's loss, EMA |
| noise embedding | regressed on frequencies up to {card["network"]["max_frequency"]:g} after training |
| class embeddings | moved away from the no-class one by a factor of {card["label_spread"]} |
| time | {card["seconds"]:,} s on {markdown(card["device"])} |
| fine-grained run | {fine["solver"]}, {fine["grid"]} grid, {fine["nfe"]} NFE, seeds 0 to {card["samples"] - 1} |
| Frechet distance to held-out real images | {card["frechet_to_held_out"]:.3f} |
| the same for the training images themselves | {card["frechet_of_training_images"]:.3f} |
| samples that the classifier names right | {card["named_right"]:.2%} |
| the classifier's accuracy on held-out real images | {card["classifier_accuracy_held_out"]:.2%} |

Frechet distances are measured in the 64 features of the shipped classifier, not in Inception's: compare
them with each other only. Made by `python tools/zoo/train.py {card["name"]}`.
"""


def _emoji_text(card: Mapping[str, Any]) -> str:
    fine = card["fine"]
    return f"""# {card["name"]}

A `StableDiffusionPipeline` of emoji of 64x64 pixels: a `UNet2DConditionModel` that predicts v and a CLIP text encoder
of words, trained together, of {card["parameters"]:,} parameters, on latents
{"x".join(map(str, card["sample_shape"]))} of an autoencoder. Prompts are the words of a picture's name, as in "cat
face"; a tenth were empty in training, so that it can be guided. Stored in float16; loaded, measured and run in
float32.

| | |
|---|---|
| data of autoencoder and classifier | {markdown(card["data"])} |
| data of the denoiser | {markdown(card["denoiser_data"])} |
| origin and license | {markdown(card["license"])} |
| training | {card["steps"]:,} steps of {card["batch"]} latents, EMA |
| time, with the autoencoder's | {card["seconds"]:,} s on {markdown(card["device"])} |
| mean squared error of the autoencoder on held-out pictures, values in [-1, 1] | {card["squared_error_held_out"]:.4f} |
| sampled with | {fine["solver"]}, {fine["grid"]} grid, {fine["nfe"]} NFE, guidance {card["guidance"]:g} |
| samples of {card["samples"]} names trained on that a classifier puts in their category | {card["named_right"]:.1%} |
| the same of the names held out | {card["held_out_named_right"]:.1%} |
| the classifier's accuracy on held-out pictures | {card["classifier_accuracy_held_out"]:.1%} |
| Frechet distance to all pictures of these categories, names trained on | {card["frechet"]:.2f} |
| the same of the names held out | {card["held_out_frechet"]:.2f} |

Frechet distances are measured in the 64 features of the shipped classifier, of these few samples, more of
the names trained on: compare each with that of another training only. Names whose SHA-256 begins with a byte below 13
are held out.

Made by `python tools/zoo/train.py emoji --data DIR`, of the archive that `npm pack emoji-datasource-google@16.0.0` puts
into the folder.
"""


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

Made by `python tools/zoo/train.py {card["name"]} --data DIR`.
"""


def _latent_text(card: Mapping[str, Any]) -> str:
    fine = card["fine"]
    if card["pipeline"] == "unet":
        pipeline, network = "StableDiffusionPipeline", "`UNet2DConditionModel` that predicts v"
    else:
        pipeline, network = "StableDiffusion3Pipeline", "`SD3Transformer2DModel` that predicts the flow"
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
the bias of so many samples: compare them with each other only.

Made by `python tools/zoo/train.py {card["name"]} --data DIR`.
"""


def _distance(card: Mapping[str, Any], prefix: str) -> str:
    low, high = card[f"{prefix}frechet_interval"] or (math.nan, math.nan)
    return f"{card[f'{prefix}frechet_to_held_out']:.2f}, without bias {low:.2f} to {high:.2f}"
