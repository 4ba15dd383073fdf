"""What all solvers of a comparison are measured on: unseen noise, a space of features, and a few pictures to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gas.evaluation.evaluator import Comparison, Yardstick
from gas.experiments.experiment import ends_of
from gas.metrics import paired
from gas.models.protocol import Model, decoder_of

__all__ = ["Ruler"]

# Most pixels a side of a kept picture: what a report shows of it.
_SIDE = 128
# Counts how often figures of a measurement have come to mean something else: cells with others are measured anew.
_FIGURES = 2


@dataclass(frozen=True, eq=False)
class Ruler:
    """Measures samples against the teacher's of the same noise, and against data.

    Args:
        model: whose decoder makes pictures of samples, where it has one.
        yardstick: unseen pairs, features, references.
        told: what features and references these are, in plain JSON; a measurement by others is made anew.
        pictures: samples that are kept as pictures, from the first.
        said: the same as ``told``, for people.
    """

    model: Model
    yardstick: Yardstick
    told: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 8
    said: str = ""

    def needs(self) -> dict[str, Any]:
        """Return everything that decides a measurement, beside the solver, in plain JSON."""
        settings = {"unseen": ends_of(self.yardstick.pairs), "pictures": self.pictures, "figures": _FIGURES}
        return {**settings, **self.told}

    def measure(self, name: str, made: Tensor, nfe: int) -> tuple[Comparison | None, Tensor, Tensor | None]:
        """Return the measurements, the squared error of every sample ``(S,)``, and pictures of the first few.

        Samples that are not finite have no measurements. Errors and pictures are rounded as a store keeps them, so
        that a run that goes on tells and draws the same as one that was never interrupted.
        """
        errors = paired.mse(made, self.yardstick.pairs.target).float()
        if not bool(made.isfinite().all()):
            return None, errors, None
        return self.yardstick.measure(name, made, nfe), errors, self.pictures_of(made)

    @torch.no_grad()
    def pictures_of(self, made: Tensor) -> Tensor | None:
        """Return the first samples as pictures ``(K, C, H, W)`` in [-1, 1], small; none where they are no pictures."""
        decode = decoder_of(self.model)
        some = made[: self.pictures]
        seen = some if decode is None else decode(some.to(self.model.device)).float().cpu()
        if seen.ndim != 4 or seen.shape[1] not in (1, 3) or not len(seen):
            return None
        side = max(seen.shape[2:])
        if side > _SIDE:
            size = [max(1, round(_SIDE * length / side)) for length in seen.shape[2:]]
            seen = interpolate(seen, size, mode="bilinear", antialias=True)
        return seen.clamp(-1, 1).half().float()
