"""R3GAN's discriminator in plain torch, with the published sizes and small ones for the zoo."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.display import contents, error_text
from gas.errors import UserError, explained
from gas.io import read_safetensors, strip_prefix
from gas.unpickle.allowed import Persistent
from gas.unpickle.loading import read_pickle, state_dict_of

Sizes = Sequence[int]
_L = TypeVar("_L", nn.Conv2d, nn.Linear)

# Bounds for damaged files: images of 2048 x 2048; the published stages have 2 blocks.
_MOST_STAGES, _MOST_BLOCKS = 10, 64
# Of the leaky ReLU below zero.
_SLOPE = 0.2
_ACTIVATION_GAIN = math.sqrt(2 / (1 + _SLOPE**2))


def stages(channels: int, widths: Sizes, groups: Sizes, blocks: Sizes) -> dict[str, Any]:
    """Return the sizes of a discriminator whose stages end at 4 x 4: a number a stage, highest resolution first."""
    return {
        "in_channels": channels,
        "resolution": 4 << (len(widths) - 1),
        "width_per_stage": widths,
        "cardinality_per_stage": groups,
        "blocks_per_stage": blocks,
    }


# Published as `CIFAR10`: 3/4 of [1024] * 4. It was trained on class labels: add `condition_dim=10` for them.
CIFAR10 = stages(3, [768] * 4, [96] * 4, [2] * 4)
# Published as `FFHQ-64`: 3/4 of [1024, 1024, 1024, 1024, 512], low to high resolution, reversed.
FFHQ64 = stages(3, [384, *[768] * 4], [48, *[96] * 4], [2] * 5)
# Ours, in the published proportions: 16 channels a group, fewer groups.
DIGITS = stages(1, [32, 64], [4, 8], [1, 2])
EMOJI = stages(6, [32, 64, 96], [4, 8, 12], [1, 2, 2])
MNIST = stages(1, [16, 32, 64, 96], [2, 4, 8, 12], [1, 2, 2, 2])


class R3GANDiscriminator(nn.Module):
    """Convolutional discriminator without normalization; one logit an image.

    Stages run from the highest resolution to 4 x 4, each half the one before. Every residual branch starts at
    zero, so a fresh network is linear in its input. Parameters have the names of the published weights.

    Args:
        in_channels: channels of the input.
        resolution: side of the input in pixels, ``4 * 2 ** (stages - 1)``.
        width_per_stage: channels of each stage.
        cardinality_per_stage: groups of each stage's 3 x 3 convolutions; divides ``width * expansion_factor``.
        blocks_per_stage: residual blocks of each stage.
        expansion_factor: channels within a block, in units of the stage's width.
        condition_dim: number of classes; None without labels.
        condition_embedding_dim: length of the class embedding; the width of the last stage by default.
        kernel_size: side of the grouped convolutions, odd.

    Raises:
        ValueError: names the size that does not fit the others.

    References:
        Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", arXiv 2501.05441, section 4.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        resolution: int,
        width_per_stage: Sequence[int],
        cardinality_per_stage: Sequence[int],
        blocks_per_stage: Sequence[int],
        expansion_factor: int = 2,
        condition_dim: int | None = None,
        condition_embedding_dim: int | None = None,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        _check_sizes(resolution, width_per_stage, cardinality_per_stage, blocks_per_stage, kernel_size)
        self.in_channels, self.resolution, self.condition_dim = in_channels, resolution, condition_dim
        outputs = 1 if condition_dim is None else condition_embedding_dim or width_per_stage[-1]
        ends = [_downsample(width, to) for width, to in itertools.pairwise(width_per_stage)]
        ends.append(_basis(width_per_stage[-1], outputs))
        sizes = zip(width_per_stage, cardinality_per_stage, blocks_per_stage, ends, strict=True)
        common = (expansion_factor, kernel_size, sum(blocks_per_stage))
        stages = []
        for width, groups, blocks, end in sizes:
            layers = [_ResidualBlock(width, groups, *common) for _ in range(blocks)]
            stages.append(_named(Layers=nn.Sequential(*layers, end)))
        self.ExtractionLayer = _convolution(in_channels, width_per_stage[0])
        self.MainLayers = nn.Sequential(*stages)
        if condition_dim is not None:
            self.EmbeddingLayer = _msr(nn.Linear(condition_dim, outputs, bias=False), 1 / math.sqrt(outputs))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return one logit an image.

        Args:
            x: images ``(B, C, H, W)`` in the units of the training data.
            labels: classes ``(B,)``, integers, or weights of the classes ``(B, classes)``. Without them a
                class-conditional discriminator returns the logit averaged over its classes.

        Returns:
            Logits ``(B,)``, in the dtype of the weights.

        Raises:
            ValueError: when the images or the labels do not fit the network.
        """
        shape = (self.in_channels, self.resolution, self.resolution)
        if tuple(x.shape[1:]) != shape:
            raise UserError(
                f"this discriminator takes x of shape (B, {str(shape)[1:]}, got {tuple(x.shape)}; build one with "
                "in_channels and resolution of the samples"
            )
        embedding = self._embedding(labels)
        h: Tensor = self.MainLayers(self.ExtractionLayer(x.to(next(self.parameters()).dtype)))
        return h.squeeze(1) if embedding is None else (h * embedding).sum(dim=1)

    def _embedding(self, labels: Tensor | None) -> Tensor | None:
        """Return class embeddings ``(B, E)``, or their mean ``(E,)``; None without classes."""
        if self.condition_dim is None and labels is None:
            return None
        if self.condition_dim is None:
            raise UserError("labels came to a discriminator without classes; build it with condition_dim")
        table = self.EmbeddingLayer.weight.T
        if labels is None:
            return table.mean(dim=0)
        if labels.ndim == 2 and labels.shape[1] == self.condition_dim:
            return labels.to(table.dtype) @ table
        if labels.ndim == 1 and not labels.is_floating_point():
            return F.embedding(labels, table)
        raise UserError(
            f"labels must be integers (B,) or weights (B, {self.condition_dim}), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )


class _ResidualBlock(nn.Module):
    """``x + conv1x1(act(grouped(act(conv1x1(x)))))``; scaled so that the sum of all branches keeps its variance."""

    def __init__(self, width: int, cardinality: int, expansion: int, kernel: int, total_blocks: int) -> None:
        super().__init__()
        inner = width * expansion
        if inner % cardinality:
            raise UserError(f"cardinality_per_stage must divide {expansion} * {width}, got {cardinality}")
        # Fixup: two of a branch's three layers are drawn, so each carries the fourth root of the block count.
        gain = _ACTIVATION_GAIN * total_blocks ** (-1 / 4)
        self.LinearLayer1 = _convolution(width, inner, gain=gain)
        self.LinearLayer2 = _convolution(inner, inner, kernel, groups=cardinality, gain=gain)
        self.LinearLayer3 = _convolution(inner, width, gain=0.0)
        self.NonLinearity1 = _BiasedActivation(inner)
        self.NonLinearity2 = _BiasedActivation(inner)

    def forward(self, x: Tensor) -> Tensor:
        h = self.LinearLayer1(x)
        h = self.LinearLayer2(self.NonLinearity1(h))
        return torch.add(x, self.LinearLayer3(self.NonLinearity2(h)))


class _BiasedActivation(nn.Module):
    """Leaky ReLU of slope 0.2 after a bias; its gain is in the weights before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.Bias[:, None, None], _SLOPE)


class _LowPass(nn.Module):
    """Filter [1, 2, 1], mean of neighbors and every other pixel, in one: [1, 3, 3, 1] with stride 2."""

    Kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("Kernel", line[:, None] * line)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.Kernel.expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def _downsample(inputs: int, outputs: int) -> nn.Sequential:
    """Half the resolution without aliasing, then a 1 x 1 convolution where the width changes."""
    if inputs == outputs:
        return _named(Resampler=_LowPass())
    return _named(Resampler=_LowPass(), LinearLayer=_convolution(inputs, outputs))


def _basis(inputs: int, outputs: int) -> nn.Sequential:
    """Weighted sum of the last 4 x 4 pixels of each channel, then a linear layer."""
    basis = _msr(nn.Conv2d(inputs, inputs, 4, groups=inputs, bias=False))
    return _named(Basis=basis, Flatten=nn.Flatten(), LinearLayer=_msr(nn.Linear(inputs, outputs, bias=False)))


def _convolution(inputs: int, outputs: int, kernel: int = 1, groups: int = 1, gain: float = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return _named(Layer=_msr(layer, gain))


def _named(**layers: nn.Module) -> nn.Sequential:
    """Return layers in sequence, under the published names."""
    return nn.Sequential(OrderedDict(layers))


def _msr(layer: _L, gain: float = 1.0) -> _L:
    """Draw weights of variance ``gain^2 / fan_in`` (He et al., arXiv 1502.01852)."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    return layer


def _check_sizes(side: int, widths: Sizes, groups: Sizes, blocks: Sizes, kernel: int) -> None:
    lengths = len(widths), len(groups), len(blocks)
    if not lengths[0] == lengths[1] == lengths[2] > 0:
        names = "width_per_stage, cardinality_per_stage and blocks_per_stage"
        raise UserError(f"{names} must have one entry a stage, got {lengths}")
    if side != (resolution := 4 << (len(widths) - 1)):
        raise UserError(f"{len(widths)} stages want resolution {resolution}, got {side}; add or drop stages")
    if min(blocks) < 1 or kernel % 2 == 0:
        raise UserError(f"want blocks_per_stage >= 1 and an odd kernel_size, got {blocks} and {kernel}")


def load_discriminator(path: str | Path) -> R3GANDiscriminator:
    """Read a discriminator from safetensors, or from a published R3GAN pickle, which is not executed.

    Args:
        path: safetensors with the published names (with a prefix ``net.``, only those are read), or a pickle with an
            entry ``D``. Sizes follow from the weights.

    Returns:
        The discriminator, in the file's dtype and on the CPU.

    Raises:
        ValueError: when the file is damaged, unsafe, or holds another architecture.
        FileNotFoundError: when there is no such file.
    """
    path = Path(path)
    weights = _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
    try:
        with torch.device("meta"):  # draws no random weights
            network = R3GANDiscriminator(**_sizes(weights))
        network.load_state_dict(weights, assign=True)
    except (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} holds no R3GAN discriminator ({error_text(error)}); its names should be "
            "ExtractionLayer.Layer.weight, MainLayers.0.Layers.0.LinearLayer1.Layer.weight, ..."
        ) from error
    return network


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    with explained(f"{path} is not a whole safetensors file"):
        weights, _ = read_safetensors(path)
    return strip_prefix(weights, "net.") or weights


def _from_pickle(path: Path) -> dict[str, Tensor]:
    data = read_pickle(path)
    if not (isinstance(data, Mapping) and isinstance(data.get("D"), Persistent)):
        raise UserError(f"{path} has no network 'D', R3GAN's discriminator; it holds {contents(data)}")
    # The published D wraps the network proper, for its training loop.
    return {name.removeprefix("Model."): value for name, value in state_dict_of(data["D"]).items()}


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the constructor's arguments, from the shapes of the weights."""
    stem = weights["ExtractionLayer.Layer.weight"]
    layer = "MainLayers.{}.Layers.{}.LinearLayer{}.Layer.weight".format
    widths: list[int] = []
    groups: list[int] = []
    blocks: list[int] = []
    while (first := weights.get(layer(len(widths), 0, 1))) is not None:
        stage = len(widths)
        if stage >= _MOST_STAGES:
            raise UserError(f"more than {_MOST_STAGES} stages")
        grouped = weights[layer(stage, 0, 2)]
        widths.append(first.shape[1])
        groups.append(grouped.shape[0] // grouped.shape[1])
        blocks.append(
            next((n for n in range(1, _MOST_BLOCKS) if layer(stage, n, 1) not in weights), _MOST_BLOCKS)
        )
    expanded, width, *_ = weights[layer(0, 0, 1)].shape
    sizes = stages(stem.shape[1], widths, groups, blocks) | {"expansion_factor": expanded // width}
    sizes["kernel_size"] = weights[layer(0, 0, 2)].shape[-1]
    if (embedding := weights.get("EmbeddingLayer.weight")) is not None:
        sizes["condition_embedding_dim"], sizes["condition_dim"] = embedding.shape
    return sizes
