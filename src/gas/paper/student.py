"""Published GAS students (``.pt``): a few dozen numbers brought into our solver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.arguments import MAX_NFE
from gas.display import brief, contents
from gas.errors import UserError
from gas.learned.generalized import GeneralizedSolver
from gas.learned.s4s import S4S
from gas.registry import named
from gas.schedule import Schedule
from gas.unpickle.loading import read_pickle

# Kinds of students: their files have parameters of the same names and lengths.
FORMS: dict[str, type[GeneralizedSolver] | type[S4S]] = {"gs": GeneralizedSolver, "s4s": S4S}


def is_student(data: Any) -> bool:
    """Return whether the contents of a file have the averaged parameters of a student's checkpoint."""
    return (
        isinstance(data, Mapping)
        and isinstance(data.get("ema"), Mapping)
        and isinstance(data["ema"].get("shadow_params"), list)
    )


def read_student(
    path: str | Path, schedule: Schedule, t_end: float = 1e-3, data: Any = None, *, form: str = "auto"
) -> GeneralizedSolver | S4S:
    """Read a published student: its averaged parameters, in the order of their registration.

    The order is ``mu_logit, t_couple, c1_diff, a1_diff, c2_diff, a2_diff, ...``; NFE and order of the solver follow
    from the lengths.

    Args:
        path: the checkpoint; nothing in it is executed.
        schedule, t_end: of the model it was trained for; the file does not say.
        data: contents of the file, if they were read already.
        form: ``"gs"``; ``"s4s"``, trained without theory: S4S with a corrector; or ``"auto"``, by the numbers. Those of
            GS are added to the coefficients of DPM-Solver++(3M), and start at zero; those of S4S *are* the
            coefficients, and the weights of the predictions in a step start with the sum 1.

    Raises:
        UserError: when the file is damaged, unsafe, its parameters are not those of a student, or the numbers
            do not show their kind.
    """
    data = read_pickle(path) if data is None else data
    if not is_student(data):
        raise UserError(f"{path} has no averaged parameters ema.shadow_params; it holds {contents(data)}")
    parameters = data["ema"]["shadow_params"]
    if not all(isinstance(value, Tensor) for value in parameters):
        raise UserError(f"{path}: ema.shadow_params should be tensors")
    lengths = [value.numel() for value in parameters]
    nfe = lengths[1] if len(lengths) in range(4, 2 * MAX_NFE + 3, 2) else 0
    if not 0 < nfe <= MAX_NFE or lengths != [nfe - 1, *[nfe] * (len(lengths) - 1)]:
        raise UserError(
            f"{path}: a student's parameters are mu_logit of N - 1 numbers, then t_couple and pairs of c_diff and "
            f"a_diff of N each, N at most {MAX_NFE}, got {len(lengths)} tensors of {brief(lengths)} numbers"
        )
    logits, shifts, *rest = (value.double().flatten() for value in parameters)
    if (len(rest) // 2) > nfe:
        raise UserError(f"{path}: {len(rest) // 2} corrections a step are more than the {nfe} steps can use")
    c_diff, a_diff = rest[0::2], rest[1::2]
    kind = _kind_of(path, c_diff) if form == "auto" else form
    if kind == "s4s" and len(c_diff) < nfe:  # earlier predictions that it does not use weigh nothing
        c_diff, a_diff = ([*row, *[logits.new_zeros(nfe)] * (nfe - len(row))] for row in (c_diff, a_diff))
    return named("form of a student", kind, FORMS).from_official(
        schedule,
        t_end=t_end,
        mu_logit=logits,
        t_couple=shifts,
        a_diff=[row.tolist() for row in a_diff],
        c_diff=[row.tolist() for row in c_diff],
    )


def _kind_of(path: str | Path, c_diff: list[Tensor]) -> str:
    """Return the kind of a student by the sums of the ``c`` that each step can use: near 0 for GS, near 1 for S4S."""
    used = torch.stack(c_diff).triu().sum(dim=0)  # step n has n + 1 predictions
    if bool((used < 0.5).all()):
        return "gs"
    if bool((used > 0.5).all()):
        return "s4s"
    sums = ", ".join(f"{value:.2f}" for value in used[:8].tolist())
    raise UserError(
        f"{path} does not say whether it was trained with theory: the weights of predictions add up to {sums} in its "
        "steps, near 0 in GS, near 1 in S4S; say --form gs or --form s4s"
    )
