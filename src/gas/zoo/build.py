"""From a finished training to a shipped file: classifier, reference statistics, measurements, card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.classical.registry import Classical
from gas.display import markdown
from gas.errors import UserError
from gas.io import write_text
from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance
from gas.models.seeds import labels_of_seeds
from gas.sampling import sample
from gas.zoo.classifier import Classifier
from gas.zoo.data import Images
from gas.zoo.model import ZooModel, read_model
from gas.zoo.smooth import smoothed
from gas.zoo.train import Recipe, train_classifier
from gas.zoo.training import finished
from gas.zoo.weights_file import write_weights

__all__ = ["FINE", "build_model", "known_reference", "measure"]

# The fine-grained run that a model's own quality is measured with.
FINE = Classical("unipc-3-bh2", "log_snr", nfe=50, t_end=1e-3)


def build_model(
    name: str, images: Images, recipe: Recipe, checkpoint: Path, out: Path, *, samples: int = 5000
) -> ZooModel:
    """Write ``<out>/<name>.safetensors`` and its card ``<out>/<name>.md`` from a finished training.

    Weights are stored in float16 and measured after that rounding. The features of the held-out real
    images are kept as mean and covariance, so that distances can be measured without the images.

    Args:
        name: the model's name in the zoo.
        images: what it was trained on.
        recipe: how.
        checkpoint: the training's state.
        out: folder to write to.
        samples: generated images that quality is measured on.

    Raises:
        ValueError: when the training has not finished.
    """
    state = finished(checkpoint, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = Classifier(size=images.x.shape[-1])
    accuracy = train_classifier(classifier, images, seed=recipe.seed)
    weights, network = smoothed(_spread(state["ema"], recipe.label_spread), recipe.network)
    tensors = {f"network.{k}": v.half() for k, v in weights.items()}
    tensors |= {f"classifier.{k}": v.half() for k, v in classifier.state_dict().items()}
    card: dict[str, Any] = {
        "name": name,
        "data": images.told(),
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
    features = read_model(path).classifier.features  # with the rounding that users get
    reference = feature_statistics(extract(features, images.test[0]))
    training = feature_statistics(extract(features, images.train[0]))
    card["frechet_of_training_images"] = frechet_distance(training, reference)
    tensors |= {"reference.mean": reference.mean.float(), "reference.cov": reference.cov.float()}
    tensors["reference.count"] = torch.tensor(reference.count)
    write_weights(path, tensors, card)
    card |= measure(read_model(path), samples=samples)
    write_weights(path, tensors, card)
    write_text(out / f"{name}.md", _card_text(card))
    return read_model(path)


@torch.no_grad()
def measure(model: ZooModel, *, samples: int, batch: int = 250) -> dict[str, Any]:
    """Sample finely and report the Frechet distance to held-out real images and the share named right."""
    table = FINE.table(model.schedule)
    images, right = [], 0
    for start in range(0, samples, batch):
        seeds = range(start, min(start + batch, samples))
        labels = labels_of_seeds(model.classes, seeds)
        x = sample(model.bind(labels), model.noise(seeds), table)
        right += int((model.classifier(x).argmax(dim=1) == labels).sum())
        images.append(x)
    statistics = feature_statistics(extract(model.features, torch.cat(images)))
    return {
        "fine": FINE.config(),
        "samples": samples,
        "frechet_to_held_out": frechet_distance(statistics, known_reference(model)),
        "named_right": right / samples,
    }


def known_reference(model: ZooModel) -> FeatureStatistics:
    """Return a model's statistics of real images.

    Raises:
        ValueError: when it carries none.
    """
    if model.reference is None:
        raise UserError(f"model {model.name} carries no statistics of real images to measure against")
    return model.reference


def _spread(weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Move every class embedding away from the *no class* one, which is the last, by a factor."""
    label = weights["label.weight"]
    return {**weights, "label.weight": torch.lerp(label[-1:], label, factor)}


def _card_text(card: Mapping[str, Any]) -> str:
    fine = card["fine"]
    return f"""# {card["name"]}

A class-conditional denoiser of {card["parameters"]:,} parameters (`gas.zoo.unet.EDMUNet`), EDM-preconditioned,
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
them with each other only. Made by `gas zoo train {card["name"]}`.
"""
