"""Linearization: derivatives of a sample in every number of its solver, by differences of the frozen network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gas import distributed
from gas.denoise import Denoiser, call_preserving, select_branches
from gas.table import Table

__all__ = ["Normal", "evaluations_of", "linearize", "normal_equations", "numbers"]

T = TypeVar("T")

# Bytes of the tangents of one batch, which are held at once; larger batches are split. Any machine has 256 MB.
_TANGENT_BYTES = 2**28


def numbers(table: Table) -> Tensor:
    """Return the numbers that decide a solver's samples ``(P,)``: of each row its time and its weights of x_T and d_j.

    The folded table has no state but x_T, so these P = N (N + 5) / 2 numbers are independent.
    """
    folded = table.folded()
    rows = range(folded.nfe)
    parts = [(folded.times[n : n + 1], folded.states[n, :1], folded.outputs[n, : n + 1]) for n in rows]
    return torch.cat([part for row in parts for part in row])


def evaluations_of(nfe: int) -> int:
    """Return the network evaluations of :func:`linearize` a sample: N calls, N for times, the rest for weights."""
    return sum(2 + n * (n + 5) // 2 for n in range(nfe))


@torch.no_grad()
def linearize(denoise: Denoiser, x: Tensor, table: Table) -> tuple[Tensor, Tensor, int]:
    """Run a table and differentiate its sample in each of its :func:`numbers`.

    A weight of row n moves ``x_{n+1}`` along a prediction that is known anyway, so its tangent costs nothing
    before the next network call; the last row is linear. Every tangent at the input of a call costs one
    more network evaluation: ``(D(x + h v, t) - D(x, t)) / h``. Differences need only the network's predictions, work
    where forward-mode derivatives are not implemented, and cost less.

    Args:
        denoise: the frozen denoiser.
        x: the start ``(B, *)``, float32 or wider.
        table: the solver.

    Returns:
        The sample ``(B, *)``, its derivatives ``(P, B, *)``, and the network evaluations of single samples spent.
    """
    folded = table.folded()
    history, tangents = [x], [x.new_zeros((0, *x.shape))]
    moved, calls = x.new_zeros((0, *x.shape)), 0
    for n in range(folded.nfe):
        evaluated = denoise if folded.branches is None else select_branches(denoise, folded.branches[n])
        prediction, derivative, spent = _predict(evaluated, x, folded.times[n], moved)
        calls += spent
        history.append(prediction)
        tangents.append(derivative)
        weights = [float(w) for w in (folded.states[n, 0], *folded.outputs[n, : n + 1])]
        x = torch.stack([w * h for w, h in zip(weights, history, strict=True)]).sum(0)
        moved = x.new_zeros((len(derivative), *x.shape))
        for weight, tangent in zip(weights, tangents, strict=True):
            moved[: len(tangent)] += weight * tangent
        moved = torch.cat([moved, torch.stack(history)])
    return x, moved, calls * len(x)


@dataclass(frozen=True)
class Normal:
    """Squared residuals of a batch's pairs to second order: ``loss + 2 gradient . dz + dz . curvature dz``.

    ``losses`` and ``weights`` are ``(B,)``; ``loss``, ``gradient (P,)`` and ``curvature (P, P)`` are means of the
    pairs, each times its weight.
    """

    losses: Tensor
    weights: Tensor
    gradient: Tensor
    curvature: Tensor
    evaluations: int

    @property
    def loss(self) -> float:
        """The weighted mean loss."""
        return float((self.weights * self.losses).mean())


@torch.no_grad()
def normal_equations(
    bind: Callable[[slice], Denoiser],
    x: Tensor,
    target: Tensor,
    table: Table,
    features: Callable[[Tensor], Tensor] | None = None,
    outlier: float = math.inf,
) -> Normal:
    """Linearize ``mean w |f(sample) - f(target)|^2`` in the table's :func:`numbers`.

    Args:
        bind: the denoiser for a part of the batch.
        x: starts ``(B, *)``.
        target: the teacher's samples ``(B, *)``.
        table: the solver.
        features: f, ``(B, *) -> (B, F...)``; by default the samples themselves.
        outlier: bound of a pair's loss, in medians of the batch's: w weights a larger one down to it, else w is 1.
    """
    count = len(numbers(table.detach()))
    size = max(1, _TANGENT_BYTES // (2 * count * x[0].numel() * x.element_size()))
    losses, gradients, curvatures, evaluations = [], [], [], 0
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        samples, tangents, spent = linearize(bind(part), x[part], table)
        residual, columns = _residual(samples, tangents, target[part].to(samples), features)
        losses.append(residual.square().sum(1).cpu())
        gradients.append((columns @ residual[..., None])[..., 0].cpu())
        curvatures.append((columns @ columns.mT).cpu())
        evaluations += spent
    loss = torch.cat(losses)
    limit = outlier * loss.median()
    weights = torch.where(loss > limit, limit / loss, torch.ones_like(loss))
    parts = {
        "losses": loss,
        "weights": weights,
        "gradient": (weights[:, None] * torch.cat(gradients)).mean(0),
        "curvature": (weights[:, None, None] * torch.cat(curvatures)).mean(0),
    }
    # All processes share the same derivatives, but their products may round differently: take those of the first.
    return Normal(**distributed.broadcast(lambda: parts), evaluations=evaluations)


def _residual(
    samples: Tensor, tangents: Tensor, target: Tensor, features: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Residuals ``(B, R)`` and derivatives ``(B, P, R)`` in float64, scaled so that a loss is their square."""
    if features is not None:
        extracted = features(samples)
        tangents = _stacked(lambda v: _difference(features, samples, extracted, v), tangents, extracted)
        samples, target = extracted, features(target)
    scale = samples[0].numel() ** -0.5
    columns = tangents.double().flatten(2).transpose(0, 1)
    return (samples - target).double().flatten(1) * scale, columns * scale


def _predict(denoise: Denoiser, x: Tensor, t: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the prediction at ``(x, t)``, its derivatives along every tangent of x and, last, in t; and the calls."""
    denoise = _preserving(denoise)
    prediction = denoise(x, t)
    # Towards the data from the noisy half and back from the other: times stay within the schedule's range.
    step = 4 * _relative_step(x) * float(t) * (-1 if float(t) > 0.5 else 1)

    def column(v: Tensor | None) -> Tensor:
        if v is None:
            return (denoise(x, t + step) - prediction) / step
        return _difference(lambda y: denoise(y, t), x, prediction, v)

    columns = _stacked(column, [*tangents, None], prediction)
    nonzero = int(tangents.flatten(1).any(1).sum())  # a tangent of zero needs no call
    return prediction, columns, nonzero + 2


def _preserving(denoise: Denoiser) -> Denoiser:
    """Return the denoiser with its input safe from it, and every prediction safe from the next."""
    return lambda x, t: call_preserving(denoise, x, t).clone()


def _stacked(column: Callable[[T], Tensor], directions: Iterable[T], like: Tensor) -> Tensor:
    """Return the derivatives along every direction; processes share the directions, so batch sizes stay the same."""
    return torch.stack([derivative.to(like) for derivative in distributed.map_sharded(column, directions)])


def _difference(function: Callable[[Tensor], Tensor], x: Tensor, at: Tensor, v: Tensor) -> Tensor:
    """Return the derivative of a function along ``v``, by a step in proportion to ``x``."""
    size = float(torch.linalg.vector_norm(v))
    if size == 0:
        return torch.zeros_like(at)
    step = _relative_step(x) * float(torch.linalg.vector_norm(x)) / size
    return (function(x + step * v) - at) / step


def _relative_step(x: Tensor) -> float:
    """Return the step where truncation and rounding errors of a forward difference are about equal: 1e-3 in float32."""
    eps: float = torch.finfo(x.dtype).eps
    return math.exp(0.43 * math.log(eps))
