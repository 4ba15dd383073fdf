"""Configs of diffusers' schedulers in the keys of :class:`gas.GASScheduler`, and the class that a config is of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from gas.errors import UserError, requires

# The key under which diffusers lists the arguments that were left at their defaults.
DEFAULTS = "_use_default_values"

_VP = {
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}
_EDM = {"CosineDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}
_FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
_OURS = "GASScheduler"
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid", "laplace")
_EDM_DEFAULTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "level_embedding": "log"}
_COSINE_DEFAULTS = {
    "sigma_min": 0.3,
    "sigma_max": 500.0,
    "sigma_data": 1.0,
    "prediction_type": "v_prediction",
    "level_embedding": "atan",
}


_MODEL_KEYS = {
    "edm": "level_embedding sigma_data sigma_max sigma_min",
    "flow": "base_image_seq_len base_shift invert_sigmas max_image_seq_len max_shift shift shift_terminal "
    "time_shift_type use_dynamic_shifting",
    "vp": "beta_end beta_schedule beta_start rescale_betas_zero_snr snr_shift_scale trained_betas",
}


def diffusers() -> Any:
    """Return the installed diffusers package, or say what to install."""
    with requires("diffusers", "gas.GASScheduler needs diffusers"):
        import diffusers as library

        _ = library.SchedulerMixin  # a broken torchvision raises RuntimeError
    return library


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """Return a scheduler's config with the name of its class, or of that of diffusers which its class extends."""
    names = [
        kind.__name__
        for kind in type(scheduler).__mro__
        if kind.__name__.endswith("Scheduler") and kind.__module__.partition(".")[0] in ("diffusers", "gas")
    ]
    config: Mapping[str, Any] = scheduler.config
    return {**config, "_class_name": names[0]} if names else config


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's config, ours included, in our own keys, with what its class implies made explicit.

    Raises:
        ValueError: for a scheduler that samples something else than a diffusion or flow ODE.
    """
    ours = {key: value for key, value in config.items() if key != DEFAULTS}
    name = str(ours.get("_class_name") or _class_name(config))
    if name in _FLOW and _is_vp(ours):
        name = _OURS
    _check_supported(name, ours)
    is_flow = ours.get("use_flow_sigmas") or ours.get("prediction_type") == "flow_prediction"
    if name in _FLOW or is_flow:
        shift = ours.get("flow_shift", 1.0) if ours.get("shift") is None else ours["shift"]
        return {**ours, "prediction_type": "flow_prediction", "shift": shift}
    if name in _EDM:
        defaults = _COSINE_DEFAULTS if name.startswith("Cosine") else _EDM_DEFAULTS
        return {**defaults, **ours, "level_embedding": defaults["level_embedding"]}
    if name == "EulerDiscreteScheduler" and ours.get("timestep_type") == "continuous":
        return {**ours, **_continuous_keys(ours)}
    if name.startswith("CogVideoX"):
        return {"snr_shift_scale": 3.0, **ours}
    return ours


def _check_supported(name: str, config: Mapping[str, Any]) -> None:
    if name not in _VP | _EDM | _FLOW | {_OURS}:
        reason = (
            "its times run backwards"
            if "Inverse" in name
            else "it samples no ODE of a plain diffusion or flow model"
        )
        raise UserError(
            f"scheduler {name[:60]} is not supported: {reason}. Supported are the configs of diffusers' others, "
            "DDIMScheduler, EulerDiscreteScheduler, EDMEulerScheduler and FlowMatchEulerDiscreteScheduler among them"
        )
    beta_schedule, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type")
    if config.get("trained_betas") is None and beta_schedule not in _BETA_SCHEDULES:
        raise UserError(
            f"beta_schedule of {name} must be one of {', '.join(_BETA_SCHEDULES)}, got {beta_schedule!r}"
        )
    if name not in _FLOW and config.get("use_flow_sigmas") and prediction in ("epsilon", "sample"):
        # A flow's levels with a diffusion model's prediction: no model is trained so.
        raise UserError(
            f"{name} with use_flow_sigmas=True has prediction_type={prediction!r}: a flow model's config "
            'says "flow_prediction"'
        )


def _is_vp(config: Mapping[str, Any]) -> bool:
    """Whether a flow scheduler was put in place of a VP one: it carries along that one's keys."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return False
    return any(config.get(key) is not None for key in ("beta_schedule", "prediction_type", "trained_betas"))


def _continuous_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Euler's continuous times are EDM's ``log(sigma)/4``, for data of standard deviation 1."""
    sigma_min, sigma_max, prediction = map(config.get, ("sigma_min", "sigma_max", "prediction_type"))
    if prediction != "v_prediction" or None in (sigma_min, sigma_max):
        raise UserError(
            "EulerDiscreteScheduler with timestep_type='continuous' is supported with "
            "prediction_type='v_prediction', sigma_min and sigma_max, got "
            f"{prediction!r}, {sigma_min} and {sigma_max}"
        )
    return {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": 1.0, "level_embedding": "log"}


def model_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a scheduler's config, translated, that describe the model, defaults included."""
    translated = translate(config)
    kind = "vp" if translated.get("sigma_data") is None else "edm"
    if translated.get("prediction_type") == "flow_prediction":
        kind = "flow"
    keys = {"num_train_timesteps", "prediction_type", *_MODEL_KEYS[kind].split()}
    return {key: value for key, value in translated.items() if key in keys}


# --- configs without a class ----------------------------------------------------------------------------


def _class_name(config: Mapping[str, Any]) -> str:
    """The class of a config without ``_class_name``: that of a scheduler that was never saved."""
    if not config or "solver" in config:
        return _OURS
    if foreign := _unsupported_class(config, _VP | _EDM | _FLOW):
        return foreign
    if "original_inference_steps" in config:
        return "LCMScheduler"
    if "sigma_data" in config and "sigma_schedule" in config:
        is_cosine = "solver_order" in config and "thresholding" not in config
        return "CosineDPMSolverMultistepScheduler" if is_cosine else "EDMEulerScheduler"
    if "beta_schedule" in config or "trained_betas" in config:
        if "snr_shift_scale" in config:
            return "CogVideoXDDIMScheduler"
        return "EulerDiscreteScheduler" if "timestep_type" in config else _OURS
    return "FlowMatchEulerDiscreteScheduler" if "shift" in config else "of an unknown class"


def _unsupported_class(config: Mapping[str, Any], supported: Collection[str]) -> str | None:
    """The class of a config without ``_class_name`` if it is not supported, or ``None``.

    A config that was never saved has every argument of its class, and more only after a conversion. Its class is
    therefore one whose arguments it has all of, and that no other such class extends. A config with fewer keys,
    written by hand, does not determine a class.
    """
    keys = frozenset(key for key in config if not key.startswith("_"))
    arguments = _scheduler_arguments()
    is_complete = DEFAULTS in config or keys in arguments.values()
    fitting = {name: names for name, names in arguments.items() if names <= keys} if is_complete else {}
    largest = [
        name for name, names in fitting.items() if not any(names < other for other in fitting.values())
    ]
    foreign = [name for name in largest if name not in supported]
    if foreign and len(foreign) < len(largest):
        raise UserError(
            f"this scheduler config without _class_name may be of {foreign[0]}, which is not supported: pass the "
            "scheduler itself (pipe.scheduler), or add _class_name to its config"
        )
    return foreign[0] if foreign else None


@functools.cache
def _scheduler_arguments() -> dict[str, frozenset[str]]:
    """The arguments of every scheduler class of the installed diffusers."""
    library = diffusers()
    kinds = {name: getattr(library, name) for name in dir(library) if name.endswith("Scheduler")}
    return {
        name: frozenset(inspect.signature(kind).parameters) - {"kwargs"}
        for name, kind in kinds.items()
        if isinstance(kind, type)
        and issubclass(kind, library.SchedulerMixin)
        and kind.__module__.startswith("diffusers.")  # ours is in its namespace too
    }
