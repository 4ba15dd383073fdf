"""Paired errors: each sample against the teacher's sample of the same seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gas.errors import UserError


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared error of each sample, ``mean_i (a_i - b_i)^2``: ``(B,)`` float64.

    Args:
        a: samples, shape ``(B, *)``, any real dtype.
        b: their references, the same shape; row k is the same seed as row k of ``a``.

    Raises:
        UserError: when the shapes differ, or there is no batch dimension, or a dimension is empty.

    >>> mse(torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.zeros(2, 2)).tolist()
    [0.0, 5.0]
    """
    return _difference(a, b).square().mean(dim=1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute error of each sample, ``mean_i |a_i - b_i|``, as :func:`mse`.

    >>> l1(torch.tensor([[0.0, 0.0], [1.0, -3.0]]), torch.zeros(2, 2)).tolist()
    [0.0, 2.0]
    """
    return _difference(a, b).abs().mean(dim=1)


def psnr(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each sample in dB, ``10 log10(data_range^2 / mse)``, as :func:`mse`.

    ``data_range`` is the largest minus the smallest possible value: 2 for images in [-1, 1], 1 for [0, 1]. The ratio is
    infinite where the two are equal.

    >>> psnr(torch.full((1, 4), 0.2), torch.zeros(1, 4)).round(decimals=4).tolist()
    [20.0]
    """
    if not 0 < data_range < math.inf:
        raise UserError(f"data_range must be a positive number (2 for images in [-1, 1]), got {data_range}")
    return 20 * math.log10(data_range) - 10 * mse(a, b).log10()


def mean_psnr(errors: Tensor, data_range: float | None) -> float | None:
    """Return the mean over samples of ``10 log10(data_range^2 / mse_k)`` in dB, of their squared errors ``(S,)``.

    The logarithm comes before the mean, so that a few bad samples do not decide it as they decide a mean squared error.
    ``None`` without a range, and where a sample has no error, whose ratio is infinite.
    """
    if data_range is None or not bool((errors > 0).all()):
        return None
    return 20 * math.log10(data_range) - 10 * float(errors.double().log10().mean())


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a - b`` as ``(B, D)`` float64, or say why the two cannot be paired."""
    if a.shape != b.shape:
        raise UserError(
            f"a and b must be the same seeds in the same shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.ndim < 2 or a.numel() == 0:
        raise UserError(f"a and b must be batches (B, *) of at least one value, got shape {tuple(a.shape)}")
    return (a.to(torch.float64) - b.to(torch.float64)).flatten(1)
