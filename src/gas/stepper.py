"""A table at work: one row at a time, holding what later rows need."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from gas.table import Table

__all__ = ["Stepper", "is_learned"]

# A float, or a float64 scalar that is being learned.
Weight = float | Tensor


class Stepper:
    """Runs a table row by row, for whoever asks the network themselves::

        stepper = gas.Stepper(table)
        for t in stepper.times:
            x = stepper.step(x, denoise(x, t))  # row n: sum_j states[n, j] x_j + sum_j outputs[n, j] d_j

    Coefficients are read once. An exact zero costs nothing and its state or answer is not looked at (unless the
    table is being learned), and what no later row weighs is let go. A row is summed in float32 at least and rounded
    once, to the dtype of ``x``. Nothing handed in or out is ever changed, and answers are kept, not copied: a
    denoiser must not write again into what it returned.

    Args:
        table: the solver.
        fold: whether to run :meth:`gas.Table.folded`, with no state but ``x_T``; by default where that has fewer
            terms. Say ``False`` where states are changed between rows, as inpainting does: of a folded solver only
            the start and the answers count.

    Attributes:
        times: what the network is told, one float64 scalar a row.
    """

    def __init__(self, table: Table, *, fold: bool | None = None) -> None:
        self.times = table.times.unbind()
        self._rows = _rows(table, fold)
        self._last = {key: n for n, row in enumerate(self._rows) for key in row}
        self._done = 0
        self._past: dict[int, Tensor] = {}

    def step(self, x: Tensor, d: Tensor) -> Tensor:
        """Return the next state, in the dtype of ``x``.

        Args:
            x: the newest state ``(B, *)``.
            d: the network's answer to it, of its shape.

        Raises:
            ValueError: when every row has been run, or the answer is of another shape.
        """
        if self._done == len(self._rows):
            raise ValueError(f"all {self._done} rows of the table have been run: start a new Stepper")
        if d.shape != x.shape:
            raise ValueError(
                f"the network's answer must be of the shape of x, {tuple(x.shape)}, got {tuple(d.shape)}: "
                "a denoiser returns an estimate of x_0"
            )
        n, self._done = self._done, self._done + 1
        past = self._past
        for key, new in ((2 * n, x), (2 * n + 1, d)):
            if key in self._last:
                past[key] = new
        made = _weighted(self._rows[n], past, x.dtype if torch.finfo(x.dtype).bits > 16 else torch.float32)
        for key in [key for key in past if self._last[key] <= n]:
            del past[key]
        return torch.zeros_like(x) if made is None else made.to(x.dtype)


def _weighted(terms: dict[int, Weight], past: dict[int, Tensor], dtype: torch.dtype) -> Tensor | None:
    """Sum the terms one after the other: no copy of the past is made, and autograd keeps nothing but the past."""
    made = None
    for key, weight in terms.items():
        if made is None:
            made = past[key].to(dtype) * weight
        elif isinstance(weight, Tensor):
            made = made + past[key].to(dtype) * weight
        elif torch.is_grad_enabled():
            made = torch.add(made, past[key], alpha=weight)
        else:
            made.add_(past[key], alpha=weight)
    return made


def _rows(table: Table, fold: bool | None) -> list[dict[int, Weight]]:
    """What each row weighs; numbers that are not being learned are read once, and again only if they changed."""
    parts = (table.states, table.outputs)
    if any(is_learned(part) or part.is_inference() for part in parts):
        return _read(table, fold)
    return _read_once(table, fold, *(part._version for part in parts))


@lru_cache(maxsize=128)
def _read_once(table: Table, fold: bool | None, *versions: int) -> list[dict[int, Weight]]:
    return _read(table, fold)


def _read(table: Table, fold: bool | None) -> list[dict[int, Weight]]:
    """The rows in the form asked for, or else in the shorter one: x_j under the key 2j, d_j under 2j + 1."""
    states, answers = range(0, 2 * table.nfe, 2), range(1, 2 * table.nfe, 2)
    rows = _terms(torch.cat([table.states, table.outputs], dim=1), [*states, *answers])
    if fold is False or not any(key in states[1:] for row in rows for key in row):
        return rows
    folded = _terms(table.unrolled()[1:], [0, *answers])
    return folded if fold or sum(map(len, folded)) < sum(map(len, rows)) else rows


def _terms(weights: Tensor, keys: list[int]) -> list[dict[int, Weight]]:
    """Numbers that are being learned stay tensors, zeros among them; of others zeros are left out."""
    learned = is_learned(weights)
    rows = [row.unbind() for row in weights.unbind()] if learned else weights.tolist()
    return [
        {key: w for key, w in zip(keys, row, strict=True) if key // 2 <= n and (learned or w)}
        for n, row in enumerate(rows)
    ]


def is_learned(weights: Tensor) -> bool:
    """Return whether a derivative is wanted, backward or forward."""
    return weights.requires_grad or unpack_dual(weights).tangent is not None
