"""The same samples twice: out of a pipeline with a learned scheduler in it, and out of ``gas.sample``."""

from __future__ import annotations

import torch

import gas

__all__ = ["NFE", "PROMPTS", "assert_same", "perturbed", "sampled", "scheduler", "served"]

PROMPTS = ["a cat", "dog on the mat"]
NFE = 4


def perturbed(model):
    """A solver that no classical one equals."""
    solver = gas.GeneralizedSolver(model.schedule, NFE, model.t_end)
    with torch.no_grad():
        for number in solver.parameters():
            number.add_(0.03)
    return solver


def scheduler(pipe, model, **kwargs):
    artefact = gas.save(None, perturbed(model), model=model, guidance=2.0)
    return gas.GASScheduler.from_config(pipe.scheduler.config, solver=artefact, guidance_scale=2.0, **kwargs)


def served(pipe, noise, **kwargs):
    call = {"num_inference_steps": NFE, "guidance_scale": 2.0, "output_type": "latent", **kwargs}
    return pipe(PROMPTS, latents=noise.clone(), **call).images


def sampled(model, noise):
    with torch.no_grad():
        return gas.sample(model.bind(torch.arange(2), 2.0), noise, perturbed(model)().detach())


def assert_same(samples, expected):
    """Equal to 1e-5 of the largest number: two orders of the same float32 sums."""
    assert samples.shape == expected.shape
    assert float((samples - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
