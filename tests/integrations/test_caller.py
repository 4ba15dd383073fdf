"""The scheduler sees the guidance scale of its pipeline's call and compares it with the solver's."""

from __future__ import annotations

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import gas
from gas.integrations.diffusers.caller import guidance_of_call
from gas.pipelines.model import from_pipeline
from support import pipelines

CALLS = {
    "sd1": {"prompt": "a cat", "output_type": "latent"},
    "dit": {"class_labels": [1]},
    "flux": {"prompt": "a cat", "height": 16, "width": 16, "output_type": "latent"},
}
SIZES = {"flux": {"height": 16, "width": 16}}


@pytest.fixture(scope="module")
def models():
    prompts = {"dit": ()}
    return {
        family: from_pipeline(
            pipelines.build(family), prompts.get(family, ["a cat"]), **SIZES.get(family, {})
        )
        for family in CALLS
    }


def mentions(models, family, learned, called, configured=None, more=None, **keys):
    """What a call warns of guidance."""
    model = models[family]
    pipe, original = model.pipe, model.pipe.scheduler
    solver = gas.GeneralizedSolver(model.schedule, 2, model.t_end)
    artefact = gas.save(None, solver, model=model, guidance=learned)
    served = gas.GASScheduler.from_config(original.config, solver=artefact, guidance_scale=configured, **keys)
    passed = {**(more or {}), **({} if called is None else {"guidance_scale": called})}
    pipe.scheduler = served
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            pipe(**CALLS[family], **passed, num_inference_steps=2)
    finally:
        pipe.scheduler = original
    return [str(w.message).partition("use: ")[2] for w in caught if "guidance" in str(w.message)]


@pytest.mark.parametrize(
    ("family", "learned", "called", "configured", "warning"),
    [
        ("sd1", 2.0, 2.0, None, None),
        ("sd1", 2.0, 7.5, None, "guidance 2 (this pipeline: 7.5)"),
        ("sd1", 2.0, 7.5, 2.0, "guidance 2 (this pipeline: 7.5)"),  # told 2 before
        ("sd1", 7.5, 7.5, 2.0, None),  # the call counts
        ("sd1", 2.0, None, None, "guidance 2 (this pipeline: 7.5)"),  # the call's default
        ("sd1", 1.0, 1.0, None, None),
        ("sd1", 1.0, 0.0, None, None),  # guides nothing either
        ("sd1", 2.0, 1.0, 2.0, "guidance 2 (this pipeline: 1)"),
        ("dit", 2.0, 4.0, None, "guidance 2 (this pipeline: 4)"),  # kept in its call's variables only
        ("dit", 2.0, 2.0, None, None),
        ("flux", 3.5, 5.0, None, "guidance 3.5 (this pipeline: 5)"),  # an input of the network
        ("flux", 3.5, 0.5, None, "guidance 3.5 (this pipeline: 0.5)"),
        ("flux", 3.5, None, None, None),
    ],
)
def test_a_call_with_other_guidance_is_said(models, family, learned, called, configured, warning):
    assert mentions(models, family, learned, called, configured) == ([] if warning is None else [warning])


@pytest.mark.parametrize(
    ("more", "problems"),
    [
        ({"true_cfg_scale": 4.0, "negative_prompt": "a dog"}, ["guidance 3.5 (this pipeline: 4)"]),
        ({"true_cfg_scale": 4.0}, []),  # without a negative prompt there is nothing to extrapolate from
        ({"true_cfg_scale": 1.0, "negative_prompt": "a dog"}, []),
    ],
)
def test_extrapolation_from_a_negative_prompt_counts(models, more, problems):
    assert mentions(models, "flux", 3.5, 3.5, more=more) == problems


@pytest.mark.parametrize("embeds", [False, None])
@pytest.mark.parametrize(("negative", "scale"), [("a dog", 4.0), (None, 1.0)])
def test_a_pipeline_that_guides_by_its_true_scale_alone(embeds, negative, scale):
    class Qwen:
        scheduler = None

        def __init__(self):
            self.scheduler, self.transformer = "mine", SimpleNamespace(config=SimpleNamespace())
            if embeds is not None:
                self.transformer.config.guidance_embeds = embeds

        def __call__(self, true_cfg_scale=4.0, negative_prompt=None, guidance_scale=None):
            do_true_cfg = true_cfg_scale > 1 and negative_prompt is not None  # noqa: F841  # read from outside
            return guidance_of_call("mine")

    assert Qwen()(negative_prompt=negative) == scale


def ranged_solver(model):
    """A solver of guidance 2 to 8 whose tables differ from scale to scale."""
    table = gas.GeneralizedSolver(model.schedule, 2, model.t_end)().detach()
    options = {"scales": (2.0, 8.0), "reference": 3.0}
    solver = gas.learned.GuidanceBNS.from_table(model.schedule, table, model.t_end, **options)
    with torch.no_grad():
        solver.times[1, 1], solver.beta[1] = 0.1, 0.05 * torch.ones(2, 2)
    return gas.save(None, solver, model=model)


def sampled(models, artefact, called, **keys):
    """The latents of a call with a guidance scale, and what it warns of guidance."""
    model = models["sd1"]
    pipe, original = model.pipe, model.pipe.scheduler
    pipe.scheduler = gas.GASScheduler.from_config(original.config, solver=artefact, **keys)
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            generator = torch.Generator().manual_seed(0)
            options = {"guidance_scale": called, "num_inference_steps": 2, "generator": generator}
            latents = pipe(**CALLS["sd1"], **options).images
    finally:
        pipe.scheduler = original
    return latents, [str(w.message) for w in caught if "guidance" in str(w.message)]


def test_a_solver_of_a_range_runs_at_the_scale_of_the_call(models):
    artefact = ranged_solver(models["sd1"])
    for scale in (2.0, 3.0, 7.5):
        latents, warnings_of_run = sampled(models, artefact, scale)
        expected, _ = sampled(models, artefact.at(scale), scale, strict=True)
        assert torch.equal(latents, expected)
        assert not warnings_of_run
    other, _ = sampled(models, artefact.at(3.0), 7.5)
    assert not torch.equal(latents, other)
    for scale in (9.0, 1.0):
        with pytest.raises(gas.UserError, match=rf"serves guidance 2 to 8, got {scale:g}: train it for that"):
            sampled(models, artefact, scale)


def test_a_range_in_a_loop_of_ones_own(models):
    artefact = ranged_solver(models["sd1"])
    config = models["sd1"].pipe.scheduler.config
    chosen = gas.GASScheduler.from_config(config, solver=artefact, guidance_scale=7.5)
    chosen.set_timesteps(2)
    single = gas.GASScheduler.from_config(config, solver=artefact.at(7.5))
    single.set_timesteps(2)
    assert torch.equal(chosen.timesteps, single.timesteps)
    unknown = gas.GASScheduler.from_config(config, solver=artefact)
    with pytest.warns(
        UserWarning, match=r"serves guidance 2 to 8, and that of this call is not known: running"
    ):
        unknown.set_timesteps(2)
    assert not torch.equal(unknown.timesteps, chosen.timesteps)


def test_strict_refuses_it(models):
    with pytest.raises(ValueError, match=r"guidance 2 \(this pipeline: 7.5\)"):
        mentions(models, "sd1", 2.0, 7.5, strict=True)


def test_outside_of_its_pipeline_nothing_is_seen():
    class Other:
        scheduler = None

        def __call__(self, guidance_scale):
            return guidance_of_call("mine")

    class Odd:
        def __init__(self):
            self.scheduler = "mine"

        def __call__(self, guidance_scale=None):
            return guidance_of_call("mine")

    assert guidance_of_call("mine") is None
    assert Other()(7.5) is None
    assert Odd()(7.5) == 7.5 and Odd()(1) == 1.0 and Odd()(0) == 1.0
    assert Odd()() is None and Odd()("7.5") is None and Odd()(True) is None
