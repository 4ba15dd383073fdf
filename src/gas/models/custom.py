"""A model of one's own: a denoiser, its schedule and the shape of a sample are enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gas.arguments import MAX_SEED, callable_, integer, number, of_type, shape
from gas.denoise import Denoiser
from gas.errors import UserError
from gas.models.checks import changes_in_training, time_problem
from gas.models.conditions import append_row, describe_rows, row_count, take_rows
from gas.models.protocol import bind_labels, weights_hash
from gas.models.seeds import noise_of_seeds
from gas.schedule import Schedule, check_t_end

__all__ = ["OwnModel"]


@dataclass(frozen=True, eq=False)
class OwnModel:
    """Everything the library asks of a pretrained model (:class:`gas.models.Model`), made from a denoiser.

    When it is bound for the first time, the network is asked for one sample at four times, to see whether it was
    trained on steps without :class:`gas.denoise.DiscreteTime` around it; :func:`gas.check_model` looks at more.

    Args:
        denoiser: ``denoise(x, t) -> x_0`` estimate, as the wrappers of :mod:`gas.denoise` make it from a network; with
            ``classes`` or ``conditions``, ``denoise(x, t, condition)``.
        schedule: of the network's training.
        sample_shape: of one sample, without the batch.
        name: what people call it; written into solver files.
        t_end: time that sampling ends at, in ``[schedule.t_min, 1)``; by default ``schedule.t_end``, the first
            training step, of a flow 0.
        classes: number of classes it knows; 0 when it takes none. Seed s gets class ``s mod classes``.
        null: the label that means *no class*, for guidance and for sampling without a class: any integer that the
            network takes as that and is handed as it stands, often ``classes``, of some networks -1; of
            ``conditions``, the row that means *no condition*.
        weights: the network whose parameters identify the model; solver files then refuse others. Freeze it and put
            it in evaluation mode.
        device: where to sample; by default where ``weights`` are, else the CPU.
        decode: samples ``(B, *)`` -> what people look at, images in [-1, 1] say, where that is something else.
        data_range: largest minus smallest value of the data, 2 for images in [-1, 1]: that of PSNR; latents have none.
        conditions: what the network is conditioned on where that is no class: a tensor ``(N, *)``, or a tuple or
            dictionary of such, of observations, embeddings or whatever its third argument is. Seed s gets row
            ``s mod N``, which is its label; pairs record a checksum of all and refuse others.

    Raises:
        ValueError: names the argument that is out of range, or weights that would be trained.

    >>> schedule = __import__("gas").VPLinear()
    >>> OwnModel(lambda x, t: 0 * x, schedule, (3, 8)).noise(range(2)).shape
    torch.Size([2, 3, 8])
    """

    denoiser: Callable[..., Tensor]
    schedule: Schedule
    sample_shape: tuple[int, ...]
    name: str = "own"
    t_end: float = field(default=None)  # type: ignore[assignment]
    classes: int = 0
    null: Any = None
    weights: nn.Module | None = None
    device: torch.device = field(default=None)  # type: ignore[assignment]
    decode: Callable[[Tensor], Tensor] | None = None
    data_range: float | None = None
    conditions: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        callable_("denoiser", self.denoiser, "callable as denoise(x, t)")
        object.__setattr__(self, "sample_shape", shape("sample_shape", self.sample_shape))
        if not hasattr(self.schedule, "half_log_snr"):
            raise UserError(f"schedule must be a gas.Schedule, got a {type(self.schedule).__name__}")
        of_type("name", self.name, str, "text")
        if self.t_end is None:
            object.__setattr__(self, "t_end", self.schedule.t_end)
        number("t_end", self.t_end, "[0, 1)")
        check_t_end(self.schedule, self.t_end)
        integer("classes", self.classes, 0, MAX_SEED)
        self._check_conditions()
        if self.weights is not None:
            of_type("weights", self.weights, nn.Module, "the network, a torch.nn.Module")
        if self.decode is not None:
            callable_("decode", self.decode, "callable as decode(x)")
        if self.data_range is not None:
            number("data_range (2 for [-1, 1])", self.data_range, "(0, inf)")
        if self.weights is not None and any(p.requires_grad for p in self.weights.parameters()):
            raise UserError("weights must be frozen: call .eval().requires_grad_(False) on the network first")
        if self.weights is not None and (layer := changes_in_training(self.weights)):
            raise UserError(
                f"weights must be in evaluation mode, {layer} is not: call .eval() on the network first"
            )
        if self.device is None:
            first = None if self.weights is None else next(self.weights.parameters(), None)
            object.__setattr__(self, "device", torch.device("cpu") if first is None else first.device)
        elif not isinstance(self.device, torch.device):
            try:
                object.__setattr__(self, "device", torch.device(self.device))
            except (RuntimeError, TypeError) as error:
                raise UserError(f"device must be one of torch's, got {self.device!r}") from error

    @cached_property
    def _sha256(self) -> str:
        return "" if self.weights is None else weights_hash(self.weights)

    @cached_property
    def _known(self) -> Any:
        """The conditions, and after them that of no condition; ``None`` of classes."""
        return self._with_null(self.conditions) if self.conditions is not None else None

    @cached_property
    def _looked(self) -> bool:
        """Whether the time was checked; done once, when the network is first needed."""
        if problem := time_problem(self):
            warnings.warn(problem, UserWarning, stacklevel=4)
        return True

    def fingerprint(self) -> dict[str, Any]:
        """Return name, hash of the weights (empty without), what is predicted, and shape."""
        return {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": "x0",
            "sample_shape": list(self.sample_shape),
        }

    def conditions_fingerprint(self) -> dict[str, Any]:
        """Return number and checksum of the conditions: pairs record it, solver files do not depend on it."""
        return {} if self.conditions is None else self._description

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe_rows(self.conditions)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds."""
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 without a class or condition."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes or rows of ``conditions`` ``(B,)``, or for none.

        Raises:
            ValueError: when a label is out of range, or guidance or no class is asked of a model without ``null``.
        """
        number("guidance", guidance, "(-inf, inf)")
        if not self.classes and guidance != 1.0:
            raise UserError(f"guidance {guidance:g} needs classes to guide towards; {self.name} has none")
        _ = self._looked
        return self._bound(self._known, labels, guidance)

    def bind_conditions(self, conditions: Any, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for conditions that are not among the model's, of the same kind, one row a sample.

        Raises:
            ValueError: for what are no conditions, or guidance of a model without ``null``.
        """
        return self._bound(self._with_null(conditions), torch.arange(row_count(conditions)), guidance)

    def _check_conditions(self) -> None:
        if self.conditions is not None:
            rows = row_count(self.conditions)
            if self.classes not in (0, rows):
                raise UserError(
                    f"conditions have {rows} rows, a class each: leave out classes={self.classes}"
                )
            object.__setattr__(self, "classes", rows)
        elif self.null is not None:
            integer("null", self.null, -MAX_SEED, MAX_SEED)
            if not self.classes:
                raise UserError(f"null is a label, and without classes there is none, got {self.null}")

    def _with_null(self, conditions: Any) -> Any:
        return conditions if self.null is None else append_row(conditions, self.null)

    def _bound(self, known: Any, labels: Tensor | None, guidance: float) -> Denoiser:
        """Bind rows of ``known``, the last of which means no condition where there is a ``null``."""
        if not self.classes:
            return self.denoiser
        if known is None:
            conditional, rows, null = self.denoiser, self.classes, self.null
        else:
            rows = row_count(known) - (self.null is not None)
            null = None if self.null is None else rows

            def conditional(x: Tensor, t: Tensor, chosen: Tensor) -> Tensor:
                # Looked up at every call, as a recorded CUDA graph replays the look-up for other labels.
                return self.denoiser(x, t, take_rows(known, chosen, self.device))

        return bind_labels(
            conditional,
            labels,
            classes=rows,
            null=null,
            guidance=guidance,
            name=self.name,
            device=self.device,
        )
