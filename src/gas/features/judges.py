"""What judges samples one by one by published networks: LPIPS to the teacher, CLIP score of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gas.errors import UserError
from gas.features.clip_score import ClipScore
from gas.features.lpips import LPIPS
from gas.features.transformer import folder_weights
from gas.io import sha256
from gas.models.protocol import Model, decoder_of, prompts_of
from gas.pairs.dataset import Pairs
from gas.registry import named

__all__ = ["JUDGES", "Judge", "judge_by_name"]

# Samples (S, *) and the pairs whose noise they are of -> (S,).
Judge = Callable[[Tensor, Pairs], Tensor]

_BATCH = 32
_VGG, _LINEAR, _CLIP = "vgg16-397923af.pth", "lpips-vgg.pth", "clip"


def judge_by_name(name: str, model: Model, folder: Path) -> tuple[Judge, dict[str, str]]:
    """Return a judge of a model's samples, and what a result says of its weights.

    Args:
        name: a key of :data:`JUDGES`.
        model: whose samples are judged, decoded first where it has a decoder.
        folder: of weights: ``vgg16-397923af.pth`` and ``lpips-vgg.pth``, or a folder ``clip`` of transformers.

    Raises:
        FileNotFoundError: when weights are missing; says where to put them.
        ValueError: for an unknown name, with the nearest known one, weights of another network, or a model without
            prompts where they are judged by.
    """
    return named("metric", name, JUDGES)(model, folder)


def _lpips(model: Model, folder: Path) -> tuple[Judge, dict[str, str]]:
    """LPIPS of each sample to the teacher's of the same noise."""
    files = _need("lpips", folder / _VGG), _need("lpips", folder / _LINEAR)
    network = LPIPS.read(*files).to(model.device)

    def judge(made: Tensor, pairs: Pairs) -> Tensor:
        both = zip(made.split(_BATCH), pairs.target.split(_BATCH), strict=True)
        return torch.cat([network.distance(_seen(model, a), _seen(model, b)).cpu() for a, b in both])

    return judge, {"lpips_sha256": ",".join(map(sha256, files))}


def _clip_score(model: Model, folder: Path) -> tuple[Judge, dict[str, str]]:
    """CLIP score of each sample and the prompt that it was made for."""
    prompts = prompts_of(model)
    if not prompts:
        raise UserError(
            f"metric clip-score is of images and their prompts, and model {model.name} has none: give --prompts, or "
            "leave it out"
        )
    place = _need("clip-score", folder / _CLIP)
    score = ClipScore(place, model.device)

    def judge(made: Tensor, pairs: Pairs) -> Tensor:
        if pairs.labels is None:
            raise UserError("samples were made without prompts, so they have no CLIP score")
        texts = [prompts[int(label)] for label in pairs.labels]
        starts = range(0, len(made), _BATCH)
        parts = (slice(start, start + _BATCH) for start in starts)
        return torch.cat([score(_seen(model, made[part]), texts[part]).cpu() for part in parts])

    return judge, {"clip_sha256": sha256(folder_weights(place))}


JUDGES: dict[str, Callable[[Model, Path], tuple[Judge, dict[str, str]]]] = {
    "lpips": _lpips,
    "clip-score": _clip_score,
}


@torch.no_grad()
def _seen(model: Model, samples: Tensor) -> Tensor:
    """Images of samples, where the model samples."""
    decode = decoder_of(model)
    there = samples.to(model.device)
    images: Tensor = there if decode is None else decode(there)
    return images


def _need(metric: str, path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"metric {metric} needs {path.name}: put it at {path}, or name its folder by --metric-weights or "
            "GAS_WEIGHTS"
        )
    return path
