"""Metrics of each sample by published networks: LPIPS to the teacher, CLIP score of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gas.errors import UserError
from gas.features.lpips import LPIPS
from gas.features.transformer import ClipScore, folder_weights
from gas.io import sha256
from gas.models.protocol import Model, images_of, prompts_of
from gas.pairs.dataset import Pairs
from gas.registry import named
from gas.workspace import weights_folder

_BATCH = 32
_VGG, _LINEAR, _CLIP = "vgg16-397923af.pth", "lpips-vgg.pth", "clip"


@dataclass(frozen=True, eq=False)
class SampleMetric:
    """One number per sample: ``function`` of samples ``(S, *)`` and the pairs of the same noise -> ``(S,)``.

    ``fingerprint`` is the SHA-256 of its weights, by a name of each file.
    """

    name: str
    function: Callable[[Tensor, Pairs], Tensor]
    fingerprint: Mapping[str, str]


def sample_metrics(names: Sequence[str], model: Model, folder: Path | None = None) -> list[SampleMetric]:
    """Return per-sample metrics of a model's samples, decoded first where it has a decoder.

    Args:
        names: keys of :data:`SAMPLE_METRICS`.
        model: whose samples are measured.
        folder: of weights: ``vgg16-397923af.pth`` and ``lpips-vgg.pth``, and a folder ``clip`` as transformers saves
            it; by default :func:`gas.workspace.weights_folder`.

    Raises:
        FileNotFoundError: when weights are missing; says where to put them.
        UserError: for an unknown name, weights of another network, or a CLIP score of a model without prompts.
    """
    return [named("metric", name, SAMPLE_METRICS)(model, weights_folder(folder)) for name in names]


def _lpips(model: Model, folder: Path) -> SampleMetric:
    """LPIPS of each sample to the teacher's of the same noise."""
    files = _weights("lpips", folder / _VGG), _weights("lpips", folder / _LINEAR)
    network = LPIPS.read(*files).to(model.device)

    def distances(samples: Tensor, pairs: Pairs) -> Tensor:
        parts = zip(samples.split(_BATCH), pairs.target.split(_BATCH), strict=True)
        return torch.cat([network.distance(images_of(model, x), images_of(model, y)).cpu() for x, y in parts])

    return SampleMetric("lpips", distances, {"lpips_sha256": ",".join(map(sha256, files))})


def _clip_score(model: Model, folder: Path) -> SampleMetric:
    """CLIP score of each sample and its prompt."""
    prompts = prompts_of(model)
    if not prompts:
        raise UserError(
            f"metric clip-score compares images with their prompts, and model {model.name} has none: give --prompts, "
            "or leave it out"
        )
    path = _weights("clip-score", folder / _CLIP)
    score = ClipScore(path, model.device)

    def scores(samples: Tensor, pairs: Pairs) -> Tensor:
        if pairs.labels is None:
            raise UserError("the pairs have no prompts, so their samples have no CLIP score")
        texts = [prompts[int(label)] for label in pairs.labels]
        parts = [slice(start, start + _BATCH) for start in range(0, len(samples), _BATCH)]
        return torch.cat([score(images_of(model, samples[part]), texts[part]).cpu() for part in parts])

    return SampleMetric("clip-score", scores, {"clip_sha256": sha256(folder_weights(path))})


SAMPLE_METRICS: dict[str, Callable[[Model, Path], SampleMetric]] = {
    "lpips": _lpips,
    "clip-score": _clip_score,
}


def _weights(metric: str, path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"metric {metric} needs {path.name}: put it at {path}, or name its folder by --metric-weights or "
            "GAS_WEIGHTS"
        )
    return path
