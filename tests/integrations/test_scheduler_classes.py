"""Every scheduler class of diffusers is served or refused, saved or not; runs end where their table ends."""

from __future__ import annotations

import inspect
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

import gas  # noqa: E402 (after the library it needs)
from gas.classical.registry import SOLVERS  # noqa: E402
from gas.integrations.table_transforms import ending_in_data  # noqa: E402
from gas.pipelines.process import process_of  # noqa: E402
from support.schedulers import CONFIGS, noise, scheduler  # noqa: E402

CLASSES = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and name[:4] not in ("Flax", "GASS")
)
SERVED = {
    *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMParallelScheduler", "DDIMScheduler"),
    *("DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
    *("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
}


def build(name):
    """A scheduler that was never saved, or why there is none."""
    kind = getattr(diffusers, name)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    required = {p.name: 5 for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    try:
        return kind(**required)
    except Exception as error:
        pytest.skip(f"needs another package: {str(error)[:80]}")


def meaning(config):
    """What a config is taken for; ``None`` where it is refused in one line."""
    try:
        process = process_of(config)
    except ValueError as error:
        message = str(error)
        process = None
    if process is None:
        assert len(message) < 300 and "\n" not in message
        return None
    return process.kind, process.prediction, process.level, process.schedule.config()


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_means_the_same_saved_or_not_or_is_refused(name):
    original = build(name)
    saved = meaning({**original.config, "_class_name": name})
    assert (saved is not None) == (name in SERVED)
    assert meaning(original.config) in (None, saved)
    every = {key: value for key, value in original.config.items() if key != "_use_default_values"}
    assert meaning(every) in (None, saved)  # each argument passed
    if name in SERVED:
        served = gas.GASScheduler.from_config(original)
        assert meaning(served.config) == saved
    else:
        with pytest.raises(ValueError, match=f"scheduler {name} is not supported"):
            gas.GASScheduler.from_config(original)


def test_a_config_that_may_be_of_two_classes_is_refused():
    never_saved = diffusers.FlowMatchHeunDiscreteScheduler().config
    if "FlowMapEulerDiscreteScheduler" in CLASSES:
        with pytest.raises(ValueError, match=r"may be of FlowMapEuler.*pass the scheduler itself"):
            gas.GASScheduler.from_config(never_saved)
    assert gas.GASScheduler.from_config({**never_saved, "_class_name": "FlowMatchHeunDiscreteScheduler"})


def test_converted_and_handwritten_configs():
    euler = diffusers.FlowMatchEulerDiscreteScheduler().config
    if hasattr(diffusers, "FlowMatchLCMScheduler"):
        converted = diffusers.FlowMatchLCMScheduler.from_config(euler)
        assert meaning(converted.config) is None
        with pytest.raises(ValueError, match="FlowMatchLCMScheduler is not supported"):
            gas.GASScheduler.from_config(converted)
    ddim = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    other = diffusers.UniPCMultistepScheduler.from_config(ddim.config)
    assert meaning(other.config) == meaning(ddim.config) is not None
    assert meaning({"beta_schedule": "linear", "prediction_type": "sample"})[:2] == ("vp", "sample")

    class Mine(diffusers.DDIMScheduler):
        pass

    assert meaning(gas.GASScheduler.from_config(Mine()).config) == meaning(diffusers.DDIMScheduler().config)


@pytest.mark.parametrize("source", ["flow", "flow-vp"])
def test_flow_pipelines_hand_over_the_sigmas_that_were_passed(source):
    """What Flux-like pipelines look at, by attribute, before they drop them."""
    served, _ = scheduler(source)
    assert not getattr(served.config, "use_flow_sigmas", False)
    reloaded = gas.GASScheduler.from_config(served.config)
    assert not getattr(reloaded.config, "use_flow_sigmas", False)
    back = diffusers.UniPCMultistepScheduler.from_config(scheduler("flow-vp")[0].config)
    assert back.config.use_flow_sigmas


@pytest.mark.parametrize("name", ["vp", "v", "edm", "flow"])
@pytest.mark.parametrize("t_end", [None, 0.001, 0.02])
@pytest.mark.parametrize("keys", [{}, {"schedule": "pipeline"}])
def test_a_run_from_the_middle_ends_where_its_table_ends(name, t_end, keys):
    """With a perfect network the last state is ``a x_0 + s eps`` at the table's end, x_0 itself where it is data."""
    process, x0, eps = process_of(CONFIGS[name]), noise(2, 3, seed=1), noise(2, 3, seed=2)
    t = torch.linspace(1, 0.1, 6, dtype=torch.float64)
    ddim = SOLVERS["ddim"]
    if t_end is None:
        table = ending_in_data(ddim, process.schedule, t)
    else:
        table = ddim(process.schedule, torch.cat([t, torch.tensor([t_end], dtype=torch.float64)]))
    served = gas.GASScheduler.from_config(CONFIGS[name], solver=table, **keys)
    arguments = {"timesteps": process.network_time(t).tolist()} if keys else {"num_inference_steps": 6}
    for begin in (0, 2, 5):
        served.set_timesteps(**arguments)
        served.set_begin_index(begin)
        y = served.add_noise(x0, eps, served.timesteps[begin : begin + 1].expand(2))
        for n, time in enumerate(served.timesteps[begin:], begin):
            p, q = process.conversion(served._times[n])
            y = served.step((x0 - p * y) / q, time, y, return_dict=False)[0]
        end = None if keys else t_end
        if end is None:
            expected = x0
        else:
            a, s = process.schedule(torch.tensor(end, dtype=torch.float64))
            expected = a * x0 + s * eps
        assert (y - expected).abs().max() < 1e-5


@pytest.mark.parametrize("source", ["flow", "flow-vp"])
def test_flux_runs_at_the_sigmas_that_were_passed(source):
    from support import pipelines

    pipe, passed = pipelines.build("flux"), [1.0, 0.9, 0.5, 0.2]
    pipe.scheduler = gas.GASScheduler.from_config(CONFIGS[source], schedule="pipeline", base="ddim/shifted")
    call = {"prompt": "a cat", "height": 16, "width": 16, "output_type": "latent", "num_inference_steps": 4}
    pipe(**call, sigmas=passed)
    shift = pipe.scheduler.config["shift"]
    expected = torch.tensor([*(shift * s / (1 + (shift - 1) * s) for s in passed), 0.0])
    assert torch.allclose(pipe.scheduler.sigmas, expected, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_flow_s_levels_with_a_diffusion_model_s_prediction_are_refused(prediction):
    other = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type=prediction)
    with pytest.raises(
        ValueError, match=f"use_flow_sigmas=True has prediction_type='{prediction}'.*flow_prediction"
    ):
        gas.GASScheduler.from_config(other.config)
