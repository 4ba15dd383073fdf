"""DMN: the time grid that minimizes a bound on the sample's error, without a network."""

from __future__ import annotations

import torch
from torch import Tensor

from gas import grids
from gas.errors import UserError
from gas.grids.analytic import finite_half_log_snr
from gas.schedule import Schedule

# Predictions at the first three times have large errors, so their weights must not be allowed to cancel.
_APART = 3
# Share of an even spacing that every step keeps, so that times never coincide on the way.
_EVEN = 0.02


def error_bound(lam: Tensor, power: int = 2) -> Tensor:
    """Bound the error of ``x_N / sigma_N`` on a grid, when prediction n has the error ``sigma_n^p / alpha_n``.

    The solver interpolates predictions by Lagrange polynomials in the half log-SNR: the last three, two before the
    last step, one in it. With ``W_{s,n}`` step s's weight of prediction n (:func:`lagrange_weights`) and ``e`` the
    predictions' errors, this is ``sum_{s<3} |W_s e|_2 + sum_n |sum_{s>=3} W_{s,n}| e_n``.

    Args:
        lam: N + 1 finite half log-SNR, increasing, of a variance-preserving process.
        power: p, at least 1.

    References:
        Xue et al., arXiv 2402.17376; errors, orders and the first three steps apart as in the authors' code.
    """
    steps = len(lam) - 1
    error = torch.sigmoid(-2 * lam) ** (power / 2) / torch.sigmoid(2 * lam) ** 0.5
    total, late = lam.new_zeros(()), [lam.new_zeros(())] * steps
    for s in range(steps):
        used = range(s, s - max(1, min(3, s + 1, steps - s)), -1)
        terms = lagrange_weights(lam, s, len(used)) * error[list(used)]
        if s < _APART:
            total = total + torch.linalg.vector_norm(terms)
            continue
        for n, term in zip(used, terms, strict=True):
            late[n] = late[n] + term
    return total + torch.stack(late).abs().sum()


def lagrange_weights(lam: Tensor, step: int, order: int) -> Tensor:
    """Return ``int e^l L_j(l) dl`` over a step, ``(order,)``: L_j Lagrange's polynomials of the newest predictions."""
    h = lam[step + 1] - lam[step]
    moments = [torch.expm1(h)]
    for k in range(1, order):
        moments.append(h.exp() * h**k - k * moments[-1])
    nodes = lam[step - order + 1 : step + 1].flip(0) - lam[step]
    powers = torch.stack([nodes**k for k in range(order)])
    weights: Tensor = torch.linalg.solve(powers, torch.stack(moments))
    return lam[step].exp() * weights


def dmn(schedule: Schedule, nfe: int, t_end: float, power: int = 2) -> Tensor:
    """Return the ``nfe + 1`` times that minimize :func:`error_bound`, starting from the log-SNR grid.

    Where the half log-SNR is infinite, at a flow's ends, it is measured from as far inside as that grid does. ``power``
    is p of the bound, at least 1.

    References:
        Xue et al., arXiv 2402.17376: there by a constrained trust region, here over shares of the
        log-SNR range, which need no constraints.
    """
    if power < 1:
        raise UserError(f"power must be at least 1, got {power}")
    t = grids.log_snr(schedule, nfe, t_end)
    if nfe == 1:
        return t
    first, last = finite_half_log_snr(schedule, t_end)
    shares = torch.zeros(nfe, dtype=torch.float64, requires_grad=True)

    def levels() -> Tensor:
        gaps = _EVEN / nfe + (1 - _EVEN) * torch.softmax(shares, 0)
        return first + (last - first) * torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])

    def closure() -> Tensor:
        with torch.enable_grad():
            value = error_bound(levels(), power).log()
            (shares.grad,) = torch.autograd.grad(value, shares)
        return value

    torch.optim.LBFGS([shares], max_iter=200, line_search_fn="strong_wolfe").step(closure)
    t[1:-1] = schedule.inverse_half_log_snr(levels().detach())[1:-1]
    return t
