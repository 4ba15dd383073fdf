"""The table: a solver as three arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gas.arguments import integer, number
from gas.errors import UserError
from gas.residual import Residual

__all__ = [
    "Row",
    "Table",
    "TableMaker",
    "refuse_branches",
    "refuse_residuals",
    "require_plain",
    "table_of",
    "table_on",
]

Row = tuple[Mapping[int, Tensor], Mapping[int, Tensor]]


@dataclass(frozen=True, eq=False)
class Table:
    """A linear solver of N network evaluations, written out.

    Row n evaluates the network once and forms the next state from all states and predictions so far::

        d_n     = denoise(x_n, times[n])
        x_{n+1} = sum_{j<=n} states[n, j] x_j  +  sum_{j<=n} outputs[n, j] d_j

                 states (N, N)          outputs (N, N)
                 x_0  x_1  x_2  x_3     d_0  d_1  d_2  d_3
        x_1   [   *               ]   [  *                ]
        x_2   [   *    *          ]   [  *    *           ]
        x_3   [   *    *    *     ]   [  *    *    *      ]
        x_4   [   *    *    *    *]   [  *    *    *    * ]

    ``d`` are data predictions (estimates of x_0), ``x_0`` of the table is the start ``x_T``. Rows count
    network evaluations, not time steps, and times may repeat. One solver has many such tables (states
    are themselves combinations of ``x_T`` and predictions): compare solvers by :meth:`unrolled`.

    A guided prediction is a mixture of two forward passes of the network, its branches. With ``branches`` a row is one
    forward pass: ``d_n`` is the prediction of branch ``branches[n]``, and the weights do the mixing (:meth:`guided`).

    A lifted table has ``residuals``: at some rows a small network is added to the sum, ``x_{n+1} += r(x_0, .., x_n,
    d_0, .., d_n)``, and that is the state that later rows weigh. Row -1 corrects the start, ``x_0 = x_T + r(x_T)``,
    before the first network evaluation.

    The tensors are copies of the arguments, on the CPU, and are read at every run: a table modified in place runs with
    its new numbers.

    Args:
        times: ``(N,)``, given to the network.
        states: ``(N, N)`` lower triangular, weights of past states.
        outputs: ``(N, N)`` lower triangular, weights of past predictions.
        branches: N names, the branch of the denoiser that each row evaluates; ``None`` evaluates the denoiser itself.
        residuals: the :class:`gas.Residual` of each row that has one, -1 to N - 1; they are not copied.

    References:
        Butcher, "General linear methods", Acta Numerica 15 (2006), for the form.
    """

    times: Tensor
    states: Tensor
    outputs: Tensor
    branches: tuple[str, ...] | None = None
    residuals: Mapping[int, Residual] | None = None

    def __post_init__(self) -> None:
        for name in ("times", "states", "outputs"):
            object.__setattr__(self, name, _private(name, getattr(self, name)))
        n = self.times.numel()
        if self.times.ndim != 1 or n == 0:
            raise UserError(
                f"times must be a vector of at least one time, got shape {tuple(self.times.shape)}"
            )
        for name, shape in (("times", (n,)), ("states", (n, n)), ("outputs", (n, n))):
            value = getattr(self, name).detach()
            if value.shape != shape:
                raise UserError(f"{name} must have shape {shape} for {n} times, got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{name} must be finite, got {value[~torch.isfinite(value)][0].item()}")
            if value.ndim == 2 and bool(value.triu(1).any()):
                raise UserError(
                    f"{name} must be lower triangular: a row cannot use later states or predictions"
                )
        if self.branches is not None:
            object.__setattr__(self, "branches", _branch_names(self.branches, n))
        if self.residuals is not None:
            object.__setattr__(self, "residuals", _residuals_by_row(self.residuals, n))

    @classmethod
    def from_rows(cls, times: Tensor, rows: Sequence[Row]) -> Table:
        """Assemble a table from a pair ``({j: weight of x_j}, {j: weight of d_j})`` for each row."""
        zero = torch.zeros((), dtype=torch.float64)

        def matrix(side: int) -> Tensor:
            return torch.stack(
                [torch.stack([row[side].get(j, zero) for j in range(len(rows))]) for row in rows]
            )

        return cls(times, matrix(0), matrix(1))

    @property
    def nfe(self) -> int:
        """Number of network evaluations N, which are forward passes where the table has branches."""
        return len(self.times)

    def forward_passes(self, guidance: float = 1.0) -> int:
        """Return the forward passes of the network a sample, where guidance is on (not 1) two for each prediction."""
        return self.nfe if self.branches is not None or guidance == 1.0 else 2 * self.nfe

    def unrolled(self) -> Tensor:
        """Return the table as one matrix ``(N + 1, N + 1)``: state n is row n times ``(x_T, d_0, .., d_{N-1})``.

        Two tables without residuals are the same solver exactly when their times and this matrix agree.

        Raises:
            UserError: when the table has residuals, whose states are no such sums.
        """
        refuse_residuals(self, "unrolled")
        return torch.cat([torch.eye(1, self.nfe + 1, dtype=torch.float64), self.steps()])

    @property
    def corrected(self) -> list[int]:
        """The states j that :meth:`folded` weighs: x_0, and those that are no sums since a residual corrects them."""
        return [0, *(row + 1 for row in self.residuals or () if 0 <= row < self.nfe - 1)]

    def steps(self) -> Tensor:
        """Return the rows of :meth:`folded` ``(N, M)``: weights of the states :attr:`corrected`, then of the N d_j."""
        # States 1 .. N are rows of ``X = K + L X + C d``, with K the sums over states that are kept, and L strictly
        # lower triangular: one substitution.
        substituted = torch.ones(self.nfe, dtype=torch.float64)
        substituted[self.corrected] = 0
        past = nn.functional.pad((self.states * substituted)[:, 1:], (0, 1))
        known = torch.cat([self.states[:, self.corrected], self.outputs.tril()], dim=1)
        past = torch.eye(self.nfe, dtype=torch.float64) - past
        rows: Tensor = torch.linalg.solve_triangular(past, known, upper=False, unitriangular=True)
        return rows

    def folded(self) -> Table:
        """Return the same solver without past states (arXiv 2403.01329): ``x_{n+1} = a_n x_T + sum_j b_{n,j} d_j``.

        Of a lifted table, the states that residuals correct are weighed too (:attr:`corrected`).
        """
        states, outputs = self.steps().split([len(self.corrected), self.nfe], dim=1)
        columns = torch.eye(self.nfe, dtype=torch.float64)[self.corrected]
        return replace(self, states=states @ columns, outputs=outputs)

    def guided(
        self,
        scale: float,
        *,
        conditional: str = "conditional",
        unconditional: str = "unconditional",
        interval: tuple[float, float] = (-math.inf, math.inf),
    ) -> Table:
        """Return the same solver of the guided denoiser, written in forward passes: a table of 2N rows.

        Row 2n evaluates the unconditional branch and leaves the state as it is; row 2n + 1 evaluates the conditional
        one at the same state and time, with the weights of row n. Those of a prediction go to its branches as
        ``1 - scale`` and ``scale``: ``d = d_unconditional + scale (d_conditional - d_unconditional)``.

        Args:
            scale: guidance scale.
            conditional: branch that guidance leads towards.
            unconditional: branch that guidance leads away from, such as a negative prompt's.
            interval: times ``(low, high]`` at which predictions are guided (arXiv 2404.07724, section 3). The others
                are conditional, and have no unconditional row.

        >>> import gas
        >>> schedule = gas.VPLinear()
        >>> table = gas.classical.ddim(schedule, gas.grids.time_uniform(schedule, 2, 1e-3))
        >>> table.guided(2.0).branches
        ('unconditional', 'conditional', 'unconditional', 'conditional')
        """
        require_plain(self, "guided")
        number("scale", scale, "(-inf, inf)")
        unit = torch.eye(2, dtype=torch.float64)
        stay, move = torch.outer(unit[0], unit[0]), torch.outer(unit[1], unit[0])
        inside = (interval[0] < self.times) & (self.times <= interval[1])
        scales = torch.ones_like(self.times).masked_fill(inside, scale)
        mixture = torch.stack([1 - scales, scales], dim=1).flatten()
        eye = torch.eye(self.nfe, dtype=torch.float64)
        states = torch.kron(eye, stay) + torch.kron(self.states.contiguous(), move)
        outputs = torch.kron(self.outputs.contiguous(), torch.outer(unit[1], unit.sum(0))) * mixture
        # Both rows of a call have the same state: without the first, the second's is the one to weigh.
        first = (~inside).nonzero()[:, 0] * 2
        states = states.index_add(1, first + 1, states[:, first]) if len(first) else states
        rows = torch.stack([inside, torch.ones_like(inside)], dim=1).flatten().nonzero()[:, 0]
        branches = (unconditional, conditional) * self.nfe
        return Table(
            self.times.repeat_interleave(2)[rows],
            states[rows][:, rows],
            outputs[rows][:, rows] + 0.0,  # no -0.0
            tuple(branches[n] for n in rows),
        )

    def detach(self) -> Table:
        """Return the same numbers without gradient; residuals are copied."""
        residuals = {row: residual.frozen() for row, residual in (self.residuals or {}).items()}
        return Table(
            self.times.detach(), self.states.detach(), self.outputs.detach(), self.branches, residuals or None
        )


def _private(name: str, values: object) -> Tensor:
    """Copy an argument to a float64 tensor on the CPU; gradients flow through."""
    try:
        tensor = torch.as_tensor(values)
        if tensor.is_complex() or tensor.is_meta:
            raise UserError(f"got {tensor.dtype} on {tensor.device}")
        return tensor.to("cpu", torch.float64, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be an array of real numbers: {error}") from error


def _branch_names(names: object, rows: int) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != rows:
        raise UserError(f"branches must be {rows} names, one for each row, got {names!r}")
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise UserError(f"branches must be names of a branch, got {wrong[0]!r}")
    return tuple(names)


def _residuals_by_row(residuals: object, rows: int) -> dict[int, Residual] | None:
    if not isinstance(residuals, Mapping):
        raise UserError(
            f"residuals must be a gas.Residual for each of some rows, got {type(residuals).__name__}"
        )
    for row, residual in residuals.items():
        integer("a row of residuals", row, -1, rows - 1)
        if not isinstance(residual, Residual):
            raise UserError(
                f"the residual of row {row} must be a gas.Residual, got {type(residual).__name__}"
            )
        if residual.states > max(row + 1, 1) or residual.outputs > row + 1:
            raise UserError(
                f"the residual of row {row} reads {residual.states} states and {residual.outputs} outputs, the row has "
                f"{max(row + 1, 1)} and {row + 1}"
            )
    return dict(sorted(residuals.items())) or None


def refuse_residuals(table: Table, use: str) -> None:
    """Refuse a lifted table where each state has to be a sum of states and predictions."""
    if table.residuals is not None:
        rows = ", ".join(map(str, table.residuals))
        raise UserError(f"{use} takes tables without residuals, got one with residuals at rows {rows}")


def require_plain(table: Table, use: str) -> None:
    """Refuse a table with branches or residuals."""
    refuse_branches(table, use)
    refuse_residuals(table, use)


def refuse_branches(table: Table, use: str) -> None:
    """Refuse a table with branches where each row has to be a prediction of the denoiser itself."""
    if table.branches is not None:
        raise UserError(
            f"{use} takes tables without branches, got one whose rows evaluate the branches "
            f"{', '.join(sorted(set(table.branches)))}"
        )


class TableMaker(Protocol):
    """A solver with a table on every schedule, as :class:`gas.Classical`."""

    def table(self, schedule: Any, /) -> Table: ...


def table_on(solver: Table | nn.Module | TableMaker, schedule: Any) -> Table:
    """Return the table of a solver on a schedule, without gradient."""
    if isinstance(solver, (Table, nn.Module)):
        return table_of(solver)
    if not callable(getattr(solver, "table", None)):
        wanted = "a gas.Table, a gas.Classical or a learned solver"
        raise UserError(f"a solver is {wanted}, got {type(solver).__name__}")
    return solver.table(schedule).detach()


def table_of(solver: Table | nn.Module, *arguments: float) -> Table:
    """Return the table of a solver, without gradient: a table itself, or the result of a module's ``forward``."""
    if isinstance(solver, nn.Module) and type(solver).forward is nn.Module.forward:
        raise UserError(
            f"a solver's forward() returns its gas.Table, a {type(solver).__name__} has no forward()"
        )
    with torch.no_grad():
        table: Table = solver if isinstance(solver, Table) else solver(*arguments)
    return table.detach()
