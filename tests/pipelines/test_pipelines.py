"""Every family from end to end: pairs, learning, file, and the unmodified pipeline call in another process.

The support matrix of the documentation is what these tests write with ``GAS_WRITE_SUPPORT=1``; without it they compare.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import gas
from gas.models.seeds import labels_of_seeds

os.environ["HF_HUB_OFFLINE"] = "1"
diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # other libraries' deprecations

from gas.pipelines.model import from_pipeline  # noqa: E402
from support import pipelines  # noqa: E402 (after the library it needs)
from support.forks import run_fresh  # noqa: E402

PROMPTS = ["a cat", "dog on the mat", "red bell"]
NFE = 2
SUPPORT = Path(__file__).parents[2] / "docs" / "reference" / "pipelines.json"
# One sample a call: in a batch the last bits of SDXL's text encoder differ (2e-7), which end as 1.5e-5 in a latent.
ALONE = ("sdxl", "sdxl_img2img", "sdxl_controlnet")


def model_of(family):
    prompts = () if family in pipelines.UNPROMPTED else PROMPTS
    return from_pipeline(pipelines.build(family), prompts, **pipelines.CALLS.get(family, {}))


def learn(model, folder):
    """Pairs on disk, two steps of Adam on L1, and the file."""
    teacher = gas.Classical("unipc-2-bh2", "time_uniform", 3, model.t_end)
    spec = gas.PairsSpec(range(4), teacher.config(), guidance=guidance_of(model))
    for _ in gas.write_pairs(model, teacher.table(model.schedule), folder / "pairs", spec):
        pass
    pairs = gas.read_pairs(folder / "pairs", model=model)
    solver = gas.GeneralizedSolver(model.schedule, NFE, model.t_end)
    config = gas.Adam(iterations=2, batch=2, learning_rate=1e-4, validate_every=1)
    first, *_, last = gas.fit(solver, model, pairs, validation=None, loss="l1", config=config)
    gas.save(folder / "solver.json", solver, model=model, guidance=pairs.guidance, teacher=pairs.teacher)
    return last.best_loss / first.start_loss


def guidance_of(model):
    return 1.0 if model.default_guidance == 1 else 2.0


def condition(model, labels, size):
    """The arguments of the unmodified call that the model's labels and guidance stand for."""
    wanted = {
        model.guidance_argument: guidance_of(model),
        "prompt": [PROMPTS[label] for label in labels] if model.takes_prompts else None,
        "class_labels": labels.tolist() if labels is not None else None,
        "batch_size": size,
        "strength": 1.0,
    }
    if model.guidance_argument == "true_cfg_scale":
        wanted["negative_prompt"] = [""] * size
    return {name: value for name, value in wanted.items() if name in model.controlled.parameters}


def as_written(denoise, x, table):
    """Run a table row by row, as a scheduler does; ``gas.sample`` folds a learned one, which rounds otherwise."""
    stepper = gas.Stepper(table)
    for t in stepper.times:
        x = stepper.step(x, denoise(x, t))
    return x


# Runs the pipeline in a folder twice, and writes its first and last states there.
FRESH = """
import inspect, sys
from pathlib import Path
import torch
import gas
from diffusers import DiffusionPipeline
from support import components
components.plain_text()

def recorded(scheduler, states):
    # Notes the first state and the last.
    step = scheduler.step

    def noting(model_output, timestep, sample, *args, **kwargs):
        output = step(model_output, timestep, sample, *args, **kwargs)
        states[:] = [states[0] if states else sample.clone(), output[0]]
        return output

    noting.__signature__ = inspect.signature(step)  # pipelines look at it
    scheduler.step = noting
    return scheduler

folder = Path(sys.argv[1])
stored = torch.load(folder / "call.pt", weights_only=True)
pipe = DiffusionPipeline.from_pretrained(folder / "pipe", **stored["without"])
pipe.set_progress_bar_config(disable=True)
config, runs = pipe.scheduler.config, ([], [])
for states in runs:
    scheduler = gas.GASScheduler.from_config(config, solver=str(folder / "solver.json"))
    pipe.scheduler = recorded(scheduler, states)
    pipe(**stored["call"], generator=torch.Generator().manual_seed(0))
(first, last), (_, again) = runs
torch.save({"first": first, "last": last, "again": bool(torch.equal(last, again))}, folder / "states.pt")
"""


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_the_unmodified_pipeline_makes_what_gas_sample_makes(family, tmp_path, record_property):
    if family == "qwen_image" and diffusers.__version__ < "0.36":
        pytest.skip("Qwen-Image's attention sees the padding of shorter prompts (0.09 in a latent)")
    model = model_of(family)
    keep, rate = model.pipe.scheduler, learn(model, tmp_path)
    assert rate <= 1
    size = 2 if model.takes_batches and family not in ALONE else 1
    labels = labels_of_seeds(model.classes, range(100, 100 + size))
    model.pipe.save_pretrained(tmp_path / "pipe")
    call = {**pipelines.CALLS.get(family, {}), **condition(model, labels, size), "num_inference_steps": NFE}
    stored = {
        "call": call,
        "without": {name: None for name, part in model.pipe.components.items() if part is None},
    }
    torch.save(stored, tmp_path / "call.pt")
    run_fresh(FRESH, tmp_path)
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    table = gas.load(tmp_path / "solver.json").table(NFE)
    # An EDM pipeline's states are x / alpha; guided DiT has each twice.
    scale = float(model.schedule(table.times[0])[0]) if model.process.kind == "edm" else 1.0
    x, last = scale * states["first"][:size].float(), states["last"][:size].float()
    with torch.no_grad():
        denoise = model.bind(labels, guidance_of(model))
        expected = as_written(denoise, x, table)
        torch.testing.assert_close(gas.sample(denoise, x, table), expected, rtol=1e-5, atol=2e-5)
    difference, largest = float((last - expected).abs().max()), float(expected.abs().max())
    record_property(f"{family}, of values up to {largest:.1f}", f"{difference:.1e}")
    assert difference < 1e-5 * max(1.0, largest), (difference, largest)
    assert largest > 0.1
    assert states["again"]
    assert model.decode(expected).isfinite().all()
    assert model.pipe.scheduler is keep
    check_support(family, model, difference)


def check_support(family, model, difference):
    """Compare a family with its row of the support matrix, or write the row."""
    row = {
        "pipeline": type(model.pipe).__name__,
        "networks": list(model.controlled.networks),
        "predicts": model.process.prediction,
        "sample_shape": list(model.sample_shape),
        "guidance": model.guidance_argument,
        "exact": difference == 0.0,
    }
    rows = json.loads(SUPPORT.read_text()) if SUPPORT.exists() else {}
    if os.environ.get("GAS_WRITE_SUPPORT"):
        text = [
            f"{json.dumps(name)}: {json.dumps(line)}" for name, line in sorted({**rows, family: row}.items())
        ]
        SUPPORT.write_text("{\n" + ",\n".join(text) + "\n}\n")
    else:
        assert rows[family] == row
