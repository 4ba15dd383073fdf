"""Models with exact answers: a Gaussian whose probability flow is closed form, and a mixture of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gas.classical.registry import Classical
from gas.models.custom import OwnModel
from gas.models.runtime import WrappedModel
from gas.models.seeds import noise_of_seeds
from gas.pairs.teacher import teach
from gas.schedule import Schedule, VPLinear


@dataclass(frozen=True)
class Gaussian:
    """Data ``N(mean, std^2)`` per coordinate: the denoiser is affine and the flow is known exactly."""

    schedule: Schedule = field(default_factory=VPLinear)
    mean: float = 0.3
    std: float = 0.5

    def denoise(self, x, t):
        alpha, sigma = self.schedule(t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def state(self, z, t):
        """The exact probability-flow state at time t of the trajectory labelled by z ~ N(0, 1)."""
        alpha, sigma = self.schedule(t)
        return alpha * self.mean + (alpha**2 * self.std**2 + sigma**2).sqrt() * z


@dataclass(frozen=True)
class Mixture:
    """Two-dimensional mixture of Gaussians on a ring, class k its k-th mode, as a full model."""

    schedule: Schedule = field(default_factory=VPLinear)
    name: str = "mixture"
    sample_shape: tuple[int, ...] = (2,)
    t_end: float = 1e-3
    classes: int = 5
    std: float = 0.15

    device = torch.device("cpu")

    def fingerprint(self):
        return {
            "name": self.name,
            "sha256": "0" * 64,
            "prediction": "x0",
            "sample_shape": list(self.sample_shape),
        }

    def noise(self, seeds):
        return noise_of_seeds(self.sample_shape, seeds)

    def modes(self, dtype=torch.float32):
        angle = 2 * torch.pi * torch.arange(self.classes, dtype=torch.float64) / self.classes
        return torch.stack([angle.cos(), angle.sin()], dim=1).to(dtype)

    def denoise(self, x, t):
        alpha, sigma = self.schedule(t)
        modes, total = self.modes(x.dtype), alpha**2 * self.std**2 + sigma**2
        offset = x[:, None] - alpha * modes
        weight = torch.softmax(-offset.square().sum(2) / (2 * total), dim=1)
        each = modes + (alpha * self.std**2 / total) * offset
        return (weight[..., None] * each).sum(1)

    def bind(self, labels, guidance=1.0):
        if labels is None:
            return self.denoise

        def denoise(x, t):
            alpha, sigma = self.schedule(t)
            mode = self.modes(x.dtype)[labels]
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
            return mode + gain * (x - alpha * mode)

        return denoise


MIXTURE = Mixture()


def guided_mixture():
    """The mixture with a null class, for guidance: class k is its k-th mode, the null class all of them."""

    def denoise(x, t, labels):
        modes = MIXTURE.bind(labels.clamp(max=MIXTURE.classes - 1))(x, t)
        return torch.where((labels == MIXTURE.classes)[:, None], MIXTURE.denoise(x, t), modes)

    return OwnModel(
        denoise, MIXTURE.schedule, (2,), name="guided mixture", t_end=1e-3, classes=5, null=MIXTURE.classes
    )


def taught(seeds, *, labelled=False):
    """Pairs of the mixture's usual teacher."""
    teacher = Classical("unipc-3-bh2", "log_snr", 20, MIXTURE.t_end)
    return teach(MIXTURE, teacher.table(MIXTURE.schedule), seeds, labelled=labelled)


class Counting(WrappedModel):
    """Counts the samples that pass through the network."""

    rows = 0

    def bind(self, labels, guidance=1.0):
        denoise = self.model.bind(labels, guidance)

        def counted(x, t):
            Counting.rows += len(x)
            return denoise(x, t)

        return counted
