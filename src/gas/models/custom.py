"""A model of your own: a denoiser, its schedule and the shape of a sample are enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gas.arguments import MAX_SEED, integer, number, of_type, shape
from gas.denoise import Denoiser
from gas.errors import UserError
from gas.models.checks import layer_in_training, time_problem
from gas.models.conditions import append_row, check_like, describe_rows, row_count, take_rows
from gas.models.protocol import bind_labels, weights_hash
from gas.models.seeds import noise_of_seeds
from gas.schedule import Schedule, check_t_end


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A :class:`gas.models.Model` made from a denoiser.

    The first :meth:`bind` evaluates the network for one sample at four times, to see whether it was trained on
    discrete steps and lacks :class:`gas.denoise.DiscreteTime`; :func:`gas.check_model` checks more.

    Args:
        denoiser: ``denoise(x, t) -> x_0`` prediction, as the wrappers of :mod:`gas.denoise` make it from a network;
            with ``classes`` or ``conditions``, ``denoise(x, t, condition)``.
        schedule: of the network's training.
        sample_shape: of one sample, without the batch.
        name: for messages and solver files.
        t_end: time that sampling ends at; default ``schedule.t_end``: the first training step, 0 of a flow.
        classes: number of classes; 0 without any. Seed s gets class ``s mod classes``.
        null: the label that means *no class*, for guidance and for sampling without a class: any integer that the
            network takes so, often ``classes`` or -1; with ``conditions``, the row that means *no condition*.
        weights: the network whose parameters identify the model to solver files, frozen and in evaluation mode.
        device: where to sample; default that of ``weights``, else the CPU.
        decode: samples ``(B, *)`` -> images in [-1, 1], say, when the model samples something else (latents).
        data_range: largest minus smallest value of the data, for PSNR: 2 for images in [-1, 1]; latents have none.
        conditions: conditions other than classes: a tensor ``(N, *)``, or a tuple or dictionary of such, of
            observations or embeddings, as the denoiser's third argument. Seed s gets row ``s mod N``, which is its
            label; pairs record a checksum of all rows and refuse others.
        rebuild: ``t_end`` -> the model that ends there, where the schedule depends on ``t_end``.

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
    rebuild: Callable[[float], OwnModel] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        of_type("denoiser", self.denoiser, Callable, "callable as denoise(x, t)")
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
        if self.decode is not None:
            of_type("decode", self.decode, Callable, "callable as decode(x)")
        if self.data_range is not None:
            number("data_range (2 for [-1, 1])", self.data_range, "(0, inf)")
        if self.weights is not None:
            of_type("weights", self.weights, nn.Module, "the network, a torch.nn.Module")
            if any(p.requires_grad for p in self.weights.parameters()):
                raise UserError(
                    "weights must be frozen: call .eval().requires_grad_(False) on the network first"
                )
            if layer := layer_in_training(self.weights):
                raise UserError(
                    f"weights must be in evaluation mode, {layer} is not: call .eval() on the network first"
                )
        object.__setattr__(self, "device", self._checked_device())

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
                raise UserError(f"null is a label, which a model without classes has not, got {self.null}")

    def _checked_device(self) -> torch.device:
        parameter = None if self.weights is None else next(self.weights.parameters(), None)
        default = "cpu" if parameter is None else parameter.device
        try:
            return torch.device(default if self.device is None else self.device)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"device must be one of torch's, got {self.device!r}") from error

    @cached_property
    def _sha256(self) -> str:
        return "" if self.weights is None else weights_hash(self.weights)

    def fingerprint(self) -> dict[str, Any]:
        """Return name, hash of the weights (empty without), prediction type and shape."""
        return {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": "x0",
            "sample_shape": list(self.sample_shape),
        }

    @cached_property
    def _conditions_fingerprint(self) -> dict[str, Any]:
        return {} if self.conditions is None else describe_rows(self.conditions)

    def conditions_fingerprint(self) -> dict[str, Any]:
        """Return number and checksum of the conditions."""
        return self._conditions_fingerprint

    def ending_at(self, t_end: float) -> OwnModel:
        """Return the model for runs that end at another time."""
        if t_end == self.t_end:
            return self
        return replace(self, t_end=t_end) if self.rebuild is None else self.rebuild(t_end)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds."""
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 without a class or condition."""
        return self.bind(None)(x, t)

    @cached_property
    def _time_is_checked(self) -> bool:
        """True, after one warning if the network's time is wrong: the network is evaluated only once it is needed."""
        if problem := time_problem(self):
            warnings.warn(problem, UserWarning, stacklevel=4)
        return True

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes or rows of ``conditions`` ``(B,)``, or the unconditional one.

        Guidance and ``labels=None`` need a ``null``.
        """
        number("guidance", guidance, "(-inf, inf)")
        if not self.classes and guidance != 1.0:
            raise UserError(f"guidance {guidance:g} needs classes to guide towards; {self.name} has none")
        _ = self._time_is_checked
        return self._bind_rows(self._rows, labels, guidance)

    def bind_conditions(self, conditions: Any, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for new conditions of the same kind, one row a sample.

        Raises:
            UserError: for a model without conditions, or rows of other shapes than the model's.
        """
        number("guidance", guidance, "(-inf, inf)")
        if self.conditions is None:
            raise UserError(
                f"{self.name} has no conditions: gas.OwnModel(..., conditions=...) says what a row is"
            )
        check_like(conditions, self.conditions)
        return self._bind_rows(self._with_null(conditions), torch.arange(row_count(conditions)), guidance)

    @cached_property
    def _rows(self) -> Any:
        """The conditions, followed by the null row where there is one; ``None`` with classes."""
        return None if self.conditions is None else self._with_null(self.conditions)

    def _with_null(self, conditions: Any) -> Any:
        return conditions if self.null is None else append_row(conditions, self.null)

    def _bind_rows(self, rows: Any, labels: Tensor | None, guidance: float) -> Denoiser:
        if not self.classes:
            if labels is not None:
                raise UserError(
                    f"labels were given, and {self.name} has no classes or conditions: bind(None)"
                )
            return self.denoiser
        conditional, classes, null = self.denoiser, self.classes, self.null
        if rows is not None:

            def for_rows(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
                # Looked up in every call, so that a recorded CUDA graph looks up the labels of each replay.
                return self.denoiser(x, t, take_rows(rows, labels, self.device))

            conditional, classes = for_rows, row_count(rows) - (null is not None)
            null = None if null is None else classes
        options = {"classes": classes, "null": null, "name": self.name, "device": self.device}
        return bind_labels(conditional, labels, guidance=guidance, **options)
