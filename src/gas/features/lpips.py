"""LPIPS: distance of images in the features of VGG-16, as a loss to learn from and as a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.errors import UserError
from gas.features.images import rgb
from gas.losses import FeatureLoss
from gas.unpickle.loading import read_state

# Convolutions of VGG-16 by their published places, in the five stages whose ends are compared; a stage but the first
# begins by halving the picture.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """The feature map whose squared distance is LPIPS: ``LPIPS(x, y) = |f(x) - f(y)|^2``.

    ``sum_l mean_{hw} sum_c w_{l,c} (u_l(x) - u_l(y))^2`` with u the activations after stage l of VGG-16, of length 1
    at every pixel: that is a sum of squares, so that Gauss-Newton can minimize it too (:meth:`loss`).

    Args:
        vgg: convolutions of VGG-16 by torchvision's names (``features.0.weight``; the classifier is not used).
        linear: the published weights of channels (``lin0.model.1.weight`` to ``lin4``).
        resize: images are resized to this side, bilinear, and clipped to [-1, 1] first; none leaves them.

    Raises:
        UserError: when a name is missing, shapes do not fit or a channel's weight is negative.

    References:
        Zhang et al., arXiv 1801.03924, equation 1; resize as in arXiv 2510.17699.
    """

    def __init__(
        self, vgg: Mapping[str, Tensor], linear: Mapping[str, Tensor], resize: int | None = 224
    ) -> None:
        super().__init__()
        self.resize = resize
        places = [place for stage in _STAGES for place in stage]
        try:
            weights, biases = (
                [vgg[f"features.{k}.{part}"].float() for k in places] for part in ("weight", "bias")
            )
            roots = [_channel_weights(linear, stage) for stage in range(len(_STAGES))]
        except KeyError as error:
            raise UserError(f"weights of LPIPS lack {error}: VGG-16's and its own are two files") from error
        _check_shapes(weights, biases, roots)
        self.weights, self.biases, self.roots = map(nn.ParameterList, (weights, biases, roots))
        self.eval().requires_grad_(False)

    @classmethod
    def read(cls, vgg: str | Path, linear: str | Path, resize: int | None = 224) -> LPIPS:
        """Read both files: VGG-16's weights, and LPIPS's own."""
        return cls(read_state(vgg), read_state(linear), resize)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``(B, F)`` of images ``(B, 1 or 3, H, W)`` in [-1, 1]."""
        x = rgb(x.to(self.weights[0]))
        if self.resize is not None:
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear").clamp(-1, 1)
        shift, scale = (x.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x, convolution, features = (x - shift) / scale, 0, []
        for stage, places in enumerate(_STAGES):
            x = F.max_pool2d(x, 2) if stage else x
            for _ in places:
                x = F.relu(F.conv2d(x, self.weights[convolution], self.biases[convolution], padding=1))
                convolution += 1
            # Clamped before the root, whose slope at zero is infinite.
            length = x.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt()
            unit = x / (length + 1e-10)
            features.append((unit * self.roots[stage][:, None, None] / math.sqrt(x[0, 0].numel())).flatten(1))
        return torch.cat(features, dim=1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return LPIPS of each pair of images ``(B,)``."""
        difference: Tensor = self(x) - self(y)
        return difference.square().sum(1)

    def loss(self) -> FeatureLoss:
        """Return LPIPS as a loss for :func:`gas.fit`."""

        def features(x: Tensor) -> Tensor:
            values: Tensor = self(x)
            return values * math.sqrt(values.shape[1])  # the loss is a mean over features, LPIPS a sum

        return FeatureLoss(features)


def _check_shapes(weights: Sequence[Tensor], biases: Sequence[Tensor], roots: Sequence[Tensor]) -> None:
    """Refuse convolutions that do not follow one another, or are much wider than VGG-16's."""
    width = 3
    for weight, bias in zip(weights, biases, strict=True):
        if weight.ndim != 4 or weight.shape[1:] != (width, 3, 3) or bias.shape != weight.shape[:1]:
            raise UserError(f"VGG-16's weights of shape {tuple(weight.shape)} do not follow {width} channels")
        width = len(weight)
    ends = [len(weights[sum(map(len, _STAGES[: stage + 1])) - 1]) for stage in range(len(_STAGES))]
    if [len(root) for root in roots] != ends or max(ends) > 4096:
        raise UserError(f"LPIPS's weights are of {[len(root) for root in roots]} channels, VGG-16 has {ends}")


def _channel_weights(linear: Mapping[str, Tensor], stage: int) -> Tensor:
    name = f"lin{stage}.model.1.weight"
    weight = linear[name if name in linear else f"lin{stage}.model.0.weight"].float().flatten()
    if bool((weight < 0).any()):
        raise UserError(f"{name} must not be negative, got {float(weight.min()):g}")
    return weight.sqrt()
