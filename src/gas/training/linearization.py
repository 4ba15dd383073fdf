"""Linearization: derivatives of a sample in every number of its solver, by differences of the frozen network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gas import distributed
from gas.denoise import Denoiser, call_preserving, select_branches
from gas.errors import UserError
from gas.learned.guidance import GuidanceBNS
from gas.losses import ROUNDING
from gas.models.protocol import Model
from gas.models.runtime import without_tf32
from gas.pairs.dataset import Pairs
from gas.table import Table, refuse_residuals, table_of
from gas.training.finite_differences import Line, ladder, measure_line
from gas.training.inner_solve import minimize

T = TypeVar("T")

# Bytes of the tangents of one batch, which are held at once; larger batches are split. Any machine has 256 MB.
_TANGENT_BYTES = 2**28

# Forward differences while their relative error is below this, else central ones with the same steps, at twice the
# evaluations. Errors enter the curvature squared, as damping that no step can lift. Share of the loss that one step's
# model leaves on digits, NFE 4: 0.541 by the exact Jacobian; 0.567 by forward and 0.545 by central differences of fp16
# predictions, whose forward error is 0.05; 0.679 and 0.566 of bf16 predictions, 0.15.
_FORWARD_ERROR = 0.02


def numbers(table: Table) -> Tensor:
    """Return the numbers that decide a solver's samples ``(P,)``: of each row its time and its weights of x_T and d_j.

    The folded table has no state but x_T, so these P = N (N + 5) / 2 numbers are independent.
    """
    refuse_residuals(table, "Gauss-Newton")
    folded = table.folded()
    rows = range(folded.nfe)
    parts = [(folded.times[n : n + 1], folded.states[n, :1], folded.outputs[n, : n + 1]) for n in rows]
    return torch.cat([part for row in parts for part in row])


def evaluations_of(nfe: int, *, central: bool = False) -> int:
    """Return the network evaluations of :func:`linearize` a sample: N calls, N for times, the rest for weights.

    With central differences this is an upper bound.
    """
    return nfe + (1 + central) * sum(1 + n * (n + 5) // 2 for n in range(nfe))


def evaluations_of_measurement(nfe: int) -> int:
    """Return the network evaluations of :func:`measure_differences` a float32 sample: two lines a call."""
    line = 2 + len(ladder(torch.float32))  # the origin and the point beyond the largest step
    return nfe * (1 + 2 * line)


@dataclass(frozen=True)
class Differences:
    """Steps of a run's forward differences, and what the noise of the network's predictions costs.

    Attributes:
        states: of each call, along any direction of x, as a share of x's norm.
        times: of each call, as a share of t.
        features: of a loss's features, as a share of the sample's norm.
        noise: error of a prediction as a share of the prediction: the median of the calls.
        error: relative error that noise and curvature leave in a forward difference: the median of all lines.
        evaluations: network evaluations of single samples that the measurement took.
    """

    states: list[float]
    times: list[float]
    features: float
    noise: float
    error: float
    evaluations: int

    @property
    def central(self) -> bool:
        """Whether differences are central: forward ones would lose too much to noise."""
        return self.error > _FORWARD_ERROR


@torch.no_grad()
def measure_differences(
    denoise: Denoiser, x: Tensor, table: Table, features: Callable[[Tensor], Tensor] | None = None
) -> Differences:
    """Measure the noise and curvature of every call of a run, and choose the steps of :func:`linearize` by them.

    A few samples suffice: noise and curvature are means over all their entries. States are moved by the weights of
    x_T and of earlier predictions; the line of their sum stands for all directions.

    Args:
        denoise: the frozen denoiser.
        x: the start ``(B, *)``, float32 or wider.
        table: the solver.
        features: of a loss, ``(B, *) -> (B, F...)``.

    Raises:
        Diverged: when a prediction is not finite.
        UserError: when predictions ignore t, or their noise exceeds every change.
    """
    refuse_residuals(table, "Gauss-Newton")
    folded, calls = table.folded(), 0
    history, states, times, noise = [x], [], [], []
    for n, t in enumerate(folded.times):
        evaluated = _row_denoiser(denoise, folded, n)

        def predict(x: Tensor, t: Tensor, evaluated: Denoiser = evaluated) -> Tensor:
            nonlocal calls
            calls += 1
            return evaluated(x, t)

        history.append(predict(x, t))
        along_x, _ = _state_line(partial(predict, t=t), x, _sum_of_directions(history[:-1]))
        along_t, _ = _time_line(predict, x, t)
        states.append(measure_line(along_x))
        times.append(measure_line(along_t))
        noise.append(states[-1].noise / max(_rms(history[-1]), 1e-30))
        weights = (folded.states[n, 0], *folded.outputs[n, : n + 1])
        x = torch.stack([float(w) * h for w, h in zip(weights, history, strict=True)]).sum(0)
    _check_resolved(states, times, noise)
    along = None
    if features is not None:
        along = measure_line(_state_line(features, x, _sum_of_directions(history))[0])
    return Differences(
        states=[line.step for line in states],
        times=[line.step for line in times],
        features=0.0 if along is None else along.step,
        noise=median(noise),
        error=median(line.error for line in (*states, *times)),
        evaluations=calls * len(x),
    )


def _check_resolved(states: list[Line], times: list[Line], noise: list[float]) -> None:
    """Refuse predictions without a derivative in t, or without any derivative."""
    if not any(line.slope or line.noise for line in times):
        raise UserError(
            "the network's predictions do not change with t: give it its time, or let its answers have more bits "
            "(gas.check_model looks for the reason)"
        )
    # A long step that curvature bends is no fault of the predictions: NFE 1, where they hardly depend on the noise.
    if all(0 < math.sqrt(2) * line.noise >= line.slope * line.step for line in (*states, *times)):
        raise UserError(
            f"the network's predictions are too coarse to be differentiated: their noise, {median(noise):.1g} of their "
            "size, exceeds every change; let them have more bits"
        )


@torch.no_grad()
def linearize(
    denoise: Denoiser, x: Tensor, table: Table, differences: Differences
) -> tuple[Tensor, Tensor, int]:
    """Run a table and differentiate its sample in each of its :func:`numbers`.

    A weight of row n moves ``x_{n+1}`` along a prediction that is known anyway, so its tangent costs nothing
    before the next network call; the last row is linear. Every tangent at the input of a call costs one
    more network evaluation, ``(D(x + h v, t) - D(x, t)) / h``, or two, ``(D(x + h v, t) - D(x - h v, t)) / 2h``, where
    noise is large. Differences need only the network's predictions, work
    where forward-mode derivatives are not implemented, and cost less.

    Args:
        denoise: the frozen denoiser.
        x: the start ``(B, *)``, float32 or wider.
        table: the solver.
        differences: their steps.

    Returns:
        The sample ``(B, *)``, its derivatives ``(P, B, *)``, and the network evaluations of single samples spent.
    """
    refuse_residuals(table, "Gauss-Newton")
    folded = table.folded()
    history, tangents = [x], [x.new_zeros((0, *x.shape))]
    moved, calls = x.new_zeros((0, *x.shape)), 0
    for n in range(folded.nfe):
        evaluated = _row_denoiser(denoise, folded, n)
        prediction, derivative, spent = _predict(evaluated, x, folded.times[n], moved, n, differences)
        calls += spent
        history.append(prediction)
        tangents.append(derivative)
        weights = [float(w) for w in (folded.states[n, 0], *folded.outputs[n, : n + 1])]
        x = torch.stack([w * h for w, h in zip(weights, history, strict=True)]).sum(0)
        moved = x.new_zeros((len(derivative), *x.shape))
        for weight, tangent in zip(weights, tangents, strict=True):
            moved[: len(tangent)] += weight * tangent
        moved = torch.cat([moved, torch.stack(history)])
    return x, moved, calls * len(x)


@dataclass(frozen=True)
class Normal:
    """Squared residuals of a batch's pairs to second order: ``loss + 2 gradient . dz + dz . curvature dz``.

    ``losses`` and ``weights`` are ``(B,)``; ``loss``, ``gradient (P,)`` and ``curvature (P, P)`` are means of the
    pairs, each times its weight.
    """

    losses: Tensor
    weights: Tensor
    gradient: Tensor
    curvature: Tensor
    evaluations: int

    @property
    def loss(self) -> float:
        """The weighted mean loss."""
        return float((self.weights * self.losses).mean())


@torch.no_grad()
def normal_equations(
    bind: Callable[[slice], Denoiser],
    x: Tensor,
    target: Tensor,
    table: Table,
    differences: Differences,
    features: Callable[[Tensor], Tensor] | None = None,
    weights: Tensor | None = None,
) -> Normal:
    """Linearize ``mean w |f(sample) - f(target)|^2`` in the table's :func:`numbers`.

    Args:
        bind: the denoiser for a part of the batch.
        x: starts ``(B, *)``.
        target: the teacher's samples ``(B, *)``.
        table: the solver.
        differences: steps of the derivatives.
        features: f, ``(B, *) -> (B, F...)``; by default the samples themselves.
        weights: w of each pair ``(B,)``, by default 1.
    """
    losses, gradients, curvatures, evaluations = [], [], [], 0
    for part in tangent_slices(x, table):
        samples, tangents, spent = linearize(bind(part), x[part], table, differences)
        wanted = target[part].to(samples)
        if features is not None:
            samples, tangents = featured(features, samples, tangents, differences)
            wanted = features(wanted)
        residual, columns = residual_of(samples, tangents, wanted)
        losses.append(residual.square().sum(1).cpu())
        gradients.append((columns @ residual[..., None])[..., 0].cpu())
        curvatures.append((columns @ columns.mT).cpu())
        evaluations += spent
    loss = torch.cat(losses)
    weights = torch.ones_like(loss) if weights is None else weights
    parts = {
        "losses": loss,
        "weights": weights,
        "gradient": (weights[:, None] * torch.cat(gradients)).mean(0),
        "curvature": (weights[:, None, None] * torch.cat(curvatures)).mean(0),
    }
    # All processes share the same derivatives, but their products may round differently: take those of the first.
    return Normal(**distributed.broadcast(lambda: parts), evaluations=evaluations)


def tangent_slices(x: Tensor, table: Table) -> list[slice]:
    """Return the parts of a batch ``(B, *)`` whose tangents are held at once."""
    count = len(numbers(table.detach()))
    size = max(1, _TANGENT_BYTES // (2 * count * x[0].numel() * x.element_size()))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def joined(normals: Mapping[float, Normal], scales: Sequence[float]) -> Normal:
    """Return the normal equations of several guidance scales as one, in the numbers of all their tables.

    No scale has a say in another's numbers: the curvature is block diagonal. Errors grow with the scale, so pairs are
    weighted by the inverse of their scale's loss: a share of each counts alike.

    Args:
        normals: by scale; scales without any have blocks of zeros.
        scales: of the blocks.
    """
    losses = torch.tensor([normal.loss for normal in normals.values()], dtype=torch.float64)
    shares = len(losses) * torch.softmax(-losses.clamp(min=ROUNDING).log(), 0)
    count, size = sum(len(n.losses) for n in normals.values()), len(next(iter(normals.values())).gradient)
    gradient = torch.zeros(len(scales), size, dtype=torch.float64)
    curvature = torch.zeros(len(scales), size, len(scales), size, dtype=torch.float64)
    for (scale, normal), share in zip(normals.items(), shares, strict=True):
        block, weight = scales.index(scale), share * len(normal.losses) / count
        gradient[block] = weight * normal.gradient
        curvature[block, :, block] = weight * normal.curvature
    return Normal(
        losses=torch.cat([normal.losses for normal in normals.values()]),
        weights=torch.cat([w * n.weights for n, w in zip(normals.values(), shares, strict=True)]),
        gradient=gradient.flatten(),
        curvature=curvature.reshape(len(scales) * size, -1),
        evaluations=sum(normal.evaluations for normal in normals.values()),
    )


def residual_of(samples: Tensor, tangents: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals ``(B, R)`` and derivatives ``(B, P, R)`` in float64, scaled so that a loss is their square."""
    scale = samples[0].numel() ** -0.5
    columns = tangents.double().flatten(2).transpose(0, 1)
    return (samples - target).double().flatten(1) * scale, columns * scale


def featured(
    features: Callable[[Tensor], Tensor], samples: Tensor, tangents: Tensor, differences: Differences
) -> tuple[Tensor, Tensor]:
    """Return the features of samples and their derivatives along every tangent."""
    extracted, step, central = features(samples), differences.features, differences.central

    def column(v: Tensor) -> Tensor:
        return _derivative(*_state_line(features, samples, v), extracted, step, central)

    return extracted, _stacked(column, tangents, extracted)


def _predict(
    denoise: Denoiser, x: Tensor, t: Tensor, tangents: Tensor, call: int, differences: Differences
) -> tuple[Tensor, Tensor, int]:
    """Return the prediction at ``(x, t)``, its derivatives along every tangent of x and, last, in t; and the calls."""
    prediction, central = denoise(x, t), differences.central
    state_step, time_step = differences.states[call], differences.times[call]
    both_times = central and float(t) * (1 + time_step) <= 1

    def column(v: Tensor | None) -> Tensor:
        if v is None:
            return _derivative(*_time_line(denoise, x, t), prediction, time_step, both_times)
        line = _state_line(lambda y: denoise(y, t), x, v)
        return _derivative(*line, prediction, state_step, central)

    columns = _stacked(column, [*tangents, None], prediction)
    nonzero = int(tangents.flatten(1).any(1).sum())  # a tangent of zero needs no call
    return prediction, columns, 2 + both_times + (1 + central) * nonzero


def _row_denoiser(denoise: Denoiser, table: Table, row: int) -> Denoiser:
    """Return the row's denoiser: its input is preserved, its prediction copied in the dtype of x."""
    evaluated = denoise if table.branches is None else select_branches(denoise, table.branches[row])
    return lambda x, t: call_preserving(evaluated, x, t).to(x.dtype, copy=True)


def _stacked(column: Callable[[T], Tensor], directions: Iterable[T], like: Tensor) -> Tensor:
    """Return the derivatives along every direction; processes share the directions, so batch sizes stay the same."""
    return torch.stack([derivative.to(like) for derivative in distributed.map_sharded(column, directions)])


def _derivative(
    line: Callable[[float], Tensor], unit: float, origin: Tensor, step: float, central: bool
) -> Tensor:
    """Return the derivative on a line, from its value at the origin, in steps of so many units."""
    if unit == math.inf:  # no direction
        return torch.zeros_like(origin)
    if central:
        return (line(step) - line(-step)) / (2 * step * unit)
    return (line(step) - origin) / (step * unit)


def _state_line(
    function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor
) -> tuple[Callable[[float], Tensor], float]:
    """Return a function of the share of x's norm by which x moves along ``v``, and that norm in units of ``v``."""
    size = float(torch.linalg.vector_norm(v))
    unit = float(torch.linalg.vector_norm(x)) / size if size else math.inf
    return lambda share: function(x + share * unit * v), unit


def _time_line(denoise: Denoiser, x: Tensor, t: Tensor) -> tuple[Callable[[float], Tensor], float]:
    """Return a function of the share of t by which t moves, and t with the sign of that move.

    Towards the data from the noisy half and back from the other: times stay within the schedule's range.
    """
    unit = float(t) * (-1 if float(t) > 0.5 else 1)
    return lambda share: denoise(x, t + share * unit), unit


class LinearizedSteps:
    """What optimizers that linearize samples share: a solver's parameters and their tables, differences, and the state.

    Args:
        solver: changed in place.
        model: whose denoiser to call.
        pairs: to learn from.
        config: settings, a dataclass.
    """

    # Attributes that decide the next steps, beside the solver and the differences.
    _STATE: ClassVar[tuple[str, ...]] = ("weight", "damping", "iteration", "evaluations")

    def __init__(self, solver: nn.Module, model: Model, pairs: Pairs, config: Any) -> None:
        self.solver, self.model, self.pairs, self.config = solver, model, pairs, config
        self.scales = [part.guidance for part in pairs.by_scale()]
        self.learned = {name: p for name, p in solver.named_parameters() if p.requires_grad}
        self.nfe = table_of(solver).nfe
        self.differences: Differences | None = None
        self.weight, self.iteration, self.evaluations = 0.0, 0, 0

    def averaged(self) -> nn.Module:
        """Return the solver to validate: the running model averages already."""
        return self.solver

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the bits of this training."""
        return {type(self.config).__name__: asdict(self.config)}

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs to go on with the same bits."""
        differences = None if self.differences is None else asdict(self.differences)
        state = {name: getattr(self, name) for name in self._STATE}
        return {"solver": self.solver.state_dict(), "differences": differences, **state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.solver.load_state_dict(state["solver"])
        differences = state["differences"]
        self.differences = None if differences is None else Differences(**differences)
        for name in self._STATE:
            setattr(self, name, state[name])

    def _measure(self, few: Pairs, features: Callable[[Tensor], Tensor] | None) -> Differences:
        """Measure the steps of all differences on a few pairs of one guidance scale, before the first step."""
        table = self._table(self._parameters(), few.guidance).detach()
        denoise, x = self._bind(few, slice(None)), few.noise.to(self.model.device)
        with without_tf32():
            # In one process: rounding, which differs among machines, is what is measured.
            measured = distributed.broadcast(lambda: measure_differences(denoise, x, table, features))
        self.differences, self.evaluations = measured, self.evaluations + measured.evaluations
        return measured

    def _bind(self, pairs: Pairs, part: slice) -> Denoiser:
        return self.model.bind(None if pairs.labels is None else pairs.labels[part], pairs.guidance)

    def _parameters(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.learned.values()).detach()

    def _table(self, p: Tensor, scale: float) -> Table:
        """Return the solver's table at parameters ``p`` and a guidance scale, differentiable in the parameters."""
        arguments = (scale,) if isinstance(self.solver, GuidanceBNS) else ()
        parts = p.split([parameter.numel() for parameter in self.learned.values()])
        values = {name: x.view_as(old) for (name, old), x in zip(self.learned.items(), parts, strict=True)}
        table: Table = functional_call(self.solver, values, arguments)
        return table

    def _numbers(self, p: Tensor) -> Tensor:
        """Return the numbers of the tables of all guidance scales, one after another."""
        return torch.cat([numbers(self._table(p, scale)) for scale in self.scales])

    def _minimum(self, p: Tensor, gradient: Tensor, hessian: Tensor, free: Tensor) -> Tensor:
        """Return the parameters of the least quadratic model (:func:`gas.training.inner_solve.minimize`)."""
        # In one process: rounding, which differs among machines, decides which of its steps are taken.
        return distributed.broadcast(partial(minimize, self._numbers, p, gradient, hessian, free))


def _sum_of_directions(vectors: list[Tensor]) -> Tensor:
    return torch.stack([v / max(float(torch.linalg.vector_norm(v)), 1e-30) for v in vectors]).sum(0)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
