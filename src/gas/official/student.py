"""Published GAS students (``.pt``): a few dozen numbers brought into our solver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gas.learned import GeneralizedSolver
from gas.official.unpickle import read_pickle
from gas.schedule import Schedule

__all__ = ["is_student", "read_student"]


def is_student(data: Any) -> bool:
    """Whether data read from a file has the averaged parameters that a student's checkpoint holds."""
    return (
        isinstance(data, Mapping)
        and isinstance(data.get("ema"), Mapping)
        and isinstance(data["ema"].get("shadow_params"), list)
    )


def read_student(
    path: str | Path, schedule: Schedule, t_end: float = 1e-3, data: Any = None
) -> GeneralizedSolver:
    """Read a published student: its averaged parameters, in the order that they were registered in.

    The order is ``mu_logit, t_couple, c1_diff, a1_diff, c2_diff, a2_diff, ...``; NFE and order of the solver follow
    from the lengths.

    Args:
        path: the checkpoint; nothing in it is executed.
        schedule: of the model it was trained for, which the file does not say.
        t_end: time that sampling ends at, which the file does not say either.
        data: what :func:`gas.official.unpickle.read_pickle` gave for it, if that is at hand.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, unsafe, or its parameters are not those of a Generalized Solver.
    """
    data = read_pickle(path) if data is None else data
    if not is_student(data):
        found = ", ".join(map(repr, data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"{path} has no averaged parameters ema.shadow_params; it holds {found:.200}")
    parameters = data["ema"]["shadow_params"]
    if not all(isinstance(value, Tensor) for value in parameters):
        raise ValueError(f"{path}: ema.shadow_params should be tensors")
    lengths = [value.numel() for value in parameters]
    nfe = lengths[1] if len(lengths) > 1 else 0
    if len(lengths) < 4 or len(lengths) % 2 or lengths != [nfe - 1, *[nfe] * (len(lengths) - 1)]:
        raise ValueError(
            f"{path}: a student's parameters are mu_logit of N - 1 numbers, then t_couple and pairs of c_diff and "
            f"a_diff of N each, got {len(lengths)} tensors of {lengths[:12]} numbers"
        )
    logits, shifts, *rest = (value.double().flatten() for value in parameters)
    if (len(rest) // 2) > nfe:
        raise ValueError(f"{path}: {len(rest) // 2} corrections a step are more than the {nfe} steps can use")
    c_diff, a_diff = rest[0::2], rest[1::2]
    return GeneralizedSolver.from_official(
        schedule,
        t_end=t_end,
        mu_logit=logits,
        t_couple=shifts,
        a_diff=[row.tolist() for row in a_diff],
        c_diff=[row.tolist() for row in c_diff],
    )
