"""The model behind a diffusers scheduler config: its schedule, the time its network takes, its prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C import _disabled_torch_function_impl

from gas.arguments import MAX_ITERATIONS, choice, integer, number
from gas.denoise import Denoiser, call_preserving
from gas.display import brief
from gas.errors import UserError
from gas.pipelines.scheduler_config import diffusers, translate
from gas.sampling import is_learned
from gas.schedule import Flow, Schedule, VPDiscrete

__all__ = ["PREDICTIONS", "Process", "StepValues", "alpha_ratios", "process_of"]

Kind = Literal["vp", "edm", "flow"]
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")

# Replaces alpha^2 = 0 of a schedule without signal at the last step, as diffusers' solvers do.
_LEAST_ALPHA_SQUARED = 2**-24


@dataclass(frozen=True)
class Process:
    """The forward process of a diffusers model, with states as its pipeline scales them.

    A pipeline's state is ``y_t = a x_0 + s eps`` with ``(a, s) = signal_and_noise(t)``: that of the schedule for VP and
    flow, ``(1, sigma/alpha)`` for EDM. The prediction of x_0 is affine in the network's output:
    ``x_0 = p y + q output`` with ``(p, q) = conversion(t)``.

    Args:
        schedule: the process in this library's time.
        prediction: one of :data:`PREDICTIONS`.
        steps: number of training steps M, the unit of the network's time.
        sigma_data: EDM: standard deviation of the data.
        level: EDM: the network's time for a level: ``"log"`` is ``log(sigma)/4``, ``"atan"`` is ``2 atan(sigma)/pi``.
        inverted: flow: the network's time runs from 0 at noise to M at data, and it predicts ``x_0 - eps`` (Mochi).
    """

    kind: Kind
    schedule: Schedule
    prediction: str
    steps: int = 1000
    sigma_data: float = 0.5
    level: str = "log"
    inverted: bool = False

    @property
    def t_end(self) -> float:
        """Time that classical solvers end at: the first training step, 0 of a flow."""
        return self.schedule.t_end

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(a, s)`` of a pipeline's state ``a x_0 + s eps`` at ``t``."""
        alpha, sigma = self.schedule(t)
        return (torch.ones_like(alpha), sigma / alpha) if self.kind == "edm" else (alpha, sigma)

    def network_time(self, t: Tensor) -> Tensor:
        """Return the network's time at ``t``, float64."""
        if self.kind == "flow":
            return (1 - t if self.inverted else t) * self.steps
        if self.kind == "vp":
            return (t * self.steps - 1).clamp(0, self.steps - 1)
        sigma = self.signal_and_noise(t)[1]
        return sigma.log() / 4 if self.level == "log" else sigma.atan() * (2 / math.pi)

    def time(self, network_time: Tensor) -> Tensor:
        """Return the time ``t`` of the network's time."""
        network_time = network_time.to(torch.float64)
        if self.kind == "flow":
            t = network_time / self.steps
            return 1 - t if self.inverted else t
        if self.kind == "vp":
            return (network_time + 1) / self.steps
        is_log = self.level == "log"
        log_sigma = network_time * 4 if is_log else (network_time * (math.pi / 2)).tan().log()
        return self.schedule.inverse_half_log_snr(-log_sigma)

    def conversion(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(p, q)`` of ``x_0 = p y_t + q output``."""
        a, s = self.signal_and_noise(t)
        if self.prediction == "sample":
            return torch.zeros_like(a), torch.ones_like(a)
        if self.kind == "flow":
            return torch.ones_like(a), s if self.inverted else -s
        if self.kind == "edm":
            square = s**2 + self.sigma_data**2
            out = s * self.sigma_data / square.sqrt()
            return self.sigma_data**2 / square, -out if self.prediction == "v_prediction" else out
        return (1 / a, -s / a) if self.prediction == "epsilon" else (a, -s)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return the factor of the network's input: 1 but for EDM."""
        s = self.signal_and_noise(t)[1]
        return 1 / (s**2 + self.sigma_data**2).sqrt() if self.kind == "edm" else torch.ones_like(s)

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
        """Return ``denoise(x, t) -> x_0``, differentiable in both.

        ``network(input, network_time) -> output`` is called as a pipeline calls it, with one float32 time a sample.
        """

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            t = t.to("cpu", torch.float64)
            time = self.network_time(t).to(x.device, torch.float32).expand(len(x))
            if self.kind == "edm":  # x is alpha times the pipeline's state
                x = x / self.schedule(t)[0]
                output = network(x * self.input_scale(t), time)
            else:
                output = call_preserving(network, x, time)
            p, q = self.conversion(t)
            return data_prediction(output, x, *((p, q) if is_learned(t) else (p.item(), q.item())))

        return denoise


class StepValues(torch.Tensor):
    """One number a training step, which a pipeline may look up at the float time of its network.

    Between steps the ``log`` is interpolated, as in :class:`gas.VPDiscrete`. Every other operation gives a plain
    tensor.
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


def data_prediction(output: Tensor, y: Tensor, p: float | Tensor, q: float | Tensor) -> Tensor:
    """Return ``x_0 = p y + q output`` in the wider of both dtypes; ``p`` and ``q`` may be tensors to differentiate.

    Plain numbers are multiplied and added in one fixed way: at the first steps ``p`` is large, and rounding the
    product before the sum, or not, would be the largest difference between a pipeline and :func:`gas.sample`.
    """
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return p * y + q * output
    wide = torch.promote_types(y.dtype, output.dtype)
    return torch.add(y.to(wide) * p, output, alpha=q) if p else output.to(wide) * q


def process_of(config: Mapping[str, Any]) -> Process:
    """Read a diffusers scheduler's config (``pipe.scheduler.config``) or our own.

    VP schedules become :class:`gas.VPDiscrete` of diffusers' own ``alphas_cumprod``, flows :class:`gas.Flow` (a shift
    for the resolution chooses times, it does not change the process). EDM becomes a :class:`gas.VPDiscrete` whose M
    levels ``sigma/alpha`` are Karras's from ``sigma_min`` to ``sigma_max``.

    Raises:
        ValueError: for a scheduler that is no sampler of a diffusion or flow ODE, or an unknown prediction type.
        ImportError: without diffusers.
    """
    config = translate(config)
    steps = config.get("num_train_timesteps")
    steps = 1000 if steps is None else integer("num_train_timesteps", steps, 1, MAX_ITERATIONS)
    if config.get("trained_betas") is not None:
        config = {**config, "trained_betas": numbers("trained_betas", config["trained_betas"]).tolist()}
    prediction = config.get("prediction_type") or "epsilon"
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    if prediction == "flow_prediction":
        _shift(config)  # refused here, not in the first call
        inverted = bool(config.get("invert_sigmas"))
        return Process(kind="flow", schedule=Flow(), prediction=prediction, steps=steps, inverted=inverted)
    if config.get("sigma_data") is not None:
        sigma_min = number("sigma_min", config.get("sigma_min"), "(0, inf)")
        sigma_max = number("sigma_max", config.get("sigma_max"), f"({sigma_min}, inf)")
        return Process(
            kind="edm",
            schedule=_karras(steps, sigma_min, sigma_max),
            prediction=prediction,
            steps=steps,
            sigma_data=number("sigma_data", config["sigma_data"], "(0, inf)"),
            level=choice("level_embedding", config.get("level_embedding") or "log", ("log", "atan")),
        )
    schedule = VPDiscrete(_alphas_cumprod(config))
    # The number of trained betas may differ from num_train_timesteps.
    return Process(kind="vp", schedule=schedule, prediction=prediction, steps=schedule.steps)


def numbers(name: str, values: Any) -> Tensor:
    """Return a list of numbers, one or more, as float64."""
    try:
        listed = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        listed = torch.empty(0)
    if listed.ndim != 1 or not len(listed):
        raise UserError(f"{name} must be a list of numbers, got {brief(values)}")
    return listed


def _karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> VPDiscrete:
    """A VP process through M levels spaced evenly in ``sigma^(1/rho)`` (arXiv 2206.00364, equation 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
    return VPDiscrete(1 / (1 + sigma**2))


_BETA = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "snr_shift_scale")


def _alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """``alpha^2`` of the training steps, from the betas that diffusers computes for this config."""
    kwargs = {key: config[key] for key in _BETA if config.get(key) is not None}
    for key in {"beta_start", "beta_end", "snr_shift_scale"} & kwargs.keys():
        number(key, kwargs[key], "[0, inf)")
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if "trained_betas" in kwargs and "snr_shift_scale" not in kwargs:
        exact = (1 - torch.tensor(kwargs["trained_betas"], dtype=torch.float64)).cumprod(0)
        return _zero_snr(exact) if zero_snr else exact
    name = "DDPMScheduler"  # computes every beta schedule but these two
    if config.get("snr_shift_scale") is not None:
        name = "CogVideoXDDIMScheduler"
    elif config.get("beta_schedule") == "exp":
        name = "HeunDiscreteScheduler"
    scheduler = getattr(diffusers(), name)
    rescaled: Any = scheduler(**kwargs, **({"rescale_betas_zero_snr": True} if zero_snr else {}))
    alphas_cumprod: Tensor = rescaled.alphas_cumprod.to(torch.float64)
    if zero_snr:
        alphas_cumprod = _above_zero(alphas_cumprod)
    if bool((alphas_cumprod.diff() < 0).all()) or "snr_shift_scale" in kwargs:
        return alphas_cumprod
    # With many steps the last products are below the range of float32.
    exact = (1 - scheduler(**kwargs).betas.to(torch.float64)).cumprod(0)
    return _zero_snr(exact) if zero_snr else exact


def alpha_ratios(schedule: VPDiscrete) -> Tensor:
    """Return ``1 - beta`` of each training step, float64: the ratio of its ``alpha^2`` to that of the step before."""
    alphas_cumprod = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    return alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


def _zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule shifted and stretched to a last signal of 0 (arXiv 2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return _above_zero(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)


def _above_zero(alphas_cumprod: Tensor) -> Tensor:
    """The schedule with a small number for its last signal, 0: less than the step before has."""
    least = min(_LEAST_ALPHA_SQUARED, float(alphas_cumprod[-2]) / 4)
    return torch.cat([alphas_cumprod[:-1], alphas_cumprod.new_tensor([least])])


def _shift(config: Mapping[str, Any]) -> float:
    shift = config.get("shift")
    return 1.0 if shift is None else number("shift", shift, "(0, inf)")


def shift_of(config: Mapping[str, Any], mu: float | None) -> float:
    """Return the shift of a flow's times: the config's, or that of ``mu`` for the resolution, which is then needed."""
    if not config.get("use_dynamic_shifting"):
        return _shift(config)
    if mu is None:
        raise UserError("mu must be passed where use_dynamic_shifting=True: it gives the shift")
    is_exponential = config.get("time_shift_type", "exponential") == "exponential"
    return float(torch.tensor(float(mu), dtype=torch.float64).exp()) if is_exponential else float(mu)
