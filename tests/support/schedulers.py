"""What the scheduler tests share: diffusers' own configs of every process, a network, and a pipeline's loop."""

from __future__ import annotations

import diffusers
import torch

import gas
from gas.pipelines.process import process_of

_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = {
    "vp": diffusers.DDIMScheduler(**_SD).config,
    "v": diffusers.DDIMScheduler(**_SD, prediction_type="v_prediction").config,
    "x0": diffusers.DPMSolverMultistepScheduler(prediction_type="sample").config,
    "edm": diffusers.EDMEulerScheduler().config,
    "edm-v": diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0
    ).config,
    "cosine": {
        "_class_name": "CosineDPMSolverMultistepScheduler",
        "sigma_schedule": "exponential",
        "solver_order": 2,
    },
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config,
    "flow-vp": diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ).config,
    "zero-snr": diffusers.CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction"
    ).config,
}


def network(x, time):
    """Stands for a trained network: smooth in the state and the time."""
    time = time.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(0.7 * x + 3e-4 * time) + 0.1 * x


def learned(process, nfe=5, seed=0):
    """A Generalized Solver with all its numbers moved."""
    solver, generator = gas.GeneralizedSolver(process.schedule, nfe, process.t_end), torch.Generator()
    generator.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in solver.named_parameters():
            size = 0.004 if name == "xi" else 0.02
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return solver


def scheduler(name, nfe=5, **keys):
    """A scheduler of one of the configs with a learned solver, and that solver's table."""
    solver = learned(process_of(CONFIGS[name]), nfe)
    ours = gas.GASScheduler.from_config(CONFIGS[name], solver=solver, **keys)
    return ours, solver().detach()


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pipeline(scheduler, x, nfe=None, begin=0, **kwargs):
    """What diffusers' pipelines do, from standard normal noise (or, from the middle, from a state)."""
    scheduler.set_timesteps(nfe, **kwargs)
    if begin:
        scheduler.set_begin_index(begin)
    else:
        x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps[begin:]:
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x
