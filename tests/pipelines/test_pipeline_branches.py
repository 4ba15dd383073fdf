"""The branches of pipelines' guided predictions, and tables that evaluate one of them a row."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import gas
from gas.denoise import branches_of
from gas.pipelines.branches import PipelineBranches
from gas.pipelines.model import from_pipeline
from gas.training.elimination import check_branches
from support import pipelines

PROMPTS, SIZES = ("a cat", "a dog"), {"sd3": {"height": 16, "width": 16}}
LABELS = torch.tensor([1, 0])


def model_of(family, **arguments):
    prompts = () if family == "dit" else PROMPTS
    return from_pipeline(pipelines.build(family), prompts, **{**SIZES.get(family, {}), **arguments})


@pytest.mark.parametrize(
    ("family", "arguments"),
    [("sd1", {}), ("sd1", {"negative_prompt": "a dog"}), ("sd3", {}), ("dit", {})],
)
def test_a_table_with_branches_is_the_guided_pipeline(family, arguments):
    model = model_of(family, **arguments)
    denoise = model.bind(LABELS, 3.0)
    assert isinstance(denoise, PipelineBranches)
    assert branches_of(denoise) == ("unconditional", "conditional")
    table = gas.Classical("unipc-2-bh2", "time_uniform", 3, model.t_end).table(model.schedule)
    noise = model.noise([5, 6])
    with torch.no_grad():
        expected = gas.sample(denoise, noise, table)
        made = gas.sample(denoise, noise, table.guided(3.0))
        other = gas.sample(denoise, noise, table.guided(5.0))
    scale = float(expected.abs().max())
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3 * scale)
    assert float((other - expected).abs().max()) > 2e-3 * scale


@pytest.mark.filterwarnings("ignore:the teacher's samples have root mean squares")
def test_what_is_no_mixture_of_two_has_no_branches():
    rescaled = model_of("sd1", guidance_rescale=0.7)
    pairs = gas.pairs.teach(
        rescaled, gas.Classical("ddim", "time_uniform", 1, rescaled.t_end), range(2), guidance=3.0
    )
    assert branches_of(rescaled.bind(LABELS, 3.0)) == ()
    with pytest.raises(gas.UserError, match=r"gives guided predictions only, not their branches"):
        check_branches(rescaled, pairs)
    assert not isinstance(rescaled.bind(LABELS), PipelineBranches)
    assert not isinstance(model_of("flux", height=16, width=16).bind(LABELS, 3.5), PipelineBranches)


def test_branches_without_text_encoders():
    model = model_of("sd1", negative_prompt="a dog")
    noise, t = model.noise([5, 6]), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        expected = model.bind(LABELS, 3.0).select("unconditional")(noise, t)
        model.free_text_encoders(3.0)
        assert torch.equal(model.bind(LABELS, 3.0).select("unconditional")(noise, t), expected)
        assert branches_of(model.bind(LABELS, 3.0))
