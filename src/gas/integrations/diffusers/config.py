"""The configs of diffusers' schedulers, brought to the keys that ours has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gas.integrations.diffusers.classes import foreign_class

__all__ = ["model_keys", "translated"]

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
        raise ValueError(
            f"scheduler {name[:60]} is not supported: {why}. Supported are the configs of diffusers' others, "
            "DDIMScheduler, EulerDiscreteScheduler, EDMEulerScheduler and FlowMatchEulerDiscreteScheduler among them"
        )
    if said.get("trained_betas") is None and said.get("beta_schedule", "linear") not in _BETA_SCHEDULES:
        known = ", ".join(_BETA_SCHEDULES)
        raise ValueError(f"beta_schedule of {name} must be one of {known}, got {said['beta_schedule']!r}")
    if said.get("invert_sigmas"):
        raise ValueError(
            f"scheduler {name} with invert_sigmas=True is not supported: its times run backwards"
        )
    if (
        name not in _FLOW
        and said.get("use_flow_sigmas")
        and said.get("prediction_type") in ("epsilon", "sample")
    ):
        # What it says of itself is a flow's levels with a diffusion model's prediction: no model is trained so.
        raise ValueError(
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
        raise ValueError(
            "EulerDiscreteScheduler with timestep_type='continuous' is supported with "
            "prediction_type='v_prediction', sigma_min and sigma_max, got "
            f"{said.get('prediction_type')!r}, {levels['sigma_min']} and {levels['sigma_max']}"
        )
    return {**levels, "sigma_data": 1.0, "level_embedding": "log"}
