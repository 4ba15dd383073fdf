"""A small digit classifier; the zoo's Frechet distances are measured in its features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Four 3x3 convolutions and two linear layers, down to ``features`` numbers and ``classes`` logits.

    Args:
        size: side of the square images, a multiple of 4.
        channels: image channels.
        width: channels of the first convolution.
        features: length of the feature vector.
        classes: number of classes.
    """

    def __init__(
        self, *, size: int, channels: int = 1, width: int = 32, features: int = 64, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.embed = nn.Linear(2 * width * (size // 4) ** 2, features)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` in [-1, 1] to feature vectors ``(B, features)``."""
        h = F.relu(self.conv1(F.relu(self.conv0(x))))
        h = F.max_pool2d(h, 2)
        h = F.relu(self.conv3(F.relu(self.conv2(h))))
        h = F.max_pool2d(h, 2)
        return F.relu(self.embed(self.dropout(h.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)``."""
        logits: Tensor = self.out(self.features(x))
        return logits
