"""What a diffusers scheduler's config says of its model: the schedule, how it is told the time, what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch._C import _disabled_torch_function_impl

from gas.denoise import call_preserving
from gas.errors import UserError
from gas.pipelines.scheduler_config import translated
from gas.sampling import is_learned
from gas.schedule import Flow, Schedule, VPDiscrete

__all__ = [
    "PREDICTIONS",
    "Process",
    "ProcessDenoiser",
    "StepValues",
    "clean",
    "process_of",
    "schedule_of",
    "shift_of",
]

Kind = Literal["vp", "edm", "flow"]
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")

# In place of alpha^2 = 0, where a schedule has no signal left at the last step; diffusers' solvers take the same.
_LEAST_ALPHA_SQUARED = 2**-24


@dataclass(frozen=True)
class Process:
    """The forward process of a diffusers model, in the form its pipeline keeps states in.

    A pipeline's state is ``y_t = a x_0 + s eps`` with ``(a, s) = form(t)``: that of the schedule for VP and flow, and
    ``(1, sigma/alpha)`` for EDM. The network's output is affine in what it estimates: ``x_0 = p y + q output`` with
    ``(p, q) = conversion(t)``.

    Args:
        kind: ``"vp"``, ``"edm"`` or ``"flow"``.
        schedule: the process in this library's time.
        prediction: one of :data:`PREDICTIONS`.
        steps: number of training steps M; the unit of the times that the network is told.
        sigma_data: EDM: standard deviation of the data.
        level: EDM: how the network is told a level: ``"log"`` is ``log(sigma)/4``, ``"atan"`` is ``2 atan(sigma)/pi``.
    """

    kind: Kind
    schedule: Schedule
    prediction: str
    steps: int = 1000
    sigma_data: float = 0.5
    level: str = "log"

    @property
    def t_end(self) -> float:
        """Time that classical solvers end at: the first training step, or 0 of a flow."""
        return self.schedule.t_end

    def form(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much signal and noise a state of the pipeline holds at ``t``."""
        alpha, sigma = self.schedule(t)
        return (torch.ones_like(alpha), sigma / alpha) if self.kind == "edm" else (alpha, sigma)

    def told(self, t: Tensor) -> Tensor:
        """Return the float time that the network is told, float64."""
        if self.kind == "flow":
            return t * self.steps
        if self.kind == "vp":
            return (t * self.steps - 1).clamp(0, self.steps - 1)
        sigma = self.form(t)[1]
        return sigma.log() / 4 if self.level == "log" else sigma.atan() * (2 / math.pi)

    def time(self, told: Tensor) -> Tensor:
        """Return the time ``t`` at which the network is told ``told``."""
        told = told.to(torch.float64)
        if self.kind == "flow":
            return told / self.steps
        if self.kind == "vp":
            return (told + 1) / self.steps
        log_sigma = told * 4 if self.level == "log" else (told * (math.pi / 2)).tan().log()
        return self.schedule.inverse_half_log_snr(-log_sigma)

    def conversion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(p, q)`` of ``x_0 = p y_t + q output``."""
        alpha, sigma = self.form(t)
        if self.prediction == "sample":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        if self.kind == "flow":
            return torch.ones_like(alpha), -sigma
        if self.kind == "edm":
            square = sigma**2 + self.sigma_data**2
            out = sigma * self.sigma_data / square.sqrt()
            return self.sigma_data**2 / square, -out if self.prediction == "v_prediction" else out
        return (1 / alpha, -sigma / alpha) if self.prediction == "epsilon" else (alpha, -sigma)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return what the network's input is multiplied by: 1 but for EDM."""
        sigma = self.form(t)[1]
        return 1 / (sigma**2 + self.sigma_data**2).sqrt() if self.kind == "edm" else torch.ones_like(sigma)

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor]) -> ProcessDenoiser:
        """Return the denoiser of ``network(input, told) -> output``, which is asked as a pipeline asks it."""
        return ProcessDenoiser(self, network)


@dataclass(frozen=True)
class ProcessDenoiser:
    """``denoise(x, t) -> x_0`` of a network that a diffusers pipeline would ask, differentiable in both.

    Args:
        process: what the pipeline's scheduler config says.
        network: ``network(input, told) -> output``; ``told`` is one float32 time a sample, ``(B,)``.
    """

    process: Process
    network: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        process = self.process
        t = t.to("cpu", torch.float64)
        if process.kind == "edm":  # x is alpha times the pipeline's state
            x = x / process.schedule(t)[0]
        p, q = process.conversion(t)
        told = process.told(t).to(x.device, torch.float32).expand(len(x))
        scale = process.input_scale(t)
        output = (
            self.network(x * scale, told) if process.kind == "edm" else call_preserving(self.network, x, told)
        )
        return clean(output, x, p, q) if is_learned(t) else clean(output, x, p.item(), q.item())


class StepValues(torch.Tensor):
    """One number a training step, which a pipeline may look up at the float time that its network is given.

    Between two steps ``log`` of the number is interpolated, as in :class:`gas.VPDiscrete`. Everything else of a tensor
    gives a plain tensor.
    """

    __torch_function__ = _disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        if isinstance(index, slice) and any(isinstance(end, float) for end in (index.start, index.stop)):
            raise IndexError(
                f"steps {index.start:g} to {index.stop:g} of the training cannot be counted: the times of a table lie "
                "between steps, and this pipeline needs a scheduler of whole timesteps"
            )
        if not isinstance(index, float) and not (isinstance(index, Tensor) and index.is_floating_point()):
            return plain[index]
        step = torch.as_tensor(index, dtype=torch.float64, device=plain.device).clamp(0, len(plain) - 1)
        before = step.floor().long().clamp(max=len(plain) - 2)
        log = plain.to(torch.float64).log()
        return torch.lerp(log[before], log[before + 1], step - before).exp().to(plain.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> StepValues:
        return self.clone().as_subclass(StepValues)


def clean(output: Tensor, y: Tensor, p: float | Tensor, q: float | Tensor) -> Tensor:
    """Return ``x_0 = p y + q output``.

    Of plain numbers in one way, whoever asks: at the first steps ``p`` is large, and a product that is rounded before
    it is added, or not, would be the largest difference between a pipeline and :func:`gas.sample`.

    Args:
        output: the network's answer, ``(B, *)``.
        y: the state that it was asked at, of the same shape.
        p, q: numbers, or scalar tensors where derivatives are wanted.

    Returns:
        The estimate of the clean sample, in the wider of both dtypes.
    """
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return p * y + q * output
    wide = torch.promote_types(y.dtype, output.dtype)
    return torch.add(y.to(wide) * p, output, alpha=q) if p else output.to(wide) * q


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a diffusers scheduler's config; see :func:`process_of`."""
    return process_of(config).schedule


def process_of(config: Mapping[str, Any]) -> Process:
    """Read a diffusers scheduler's config (``pipe.scheduler.config``) or our own.

    VP schedules are :class:`gas.VPDiscrete` of diffusers' own ``alphas_cumprod``, flow ones :class:`gas.Flow` (a shift
    of resolution chooses times, it does not change the process). EDM becomes a :class:`gas.VPDiscrete` whose M levels
    ``sigma/alpha`` are Karras's from ``sigma_min`` to ``sigma_max``.

    Raises:
        ValueError: for a scheduler that is no sampler of a diffusion or flow ODE, or a prediction type unknown to us.
        ImportError: without diffusers.
    """
    config = translated(config)
    steps = int(config.get("num_train_timesteps") or 1000)
    prediction = config.get("prediction_type") or "epsilon"
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    if prediction == "flow_prediction":
        return Process("flow", Flow(), prediction, steps)
    if config.get("sigma_data") is not None:
        return Process(
            "edm",
            _karras(steps, config["sigma_min"], config["sigma_max"]),
            prediction,
            steps,
            config["sigma_data"],
            config.get("level_embedding") or "log",
        )
    schedule = VPDiscrete(_alphas_cumprod(config))
    return Process("vp", schedule, prediction, schedule.steps)  # trained betas may be of another number


def _karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> VPDiscrete:
    """A VP process through M levels spaced evenly in ``sigma^(1/rho)`` (arXiv 2206.00364, equation 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
    return VPDiscrete(1 / (1 + sigma**2))


def _alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """Return ``alpha^2`` of the training steps, of the betas as diffusers makes them, whatever their name."""
    keys = [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "snr_shift_scale",
    ]
    given = {key: config[key] for key in keys if config.get(key) is not None}
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if "trained_betas" in given and "snr_shift_scale" not in given:
        exact = (1 - torch.tensor(given["trained_betas"], dtype=torch.float64)).cumprod(0)
        return _zero_snr(exact) if zero_snr else exact
    maker = _maker(config)
    alphas_cumprod = maker(**given, **({"rescale_betas_zero_snr": True} if zero_snr else {})).alphas_cumprod
    alphas_cumprod = (
        _above_zero(alphas_cumprod.to(torch.float64)) if zero_snr else alphas_cumprod.to(torch.float64)
    )
    if bool((alphas_cumprod.diff() < 0).all()) or "snr_shift_scale" in given:
        return alphas_cumprod
    # Of many steps the last products are below what float32 holds.
    exact = (1 - maker(**given).betas.to(torch.float64)).cumprod(0)
    return _zero_snr(exact) if zero_snr else exact


def _maker(config: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the class of diffusers that makes these betas."""
    from gas.pipelines.scheduler_config import diffusers

    name = "DDPMScheduler"
    if config.get("snr_shift_scale") is not None:
        name = "CogVideoXDDIMScheduler"
    elif config.get("beta_schedule") == "exp":
        name = "HeunDiscreteScheduler"
    return cast("Callable[..., Any]", getattr(diffusers(), name))


def _zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return the schedule shifted and stretched so that its last signal is 0 (arXiv 2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return _above_zero(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)


def _above_zero(alphas_cumprod: Tensor) -> Tensor:
    """Return the schedule with its last signal, 0, replaced by a little: less than the step before still has."""
    least = min(_LEAST_ALPHA_SQUARED, float(alphas_cumprod[-2]) / 4)
    return torch.cat([alphas_cumprod[:-1], alphas_cumprod.new_tensor([least])])


def shift_of(config: Mapping[str, Any], mu: float | None) -> float:
    """Return the shift of a flow's times: the config's, or what ``mu`` makes of this resolution.

    Raises:
        ValueError: when the shift depends on the resolution and the pipeline has not told ``mu``.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or 1.0)
    if mu is None:
        raise UserError(
            "mu must be passed where use_dynamic_shifting=True: the shift depends on the resolution"
        )
    told = torch.tensor(float(mu), dtype=torch.float64)
    return float(told.exp() if config.get("time_shift_type", "exponential") == "exponential" else told)
