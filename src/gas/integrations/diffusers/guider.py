"""A guider for diffusers' modular pipelines: each step evaluates the branch of its row, one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gas.errors import UserError, requires
from gas.integrations.diffusers.scheduler import GASScheduler

with requires("diffusers", "gas.integrations.diffusers.guider.BranchGuider needs diffusers"):
    from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput

__all__ = ["BranchGuider"]

# What a modular pipeline prepares a pair of inputs for, in this order.
_BRANCHES = ("conditional", "unconditional")


class BranchGuider(BaseGuidance):
    """Runs tables with branches in a modular pipeline, together with the :class:`gas.GASScheduler` that has them::

        pipe.update_components(scheduler=scheduler, guider=BranchGuider(scheduler))
        pipe(prompt="a cat", negative_prompt="", num_inference_steps=6)

    A step is a row of the table, one forward pass of ``conditional`` or ``unconditional`` (the negative prompt), so
    ``num_inference_steps`` counts forward passes. The guidance scale is in the weights.

    Args:
        scheduler: of the same pipeline. From then on it runs the file's tables with branches, and no others.

    Raises:
        UserError: from the pipeline's call, for a number of forward passes that the file lacks, a branch that the
            pipeline does not give, or an unconditional row without a negative prompt.
    """

    _input_predictions = list(_BRANCHES)  # type: ignore[assignment] # noqa: RUF012 (a list, as in diffusers)

    def __init__(self, scheduler: GASScheduler | None = None) -> None:
        super().__init__()
        self.register_to_config()  # type: ignore[no-untyped-call] # no arguments: a scheduler has a file of its own
        self.scheduler, self.row, self.branch = scheduler, -1, _BRANCHES[0]
        if scheduler is not None:
            scheduler.guider = self

    def set_state(self, step: int, num_inference_steps: int, timestep: torch.LongTensor) -> None:
        """Choose the branch of a step's row."""
        super().set_state(step, num_inference_steps, timestep)
        if self.scheduler is None:
            raise UserError(
                "this guider has no scheduler: guider=BranchGuider(pipe.scheduler), with the GASScheduler"
            )
        self.row, self.branch = step, self.scheduler.branches[step]
        if self.branch not in _BRANCHES:
            raise UserError(
                f"row {step} of the table evaluates the branch {self.branch!r}, a modular pipeline has "
                f"{' and '.join(_BRANCHES)}"
            )

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:  # type: ignore[override]
        """Return the inputs of one forward pass, of pairs ``(conditional, unconditional)``."""
        return self._single(data, lambda place: self._prepare_batch(data, place, self.branch))

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        named = {
            name: tuple(getattr(data, each, None) for each in names)
            for name, names in input_fields.items()
            if isinstance(names, tuple)
        }
        return self._single(
            named, lambda place: self._prepare_batch_from_block_state(input_fields, data, place, self.branch)
        )

    def _single(self, data: dict[str, Any], prepared: Callable[[int], Any]) -> list[Any]:
        place = _BRANCHES.index(self.branch)
        pairs = [value[place] for value in data.values() if isinstance(value, tuple)]
        if place and not any(value is not None for value in pairs):
            raise UserError(
                f'row {self.row} of the table is unconditional: call the pipeline with negative_prompt="", or another'
            )
        return [prepared(place)]

    def __call__(self, data: list[Any]) -> GuiderOutput:
        (batch,) = data
        return GuiderOutput(pred=batch.noise_pred, pred_cond=None, pred_uncond=None)

    @property
    def is_conditional(self) -> bool:
        return self.branch == _BRANCHES[0]

    @property
    def num_conditions(self) -> int:
        """Two: pipelines encode a negative prompt only if it is more than one."""
        return len(_BRANCHES)
