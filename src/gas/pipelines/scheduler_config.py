"""What the configs of diffusers' schedulers say, brought to the keys of ours; which class they are of."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from gas.errors import UserError

__all__ = ["config_of", "diffusers", "foreign_class", "model_keys", "translated"]


def diffusers() -> Any:
    """Return the installed diffusers package.

    Raises:
        ImportError: when it is missing or broken; says what to install.
    """
    try:
        library = importlib.import_module("diffusers")
        _ = library.SchedulerMixin
    except Exception as error:  # a broken torchvision raises RuntimeError
        raise ImportError(
            f"gas.GASScheduler needs diffusers ({type(error).__name__}: {error}): "
            "pip install 'gas-solver[diffusers]'"
        ) from error
    return library


_DEFAULTS = "_use_default_values"


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """Return a scheduler's config with its class's name, which a config has only once it was saved.

    Args:
        scheduler: ``pipe.scheduler``; of a class derived from one of diffusers', that one counts.
    """
    names = [
        kind.__name__
        for kind in type(scheduler).__mro__
        if kind.__name__.endswith("Scheduler") and kind.__module__.partition(".")[0] in ("diffusers", "gas")
    ]
    config: Mapping[str, Any] = scheduler.config
    return {**config, "_class_name": names[0]} if names else config


def foreign_class(config: Mapping[str, Any], served: Collection[str]) -> str | None:
    """Return the class of a config without ``_class_name`` if it is not among ``served``, or ``None``.

    A config that was never saved has every argument of its class, and more only where it was converted. So it is of a
    class whose arguments it has all of, and that no other such class adds arguments to. A config with fewer, written by
    hand, says nothing of its class.

    Raises:
        ValueError: when it may be of a served class or of another.
    """
    keys = frozenset(key for key in config if not key.startswith("_"))
    arguments = _arguments()
    whole = _DEFAULTS in config or keys in arguments.values()
    fitting = {name: taken for name, taken in arguments.items() if taken <= keys} if whole else {}
    largest = [
        name for name, taken in fitting.items() if not any(taken < other for other in fitting.values())
    ]
    foreign = [name for name in largest if name not in served]
    if foreign and len(foreign) < len(largest):
        raise UserError(
            f"this scheduler config without _class_name may be of {foreign[0]}, which is not supported: pass the "
            "scheduler itself (pipe.scheduler), or add _class_name to its config"
        )
    return foreign[0] if foreign else None


@functools.cache
def _arguments() -> dict[str, frozenset[str]]:
    """The arguments of every scheduler of diffusers that is installed."""
    library = diffusers()
    kinds = {name: getattr(library, name) for name in dir(library) if name.endswith("Scheduler")}
    return {
        name: frozenset(inspect.signature(kind).parameters) - {"kwargs"}
        for name, kind in kinds.items()
        if isinstance(kind, type)
        and issubclass(kind, library.SchedulerMixin)
        and kind.__module__.startswith("diffusers.")  # ours is in its namespace too
    }


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
_OWN = "GASScheduler"
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid", "laplace")
_EDM_DEFAULTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
_COSINE_DEFAULTS = {
    "sigma_min": 0.3,
    "sigma_max": 500.0,
    "sigma_data": 1.0,
    "prediction_type": "v_prediction",
}


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's config with what its class implies said in our own keys.

    Args:
        config: as ``pipe.scheduler.config`` or ``scheduler_config.json`` has it, ours included.

    Raises:
        ValueError: for a scheduler class that samples something else than a diffusion or flow ODE, and for a flow that
            runs from data to noise.
    """
    # Defaults of their classes are not ours.
    said = {key: value for key, value in config.items() if key != "_use_default_values"}
    name = str(said.get("_class_name") or _class_name(config))
    if name in _FLOW and _of_a_vp_model(said):
        name = _OWN
    if name not in _VP | _EDM | _FLOW | {_OWN}:
        why = (
            "its times run backwards"
            if "Inverse" in name
            else "it samples no ODE of a plain diffusion or flow model"
        )
        raise UserError(
            f"scheduler {name[:60]} is not supported: {why}. Supported are the configs of diffusers' others, "
            "DDIMScheduler, EulerDiscreteScheduler, EDMEulerScheduler and FlowMatchEulerDiscreteScheduler among them"
        )
    if said.get("trained_betas") is None and said.get("beta_schedule", "linear") not in _BETA_SCHEDULES:
        known = ", ".join(_BETA_SCHEDULES)
        raise UserError(f"beta_schedule of {name} must be one of {known}, got {said['beta_schedule']!r}")
    if said.get("invert_sigmas"):
        raise UserError(f"scheduler {name} with invert_sigmas=True is not supported: its times run backwards")
    if (
        name not in _FLOW
        and said.get("use_flow_sigmas")
        and said.get("prediction_type") in ("epsilon", "sample")
    ):
        # What it says of itself is a flow's levels with a diffusion model's prediction: no model is trained so.
        raise UserError(
            f"{name} with use_flow_sigmas=True has prediction_type={said['prediction_type']!r}: a flow model's config "
            'says "flow_prediction"'
        )
    if name in _FLOW or said.get("use_flow_sigmas") or said.get("prediction_type") == "flow_prediction":
        said["prediction_type"] = "flow_prediction"
        said["shift"] = said.get("flow_shift", 1.0) if said.get("shift") is None else said["shift"]
    elif name in _EDM:
        cosine = name.startswith("Cosine")
        defaults = _COSINE_DEFAULTS if cosine else _EDM_DEFAULTS
        said = {**defaults, **said, "level_embedding": "atan" if cosine else "log"}
    elif name == "EulerDiscreteScheduler" and said.get("timestep_type") == "continuous":
        said.update(_continuous(said))
    elif name.startswith("CogVideoX"):
        said.setdefault("snr_shift_scale", 3.0)
    return said


def _of_a_vp_model(config: Mapping[str, Any]) -> bool:
    """Whether a flow scheduler was put in the place of a VP one, whose keys it does not know and carries along."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return False
    return any(config.get(key) is not None for key in ("beta_schedule", "prediction_type", "trained_betas"))


_MODEL_KEYS = {
    "edm": {"level_embedding", "sigma_data", "sigma_max", "sigma_min"},
    "flow": {
        "base_image_seq_len",
        "base_shift",
        "max_image_seq_len",
        "max_shift",
        "shift",
        "shift_terminal",
        "time_shift_type",
        "use_dynamic_shifting",
    },
    "vp": {
        "beta_end",
        "beta_schedule",
        "beta_start",
        "rescale_betas_zero_snr",
        "snr_shift_scale",
        "trained_betas",
    },
}


def model_keys(meant: Mapping[str, Any]) -> dict[str, Any]:
    """Return those keys of a translated config that say what the model is, defaults among them."""
    flow, edm = meant.get("prediction_type") == "flow_prediction", meant.get("sigma_data") is not None
    keys = _MODEL_KEYS["flow" if flow else "edm" if edm else "vp"] | {
        "num_train_timesteps",
        "prediction_type",
    }
    return {key: value for key, value in meant.items() if key in keys}


def _class_name(said: Mapping[str, Any]) -> str:
    """Which class a config is of that does not say so, as that of a scheduler that was never saved does not."""
    if not said or "solver" in said:
        return _OWN
    if foreign := foreign_class(said, _VP | _EDM | _FLOW):
        return foreign
    if "original_inference_steps" in said:
        return "LCMScheduler"
    if "sigma_data" in said and "sigma_schedule" in said:
        cosine = "solver_order" in said and "thresholding" not in said
        return "CosineDPMSolverMultistepScheduler" if cosine else "EDMEulerScheduler"
    if "beta_schedule" in said or "trained_betas" in said:
        cog = "snr_shift_scale" in said
        return (
            "CogVideoXDDIMScheduler" if cog else "EulerDiscreteScheduler" if "timestep_type" in said else _OWN
        )
    return "FlowMatchEulerDiscreteScheduler" if "shift" in said else "of an unknown class"


def _continuous(said: Mapping[str, Any]) -> dict[str, Any]:
    """Euler's continuous times are EDM's ``log(sigma)/4``, of data with standard deviation 1."""
    levels = {key: said.get(key) for key in ("sigma_min", "sigma_max")}
    if said.get("prediction_type") != "v_prediction" or None in levels.values():
        raise UserError(
            "EulerDiscreteScheduler with timestep_type='continuous' is supported with "
            "prediction_type='v_prediction', sigma_min and sigma_max, got "
            f"{said.get('prediction_type')!r}, {levels['sigma_min']} and {levels['sigma_max']}"
        )
    return {**levels, "sigma_data": 1.0, "level_embedding": "log"}
