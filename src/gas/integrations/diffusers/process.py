"""What a diffusers scheduler's config says of its model: the schedule, how it is told the time, what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gas.denoise import call_preserving
from gas.integrations.diffusers.config import translated
from gas.schedule import Flow, Schedule, VPDiscrete
from gas.stepper import is_learned

__all__ = ["PREDICTIONS", "Process", "ProcessDenoiser", "clean", "process_of", "schedule_of"]

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
        return 0.0 if self.kind == "flow" else 1 / self.steps

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
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
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
    return Process("vp", VPDiscrete(_alphas_cumprod(config)), prediction, steps)


def _karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> VPDiscrete:
    """A VP process through M levels spaced evenly in ``sigma^(1/rho)`` (arXiv 2206.00364, equation 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
    return VPDiscrete(1 / (1 + sigma**2))


def _alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """The betas as diffusers itself makes them, whatever their schedule is called."""
    from gas.integrations.diffusers.library import diffusers

    library = diffusers()
    maker = library.DDPMScheduler if config.get("snr_shift_scale") is None else library.CogVideoXDDIMScheduler
    keys = ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"]
    keys += ["rescale_betas_zero_snr", "snr_shift_scale"]
    given = {key: config[key] for key in keys if config.get(key) is not None}
    zero = config.get("rescale_betas_zero_snr")
    if "trained_betas" in given and not zero and "snr_shift_scale" not in given:
        return (1 - torch.tensor(given["trained_betas"], dtype=torch.float64)).cumprod(0)
    alphas_cumprod: Tensor = maker(**given).alphas_cumprod.to(torch.float64)
    return alphas_cumprod.clamp(min=_LEAST_ALPHA_SQUARED) if zero else alphas_cumprod
