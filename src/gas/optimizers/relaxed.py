"""Relaxed starts: each training pair's noise may move a little, so that a student of few numbers need not hit all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["RelaxedStarts"]


class RelaxedStarts:
    """Minimises over ``x_T'`` with ``|x_T' - x_T|_2 <= r sqrt(d)``, one projected step at each visit of a pair.

    The step goes down the pair's own loss, by a share of the radius whatever the gradient's size, and what leaves
    the ball is brought back to its surface. Validation and sampling start from ``x_T`` itself.

    Args:
        like: noise of all pairs ``(S, *)``.
        radius: r, in standard deviations of the noise.
        rate: length of a step as a share of the ball's radius.

    References:
        Tong et al., arXiv 2405.15506, equation 8; arXiv 2502.17423, equation 8.
    """

    def __init__(self, like: Tensor, radius: float, rate: float) -> None:
        self.reach, self.rate = radius * math.sqrt(like[0].numel()), rate
        self.offsets = torch.zeros_like(like)

    def of(self, indices: Tensor, noise: Tensor) -> Tensor:
        """Return the starts ``(B, *)`` of these pairs, ready for a gradient."""
        return (noise + self.offsets[indices].to(noise)).requires_grad_()

    def move(self, indices: Tensor, noise: Tensor, start: Tensor) -> None:
        """Take the step of these pairs, once the loss has been differentiated in :meth:`of`'s starts."""
        if start.grad is None:
            raise RuntimeError("a start without gradient cannot move")
        down = -start.grad.flatten(1)
        down = down / torch.linalg.vector_norm(down, dim=1, keepdim=True).clamp(min=1e-30)
        offset = (start.detach() - noise).flatten(1) + self.rate * self.reach * down
        size = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        offset = offset * (self.reach / size.clamp(min=self.reach))
        self.offsets[indices] = offset.view_as(noise).to(self.offsets)
