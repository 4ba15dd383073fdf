"""Checks that a module of one's own is a parameterization that can be trained, saved and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gas.errors import UserError
from gas.table import Table

# Size of the change of parameters by which a table is seen to follow them.
_CHANGE = 1e-3


def check_table_module(solver: nn.Module) -> list[str]:
    """Return the problems found in a parameterization of solvers, a line each; an empty list when there are none.

    A parameterization is a module whose ``forward()`` returns a :class:`gas.Table`. Training asks of it: trainable
    float64 parameters; the same table at every call, of one NFE; numbers that are finite and differentiable in every
    parameter, and follow parameters that are handed to the module from outside (``torch.func.functional_call``); a
    ``state_dict`` from which a copy returns the same table. The module is not changed.

    >>> import gas
    >>> gas.check_table_module(gas.GeneralizedSolver(gas.VPLinear(), nfe=4, t_end=1e-3))
    []
    """
    return list(_problems(deepcopy(solver)))


def _problems(solver: nn.Module) -> Iterator[str]:
    learned = {name: p for name, p in solver.named_parameters() if p.requires_grad and p.numel()}
    if not learned:
        yield "no parameter requires a gradient: make the learned numbers an nn.Parameter"
        return
    for name, parameter in learned.items():
        if parameter.dtype != torch.float64:
            yield f"parameter {name} must be float64, got {parameter.dtype}: small weights cancel in float32"
    try:
        table, again = solver(), solver()
    except (UserError, TypeError) as error:
        yield f"forward() must return a gas.Table without arguments: {error}"
        return
    if not isinstance(table, Table):
        yield f"forward() must return a gas.Table, got {type(table).__name__}"
        return
    if not _equal(table, again):
        yield "two calls return different tables: forward() must be a function of the parameters alone"
        return
    if getattr(solver, "nfe", table.nfe) != table.nfe:
        yield f"nfe is {solver.nfe}, the table has {table.nfe} rows"
    yield from _gradient_problems(learned, table)
    yield from _dependence_problems(solver, learned)


def _gradient_problems(learned: dict[str, nn.Parameter], table: Table) -> Iterator[str]:
    """Problems of derivatives of the table's numbers in the parameters."""
    flat = _flat(table)
    if not flat.requires_grad:
        yield "the table does not depend on the parameters: forward() must not detach them or leave torch"
        return
    # Weighted by random numbers of either sign, so that derivatives of a row do not cancel.
    weights = torch.randn(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(weights @ flat, list(learned.values()), allow_unused=True)
    for name, gradient in zip(learned, gradients, strict=True):
        if gradient is None or not bool(gradient.any()):
            yield f"parameter {name} has no effect on the table"
        elif not bool(gradient.isfinite().all()):
            yield f"the derivative of the table in parameter {name} is not finite"


@torch.no_grad()
def _dependence_problems(solver: nn.Module, learned: dict[str, nn.Parameter]) -> Iterator[str]:
    """Problems of tables at parameters handed over, and after ``load_state_dict``."""
    moved = {name: p + _CHANGE * torch.linspace(-1, 1, p.numel()).view_as(p) for name, p in learned.items()}
    copy = deepcopy(solver)
    try:
        outside: Table = functional_call(solver, moved, ())
    except UserError as error:
        yield f"parameters moved by up to {_CHANGE:g} give no table: {error}"
        return
    copy.load_state_dict({**solver.state_dict(), **moved})
    if not _equal(outside, copy()):
        yield "forward() does not follow its parameters: it must read them at every call, without a cache"
    copy.load_state_dict(solver.state_dict())
    if not _equal(solver(), copy()):
        yield "state_dict() does not restore the table: register what decides it as parameters or buffers"


def _flat(table: Table) -> Tensor:
    residuals = [part.flatten() for r in (table.residuals or {}).values() for part in r.state_dict().values()]
    return torch.cat([table.times, table.states.flatten(), table.outputs.flatten(), *residuals])


def _equal(first: Table, second: Table) -> bool:
    return first.nfe == second.nfe and torch.equal(_flat(first), _flat(second))
