"""Run a table: the one sampler for every solver."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gas.denoise import Denoiser
from gas.stepper import Stepper
from gas.table import Table

__all__ = ["sample", "trajectory"]


def sample(denoise: Denoiser, x: Tensor, table: Table) -> Tensor:
    """Return the last state of :func:`trajectory`: the sample.

    Args:
        denoise: ``denoise(x, t) -> x_0`` estimate of the shape of ``x``; ``t`` is a scalar float64 tensor.
        x: the start ``x_T``, shape ``(B, *)``, scaled as the schedule has it at t = 1.
        table: the solver.

    Returns:
        The sample, in the shape, dtype and device of ``x``. Gradients flow into ``x``, the table and
        whatever ``denoise`` holds; call it under ``torch.no_grad()`` to spend no memory on them.

    >>> import gas, torch
    >>> schedule = gas.VPLinear()
    >>> table = gas.classical.ddim(schedule, gas.grids.time_uniform(schedule, 4, 1e-3))
    >>> gas.sample(lambda x, t: torch.zeros_like(x), torch.ones(2, 3), table).shape
    torch.Size([2, 3])
    """
    for state in trajectory(denoise, x, table):  # noqa: B007 (only the last is wanted)
        pass
    return state


def trajectory(denoise: Denoiser, x: Tensor, table: Table) -> Iterator[Tensor]:
    """Yield the N + 1 states ``x_0 = x_T, x_1, .., x_N`` of a solver, each as soon as it is known.

    ``d_n = denoise(x_n, times[n])``, then ``x_{n+1} = sum_j states[n, j] x_j + sum_j outputs[n, j] d_j``.
    Arguments as in :func:`sample`.
    """
    yield x
    stepper = Stepper(table)
    for t in stepper.times:
        x = stepper.step(x, denoise(x, t))
        yield x
