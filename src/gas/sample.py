"""Run a table: the one sampler for every solver."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gas.denoise import Denoiser, call_preserving, is_recorded
from gas.stepper import Stepper, check_state
from gas.table import Table

__all__ = ["sample", "trajectory"]


def sample(denoise: Denoiser, x: Tensor, table: Table) -> Tensor:
    """Return the last state of :func:`trajectory`: the sample.

    ``denoise`` may change its input in place, return it or a view of it, and return one buffer again and again: nothing
    that was handed out is read again. Where gradients flow through a state, changing it in place is refused instead.

    Args:
        denoise: ``denoise(x, t) -> x_0`` estimate of the shape of ``x``; ``t`` is a scalar float64 tensor.
        x: the start ``x_T``, shape ``(B, *)``, scaled as the schedule has it at t = 1; it is not changed.
        table: the solver.

    Returns:
        The sample, in the shape, dtype and device of ``x``. Gradients flow into ``x``, the table and
        whatever ``denoise`` holds; call it under ``torch.no_grad()`` to spend no memory on them. A NaN that ``denoise``
        returns reaches every sample whose rows weigh it.

    Raises:
        ValueError: when ``x`` or an answer is no real floating-point tensor, an answer is of another shape or on
            another device, ``table`` is no table, or a weight is beyond the dtype that states are summed in (that of
            ``x``, float32 at least).

    >>> import gas, torch
    >>> schedule = gas.VPLinear()
    >>> table = gas.classical.ddim(schedule, gas.grids.time_uniform(schedule, 4, 1e-3))
    >>> gas.sample(lambda x, t: torch.zeros_like(x), torch.ones(2, 3), table).shape
    torch.Size([2, 3])
    """
    for state in _states(denoise, _private(x), table):  # noqa: B007 (only the last is wanted)
        pass
    return state


def trajectory(denoise: Denoiser, x: Tensor, table: Table) -> Iterator[Tensor]:
    """Yield the N + 1 states ``x_0 = x_T, x_1, .., x_N`` of a solver, each as soon as it is known.

    ``d_n = denoise(x_n, times[n])``, then ``x_{n+1} = sum_j states[n, j] x_j + sum_j outputs[n, j] d_j``.
    Arguments and errors as in :func:`sample`. A state that was yielded may be changed without effect on the run; where
    gradients flow through it, that is refused.
    """
    states = _states(denoise, _private(x), table)
    yield x
    for state in states:
        version = state._version if is_recorded(state) else None
        yield state.clone() if version is None else state
        if version is not None and state._version != version:
            raise ValueError(
                "a state that gradients flow through was changed in place: change a copy, state.clone()"
            )


def _private(x: Tensor) -> Tensor:
    """A start that only the run has; autograd's own errors guard one that it records."""
    check_state(x)
    return x if is_recorded(x) else x.clone()


def _states(denoise: Denoiser, x: Tensor, table: Table) -> Iterator[Tensor]:
    """Run the rows on a start that nobody else has."""
    stepper = Stepper(table, fold=None)
    for t in stepper.times:
        x = _next(stepper, denoise, x, t)
        yield x


def _next(stepper: Stepper, denoise: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    if is_recorded(x):  # the network first: gradients are summed in this order
        d = call_preserving(denoise, x, t)
        stepper.add_state(x)
        return stepper.next_state(d)
    stepper.add_state(x)
    return stepper.next_state(denoise(x, t))
