"""Numbers of official checkpoints, put into the parameters they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Numbers", "put_numbers"]

Numbers = Sequence[float] | Tensor


@torch.no_grad()
def put_numbers(solver: nn.Module, given: Mapping[str, Numbers | Sequence[Numbers]], what: str) -> None:
    """Copy numbers into a solver's parameters by name.

    Args:
        solver: the module, changed in place.
        given: by parameter name, numbers of that parameter's shape.
        what: what the solver is called in messages.

    Raises:
        ValueError: when the numbers of a parameter have another shape.
    """
    for name, value in given.items():
        parameter = solver.get_parameter(name)
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{name} of {what} has shape {tuple(parameter.shape)}, got {tuple(tensor.shape)}"
            )
        parameter.copy_(tensor)
