"""Fidelity and diversity: precision, recall, density and coverage by nearest neighbors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gas.errors import UserError
from gas.metrics.kernel import feature_sets

# A block of distances of 8 MiB in float64: memory does not grow with the product of the two counts.
_BLOCK = 2**20


@dataclass(frozen=True)
class PRDC:
    """Precision, recall, density and coverage of samples; see :func:`prdc`.

    Args:
        precision: share of samples within the ball of some datum, in [0, 1].
        recall: share of data within the ball of some sample, in [0, 1].
        density: number of data balls that hold a sample, averaged over samples and divided by k; about 1 for
            equal laws, and not bounded by 1. An outlier of the data owns one large ball, which makes every
            sample in it precise, but adds to density no more than ``1 / k``.
        coverage: share of data whose ball holds a sample, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(fake: Tensor, real: Tensor, k: int = 5) -> PRDC:
    """Return precision, recall, density and coverage of samples ``y_1..y_M`` with respect to data ``x_1..x_N``.

    With ``B(x_i)`` the closed ball about ``x_i`` that reaches to its k-th nearest neighbor among the other data:
    ``precision = mean_j 1[y_j in any B(x_i)]``, ``recall`` the same with the two sets exchanged,
    ``density = sum_ij 1[y_j in B(x_i)] / (k M)``, ``coverage = mean_i 1[any y_j in B(x_i)]``.

    For samples of the data's own law the expected density is 1 and the expected coverage is
    ``1 - prod_{l=1..k} (N - l) / (M + N - l)``, whatever the law: read a coverage against this number.

    A sample that rounding cannot tell from the rim counts as inside. Only repeated or tied features notice: two copies
    of one set have density ``(k + 1) / k`` where no distances tie, as a point lies in its own ball too.

    Args:
        fake: ``(M, F)`` features of samples, M > k.
        real: ``(N, F)`` features of the data, N > k, moved to the device of ``fake``.
        k: neighbors that a ball reaches to, at least 1. Compare numbers of one k and equal counts only.

    Raises:
        UserError: for features that are not two finite matrices of one width, or too few samples.

    References:
        Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2 (precision, recall);
        Naeem et al., arXiv 2002.09797, section 3 (density, coverage and their expectations).

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> prdc(x[:3], x, k=1)
    PRDC(precision=1.0, recall=0.75, density=2.6666666666666665, coverage=1.0)
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    fake, real = feature_sets(fake, real, least=k + 1)
    # Rounding of the expanded squares grows with the distance from the origin: center the data there.
    center = real.mean(dim=0)
    fake, real = fake - center, real - center
    fake_radii, real_radii = _radii(fake, k), _radii(real, k)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    inside = recalled = covered = 0
    for rows, distances, slack in _blocks(real, fake):
        in_real = distances <= real_radii[rows, None] + slack
        in_fake = distances <= fake_radii + slack
        precise |= in_real.any(dim=0)
        inside += int(in_real.sum())
        recalled += int(in_fake.any(dim=1).sum())
        covered += int(in_real.any(dim=1).sum())
    m, n = len(fake), len(real)
    return PRDC(float(precise.sum()) / m, recalled / n, inside / (k * m), covered / n)


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance ``(S,)`` of each row to the k-th nearest of the other rows."""
    # One tensor, filled: small ones that outlive a block would split the memory the next could reuse.
    radii = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for rows, distances, _ in _blocks(x, x):
        # A row is not its own neighbor, but an equal row is: exclude by place, not by distance.
        distances[torch.arange(len(rows), device=x.device), rows] = torch.inf
        radii[rows] = distances.kthvalue(k, dim=1).values
    return radii


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield row numbers, squared distances ``(rows, len(y))`` and their rounding, a block of rows at a time."""
    # |x|^2 + |y|^2 - 2 x . y is an order of magnitude faster than differences, at an error of up to
    # F eps (|x|^2 + |y|^2): twice that covers a distance and a radius.
    slack = 2 * x.shape[1] * torch.finfo(x.dtype).eps
    y_norms = y.square().sum(dim=1)
    for rows in torch.arange(len(x), device=x.device).split(max(1, _BLOCK // len(y))):
        block = x[rows]
        norms = block.square().sum(dim=1, keepdim=True) + y_norms
        yield rows, norms - 2 * (block @ y.T), slack * norms
