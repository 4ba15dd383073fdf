"""Every table as a sampler in k-diffusion's form; k-diffusion itself is not needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.arguments import number
from gas.classical.registry import SOLVERS
from gas.errors import UserError
from gas.integrations.table_transforms import ending_in_data, sigma_form
from gas.registry import named
from gas.sampling import Stepper
from gas.schedule import Flow, Schedule, without_rounding
from gas.solver_file import Artefact, load
from gas.table import Table

__all__ = ["sample_gas", "sigmas_of"]

Solver = Artefact | Table | str | PathLike[str]
_SINGLE_EVALUATION = {name: solver for name, solver in SOLVERS.items() if name != "heun"}


@torch.no_grad()
def sample_gas(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    solver: Solver,
    schedule: Schedule | None = None,
    base: str = "dpmpp-2m",
    guidance: float | None = None,
) -> Tensor:
    """Sample with a table where a program expects ``sample_*(model, x, sigmas, ...)``.

    States are ``y = x_0 + sigma eps``, so a table of a VP schedule runs as ``y_n = x_n / alpha_n``, exactly; those of a
    flow are the flow's own, with sigma = t. A solver belongs to its own levels, :func:`sigmas_of`. At other levels (the
    end of the ladder, for image to image) ``base`` runs, with a warning.

    Args:
        model: ``model(x, sigma, **extra_args) -> x_0`` prediction, ``sigma`` of shape ``(B,)``.
        x: noise scaled by ``sigmas[0]`` (or a noised image), ``(B, *)``.
        sigmas: N + 1 levels ending in 0.
        extra_args: for the model.
        callback: called with ``{"x", "i", "sigma", "sigma_hat", "denoised"}`` after each evaluation.
        disable: whether to hide the progress bar, which needs tqdm.
        solver: an artefact, a solver file, or a table.
        schedule: of a bare table's times; an artefact has its own.
        base: classical solver for other levels, a name of :data:`gas.classical.SOLVERS` with one evaluation a step.
        guidance: the scale of ``model``; needed by a file of a range of scales, which otherwise runs its own, with a
            warning.

    Raises:
        ValueError: when the schedule is unknown, ``sigmas`` do not decrease to 0, or the solver does not serve the
            scale.
    """
    opened, schedule = _open(solver, schedule, guidance)
    table = _table_at(opened, schedule, torch.as_tensor(sigmas).detach().to("cpu", torch.float64), base)
    levels = _levels(schedule, table.times)
    if not isinstance(schedule, Flow):
        table = sigma_form(table, schedule(table.times)[0])
    # A clone: programs change states in place between steps (inpainting), which must not change the caller's noise.
    stepper = Stepper(table)
    x = stepper.start(x.clone())
    levels = levels.to(x.device, torch.promote_types(x.dtype, torch.float32))
    for i in _progress(table.nfe, disable):
        sigma = levels[i]
        denoised = model(x.clone(), sigma.to(x.dtype) * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = stepper.step(x, denoised)
    return x


def sigmas_of(
    solver: Solver, nfe: int | None = None, schedule: Schedule | None = None, guidance: float | None = None
) -> Tensor:
    """Return the N + 1 levels of a solver, ending in 0, float32: the ``sigmas`` of :func:`sample_gas`.

    A family needs ``nfe``, a bare table ``schedule``, a file of a range of scales ``guidance``.
    """
    table, schedule = _open(solver, schedule, guidance)
    if isinstance(table, Artefact):
        if nfe is None and len(table.nfes) > 1:
            raise UserError(f"nfe must be one of {', '.join(map(str, table.nfes))}, got None")
        table = table.table(table.nfes[0] if nfe is None else nfe)
    return torch.cat([_levels(schedule, table.times), torch.zeros(1, dtype=torch.float64)]).to(torch.float32)


def _open(
    solver: Solver, schedule: Schedule | None, guidance: float | None
) -> tuple[Artefact | Table, Schedule]:
    opened = load(Path(solver)) if isinstance(solver, (str, PathLike)) else solver
    if isinstance(opened, Artefact):
        opened.check_nfes("k-diffusion")
        document = opened.document
        if guidance is None and document.guidance_range is not None:
            warnings.warn(
                f"{opened.source} serves guidance {document.served}: running the solver of {document.guidance:g}; "
                "guidance=... names another",
                stacklevel=3,
            )
        opened = opened.at(
            document.guidance if guidance is None else number("guidance", guidance, "(-inf, inf)")
        )
        schedule = schedule if opened.schedule is None else opened.schedule
    if schedule is None:
        raise UserError("schedule must be given: this solver does not say which schedule its times are of")
    return opened, schedule


def _levels(schedule: Schedule, t: Tensor) -> Tensor:
    return t if isinstance(schedule, Flow) else (-schedule.half_log_snr(t)).exp()


def _table_at(solver: Artefact | Table, schedule: Schedule, sigmas: Tensor, base: str) -> Table:
    """The solver's table if these are its levels, otherwise that of the base solver at these levels."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or float(sigmas[-1]) != 0:
        raise UserError(f"sigmas must be at least two levels ending in 0, got {sigmas.tolist()}")
    nfe, levels = len(sigmas) - 1, sigmas[:-1]
    table = solver if isinstance(solver, Table) else solver.table(nfe) if nfe in solver.nfes else None
    # rtol: programs pass levels in float32 or from a table of 1000 steps.
    if (
        table is not None
        and table.nfe == nfe
        and torch.allclose(_levels(schedule, table.times), levels, rtol=2e-3, atol=1e-6)
    ):
        return table
    warnings.warn(
        f"these {nfe} sigmas are not the solver's own (sigmas_of(solver, nfe)): {base} runs at them instead",
        stacklevel=3,
    )
    t = levels if isinstance(schedule, Flow) else schedule.inverse_half_log_snr(-levels.log())
    return ending_in_data(named("solver", base, _SINGLE_EVALUATION), schedule, without_rounding(t))


def _progress(nfe: int, disable: bool | None) -> Any:
    try:
        from tqdm.auto import trange  # type: ignore[import-untyped]
    except Exception:
        return range(nfe)
    return trange(nfe, disable=disable)
