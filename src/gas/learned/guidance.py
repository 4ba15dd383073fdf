"""GuidanceBNS: one solver for every guidance scale of a range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gas.arguments import integer, number
from gas.display import brief
from gas.errors import UserError
from gas.schedule import Schedule, earliest_time
from gas.table import Table, refuse_residuals

MAX_DEGREE = 8  # of the polynomials: 2 is learned


def in_scales(guidance: float, scales: tuple[float, float]) -> bool:
    """Return whether a guidance scale lies between the first and the last, to the rounding of pipelines' float32."""
    first, last = scales
    rounding = 1e-6 * max(abs(first), abs(last))
    return first - rounding <= guidance <= last + rounding


class GuidanceBNS(nn.Module):
    """A :class:`gas.BNS` whose numbers are polynomials in the guidance scale w::

        q(w) = q_0 + u q_1 + .. + u^K q_K        u = (w - reference) / (last - first)

    q are the times and weights of a folded table, so that times and weights of every scale are a table of their own.

    Args:
        schedule: the forward process; it bounds the times.
        coefficients: ``q_0``, the table at the reference scale, to ``q_K``. With branches, every scale evaluates those
            of ``q_0``.
        t_end: time that sampling ends at.
        scales: first and last scale of the range.
        reference: the scale at which ``u = 0``, in the range: that of a call without a scale.

    Attributes:
        times: ``(K + 1, N)`` given to the network; ``q_0`` and those of a scale are clamped as in :class:`gas.BNS`.
        alpha: ``(K + 1, N)`` weights of ``x_T``.
        beta: ``(K + 1, N, N)`` weights of predictions, of no effect above the diagonal.

    Raises:
        UserError: when the range is empty, the reference lies outside of it, or the coefficients differ in NFE.
    """

    def __init__(
        self,
        schedule: Schedule,
        coefficients: Sequence[Table],
        t_end: float,
        *,
        scales: tuple[float, float],
        reference: float,
    ) -> None:
        super().__init__()
        self.first, self.last = (number("a guidance scale", scale, "(-inf, inf)") for scale in scales)
        if not self.first < self.last:
            raise UserError(f"guidance scales must be a range, got {self.first:g} to {self.last:g}")
        self.reference = number("the reference scale", reference, f"[{self.first}, {self.last}]")
        self.schedule, self.t_end = schedule, float(t_end)
        if len(nfes := {table.nfe for table in coefficients}) != 1:
            raise UserError(f"coefficients must be tables of one NFE, got NFE {brief(sorted(nfes))}")
        for table in coefficients:
            refuse_residuals(table, "a range of guidance scales")
        folded = [table.detach().folded() for table in coefficients]
        self.times = nn.Parameter(torch.stack([table.times for table in folded]))
        self.alpha = nn.Parameter(torch.stack([table.states[:, 0] for table in folded]))
        self.beta = nn.Parameter(torch.stack([table.outputs for table in folded]))
        self.branches = coefficients[0].branches

    @classmethod
    def from_table(
        cls,
        schedule: Schedule,
        table: Table,
        t_end: float,
        *,
        scales: tuple[float, float],
        reference: float,
        degree: int = 1,
    ) -> GuidanceBNS:
        """Build the solver of a degree K, 1 to 8, that starts as one table for every scale: ``q_1 = .. = q_K = 0``."""
        zero = torch.zeros(table.nfe, table.nfe)
        rest = [Table(zero[0], zero, zero)] * integer("degree", degree, 1, MAX_DEGREE)
        return cls(schedule, [table, *rest], t_end, scales=scales, reference=reference)

    @property
    def nfe(self) -> int:
        """Network evaluations N."""
        return self.times.shape[1]

    def coefficients(self) -> list[Table]:
        """Return ``q_0, .., q_K``, without gradient."""
        parts = zip(self.times.detach(), self.alpha.detach(), self.beta.detach(), strict=True)
        return [self._table(*part) for part in parts]

    def forward(self, guidance: float | None = None) -> Table:
        """Return the table of a guidance scale, by default the reference.

        Raises:
            UserError: when the scale lies outside of the range.
        """
        scale = self.reference if guidance is None else guidance
        if not in_scales(scale, (self.first, self.last)):
            raise UserError(f"guidance must lie in {self.first:g} to {self.last:g}, got {scale:g}")
        u = (scale - self.reference) / (self.last - self.first)
        powers = u ** torch.arange(len(self.times), dtype=torch.float64)
        low, high = earliest_time(self.schedule, self.t_end), self.schedule.t_max
        # The reference's times are clamped before others follow from them: a file has them so.
        nodes = torch.cat([self.times[:1].clamp(min=low, max=high), self.times[1:]])
        times, alpha, beta = (torch.tensordot(powers, q, 1) for q in (nodes, self.alpha, self.beta))
        return self._table(times.clamp(min=low, max=high), alpha, beta)

    def _table(self, times: Tensor, alpha: Tensor, beta: Tensor) -> Table:
        states = nn.functional.pad(alpha[:, None], (0, self.nfe - 1))
        return Table(times, states, beta.tril(), self.branches)
