"""A model around another: in all but how it is asked, the model that it wraps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gas.denoise import Denoiser
from gas.model import Model
from gas.schedule import Schedule

__all__ = ["WrappedModel"]


@dataclass(frozen=True, eq=False)
class WrappedModel:
    """A model whose denoisers are another's, asked in another way, which a subclass says in :meth:`bind`.

    Args:
        model: the model.
    """

    model: Model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.model.sample_shape

    @property
    def t_end(self) -> float:
        return self.model.t_end

    @property
    def classes(self) -> int:
        return self.model.classes

    @property
    def device(self) -> torch.device:
        return self.model.device

    def identity(self) -> Mapping[str, Any]:
        """Return the model's identity."""
        return self.model.identity()

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts of these seeds, as the model does."""
        return self.model.noise(seeds)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 without any condition."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes ``(B,)``."""
        return self.model.bind(labels, guidance)

    def __getattr__(self, name: str) -> Any:
        """Return what else the model has: features, a reference."""
        return getattr(self.__dict__["model"], name)
