"""Noise schedules: signal and noise of a state at time t, in float64 and differentiable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gas.display import brief
from gas.errors import UserError

__all__ = [
    "EDMasVP",
    "Flow",
    "Schedule",
    "VPDiscrete",
    "VPLinear",
    "check_t_end",
    "earliest_time",
    "same_schedule",
    "schedule_from_config",
]

Time = Tensor | float


@runtime_checkable
class Schedule(Protocol):
    """The forward process ``x_t = alpha_t x_0 + sigma_t eps`` for t from 1 (noise) down to 0 (data).

    Results are float64 and differentiable in the argument. Times outside of ``[t_min, t_max]`` are refused: a VP
    process extends beyond 1, rectified flow does not.
    """

    t_max: ClassVar[float]

    @property
    def t_min(self) -> float:
        """The earliest time, without noise."""

    @property
    def t_end(self) -> float:
        """The default end of sampling: the first training step of a discrete schedule, else 1e-3, of a flow 0."""

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return ``(alpha_t, sigma_t)``, each of the shape of ``t``."""

    def half_log_snr(self, t: Time) -> Tensor:
        """Return ``lambda_t = log(alpha_t / sigma_t)``, strictly decreasing in ``t``."""

    def inverse_half_log_snr(self, lam: Time) -> Tensor:
        """Return the time at which the half log-SNR is ``lam``."""

    def config(self) -> dict[str, Any]:
        """Return ``{"kind": ..., parameters}`` in plain JSON values, for :func:`schedule_from_config`."""


class _VariancePreserving:
    """``alpha^2 + sigma^2 = 1``, by ``log alpha`` of a time."""

    t_max: ClassVar[float] = math.inf

    def _log_alpha(self, t: Time) -> Tensor:
        raise NotImplementedError

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def half_log_snr(self, t: Time) -> Tensor:
        log_alpha = self._log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """Variance-preserving schedule with linear beta: ``log alpha = -t^2 (beta_1 - beta_0)/4 - t beta_0/2``.

    Args:
        beta_0: beta at t = 0, positive.
        beta_1: beta at t = 1, at least ``beta_0``.

    References:
        Song et al., arXiv 2011.13456, equation 32.

    >>> alpha, sigma = VPLinear(beta_0=0.1, beta_1=20.0)(0.5)
    >>> round(float(alpha), 4), round(float(alpha**2 + sigma**2), 4)
    (0.2812, 1.0)
    """

    t_min: ClassVar[float] = 0.0
    t_end: ClassVar[float] = 1e-3  # where training on continuous times begins, arXiv 2011.13456, appendix C
    beta_0: float = 0.1
    beta_1: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_0 <= self.beta_1 < math.inf:
            raise UserError(
                f"VPLinear needs 0 < beta_0 <= beta_1, got beta_0={self.beta_0}, beta_1={self.beta_1}"
            )

    def inverse_half_log_snr(self, lam: Time) -> Tensor:
        # At lam = -inf the root would be inf/inf; a time this late stands for infinity.
        log_alpha = _log_alpha_at(lam).clamp(min=-1e300)
        a, b = (self.beta_1 - self.beta_0) / 4, self.beta_0 / 2
        # The root of a t^2 + b t + log_alpha = 0 in the form without cancellation near t = 0.
        return -2 * log_alpha / (b + (b * b - 4 * a * log_alpha).sqrt())

    def config(self) -> dict[str, Any]:
        return {"kind": "vp_linear", **asdict(self)}

    def _log_alpha(self, t: Time) -> Tensor:
        t = _within(self, t)
        return (-t * t * (self.beta_1 - self.beta_0) / 4 - t * self.beta_0 / 2).clamp(max=0.0)


@dataclass(frozen=True)
class EDMasVP(_VariancePreserving):
    """Linear VP schedule over the noise range in which an EDM network is sampled.

    ``sigma/alpha`` runs from ``min(sigma_max, rho(1))`` at t = 1 to ``max(sigma_min, rho(t_end))`` at
    ``t_end``, where ``rho`` is the standard VP process (beta 0.1 to 20): the network's own limits, and
    within them EDM's VP defaults. Levels that allow no increasing beta are refused.

    Args:
        t_end: time of the lowest level, in (0, 1).
        sigma_min: lowest level that the network supports, positive.
        sigma_max: highest level that the network supports, above ``sigma_min``.

    References:
        Karras et al., arXiv 2206.00364, Table 1 (VP column) and the sampler of its published code.
    """

    t_min: ClassVar[float] = 0.0
    t_end: float = 1e-3
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not (0 < self.t_end < 1 and 0 < self.sigma_min < self.sigma_max < math.inf):
            raise UserError(
                "EDMasVP needs 0 < t_end < 1 and 0 < sigma_min < sigma_max, got "
                f"t_end={self.t_end}, sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )
        _ = self.linear

    @cached_property
    def linear(self) -> VPLinear:
        """The same schedule by its betas: ``log(1 + (sigma/alpha)^2) = beta_0 t + (beta_1 - beta_0) t^2 / 2``."""
        standard = VPLinear(beta_0=0.1, beta_1=20.0)
        low = max(math.log1p(self.sigma_min * self.sigma_min), -2 * float(standard._log_alpha(self.t_end)))
        high = min(math.log1p(self.sigma_max * self.sigma_max), -2 * float(standard._log_alpha(1.0)))
        slope = 2 * (low / self.t_end - high) / (self.t_end - 1)
        return VPLinear(beta_0=high - slope / 2, beta_1=high + slope / 2)

    def inverse_half_log_snr(self, lam: Time) -> Tensor:
        return self.linear.inverse_half_log_snr(lam)

    def config(self) -> dict[str, Any]:
        return {"kind": "edm_vp", **asdict(self)}

    def _log_alpha(self, t: Time) -> Tensor:
        return self.linear._log_alpha(t)


@dataclass(frozen=True)
class VPDiscrete(_VariancePreserving):
    """Variance-preserving schedule of a network trained on M discrete steps.

    ``log alpha`` is interpolated linearly in t between its values at ``t_i = (i + 1) / M`` and continued
    linearly outside, from the time on at which it is 0.

    Args:
        alphas_cumprod: ``alpha^2`` of the M >= 2 steps, strictly decreasing, within (0, 1): the array of that
            name in DDPM-style code.

    References:
        Lu et al., arXiv 2206.00927, appendix D.4.
    """

    alphas_cumprod: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).flatten().cpu()
        wrong = ~((values > 0) & (values < 1))
        wrong[1:] |= ~(values.diff() < 0)
        if len(values) < 2 or bool(wrong.any()):
            place = int(wrong.nonzero()[0]) if bool(wrong.any()) else 0
            got = f"{float(values[place]):g} at step {place} of {len(values)}" if len(values) else "none"
            is_terminal = values[place:].tolist() == [0.0]
            hint = "; for zero terminal SNR put 2**-24 in its place" if is_terminal else ""
            raise UserError(
                "alphas_cumprod must be at least two strictly decreasing numbers within (0, 1), got "
                f"{got}{hint}"
            )
        object.__setattr__(self, "alphas_cumprod", tuple(values.tolist()))

    def __repr__(self) -> str:
        """Return the number of steps and both ends in place of a thousand numbers."""
        first, last = self.alphas_cumprod[0], self.alphas_cumprod[-1]
        return f"VPDiscrete({self.steps} steps, alphas_cumprod {float(first):g} to {float(last):g})"

    @cached_property
    def t_min(self) -> float:
        """The time at which the first two steps' line through ``log alpha`` is 0, or 0 where that is earlier."""
        first, second = (math.log(value) for value in self.alphas_cumprod[:2])
        return max(0.0, (1 - first / (second - first)) / self.steps)

    @property
    def t_end(self) -> float:
        """The first training step, ``1 / M``."""
        return 1 / self.steps

    @property
    def steps(self) -> int:
        """The number M of training steps."""
        return len(self.alphas_cumprod)

    def network_time(self, t: Time) -> Tensor:
        """Return the float step for the network: ``(t - 1/M) M``, in [0, M - 1] on the training range."""
        return (_float64(t) - 1 / self.steps) * self.steps

    def inverse_half_log_snr(self, lam: Time) -> Tensor:
        target = _log_alpha_at(lam)
        times, log_alpha = self._knots(target.device)
        return _interpolate(target, log_alpha.flip(0), times.flip(0))

    def config(self) -> dict[str, Any]:
        return {"kind": "vp_discrete", "alphas_cumprod": list(self.alphas_cumprod)}

    @cached_property
    def _placed(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """The knots by device, cached: a captured CUDA graph cannot copy them from the CPU."""
        log_alpha = torch.tensor(self.alphas_cumprod, dtype=torch.float64).log() / 2
        times = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
        return {times.device: (times, log_alpha)}

    def _knots(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._placed:
            times, log_alpha = next(iter(self._placed.values()))
            self._placed[device] = times.to(device), log_alpha.to(device)
        return self._placed[device]

    def _log_alpha(self, t: Time) -> Tensor:
        t = _within(self, t)
        return _interpolate(t, *self._knots(t.device)).clamp(max=0.0)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: ``alpha = 1 - t``, ``sigma = t``; the half log-SNR is infinite at both ends.

    References:
        Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747.

    >>> alpha, sigma = Flow()(0.25)
    >>> float(alpha), float(sigma)
    (0.75, 0.25)
    """

    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0
    t_end: ClassVar[float] = 0.0

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        t = _within(self, t)
        return 1 - t, t * 1

    def half_log_snr(self, t: Time) -> Tensor:
        t = _within(self, t)
        return torch.log1p(-t) - t.log()

    def inverse_half_log_snr(self, lam: Time) -> Tensor:
        return torch.sigmoid(-_float64(lam))

    def config(self) -> dict[str, Any]:
        return {"kind": "flow"}


_KINDS = {"vp_linear": VPLinear, "edm_vp": EDMasVP, "vp_discrete": VPDiscrete, "flow": Flow}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Build the schedule that ``config()`` describes."""
    parameters = dict(config)
    kind = parameters.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(f"schedule kind must be one of {sorted(_KINDS)}, got {brief(kind)}")
    try:
        schedule: Schedule = _KINDS[kind](**parameters)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"schedule {kind!r} does not take these parameters: {str(error)[:120]}") from error
    return schedule


def same_schedule(a: Schedule, b: Schedule) -> bool:
    """Return whether two schedules have the same noise levels: half log-SNR within 1e-3, as float32 betas round."""
    t = torch.linspace(max(0.01, a.t_end, b.t_end), 0.99, 99, dtype=torch.float64)
    difference = (a.half_log_snr(t) - b.half_log_snr(t)).abs()
    return isinstance(a, Flow) == isinstance(b, Flow) and bool((difference < 1e-3).all())


def check_t_end(schedule: Schedule, t_end: float) -> None:
    """Refuse an end of sampling outside of ``[t_min, 1)``."""
    if not schedule.t_min <= t_end < 1:
        raise UserError(
            f"t_end must lie in [{schedule.t_min:.6g}, 1), got {t_end:g}; the usual one of {schedule} is "
            f"{schedule.t_end:g}"
        )


def earliest_time(schedule: Schedule, t_end: float) -> float:
    """Return the earliest time at which a learned solver evaluates: half of ``t_end``, if noise is left there."""
    if t_end / 2 > schedule.t_min:
        return t_end / 2
    return (schedule.t_min + t_end) / 2 if t_end > schedule.t_min else schedule.t_min + 1e-4


# Tolerance for the rounding of computed times, which pipelines compute in float32.
_ROUNDING = 1e-6
# Tolerance for times of levels in float32: a network's time of atan(sigma) loses most, 5e-6 at sigma = 500.
_ROUNDING_OF_LEVELS = 1e-5


def without_rounding(t: Tensor) -> Tensor:
    """Return times with those that rounding alone puts beyond 1, as that of levels in float32 does, set to 1."""
    return torch.where((t > 1) & (t <= 1 + _ROUNDING_OF_LEVELS), 1.0, t)


def _within(schedule: Schedule, t: Time) -> Tensor:
    """Return the time as float64, checked against the range on the CPU only: elsewhere that would synchronize."""
    t = _float64(t)
    if t.device.type != "cpu" or not t.numel() or torch.compiler.is_compiling():
        return t
    try:
        low, high = (float(end) for end in t.detach().aminmax())
    except RuntimeError:  # under vmap and for a FakeTensor there are no values
        return t
    if not schedule.t_min - _ROUNDING <= low <= high <= schedule.t_max + _ROUNDING:
        wrong = low if low < schedule.t_min - _ROUNDING else high
        limits = f"[{schedule.t_min:.6g}, {schedule.t_max:g}]"
        raise UserError(f"times of {schedule} lie in {limits}, 1 being noise, got {wrong:g}")
    return t


def _float64(value: Time) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _log_alpha_at(lam: Time) -> Tensor:
    """Return ``log alpha`` of a variance-preserving process at a half log-SNR."""
    return -0.5 * softplus(-2 * _float64(lam), threshold=700.0)


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation over increasing ``knots``, continued linearly outside them."""
    if torch.compiler.is_compiling():  # ONNX, whose exporter traces so too, has no search
        right = (knots < x.detach()[..., None]).sum(-1)
    else:
        right = torch.searchsorted(knots, x.detach().contiguous())
    right = right.clamp(1, len(knots) - 1)
    x0, x1, y0, y1 = knots[right - 1], knots[right], values[right - 1], values[right]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)
