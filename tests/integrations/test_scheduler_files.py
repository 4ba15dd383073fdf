"""Saved alone, inside a pipeline and as a bare solver file; read in a fresh process; put on the hub or not."""

import json
import os
import re

import diffusers
import pytest
import torch
import yaml
from diffusers.utils import DummyObject

import gas
from gas.integrations.diffusers.model_card import may_overwrite, model_card, stand_in
from gas.io import add_checksum
from gas.pipelines.process import process_of
from support.covering import thinned
from support.forks import run_fresh
from support.schedulers import CONFIGS, learned, noise, pipeline, scheduler


@pytest.fixture(params=thinned(list(CONFIGS), 3))
def name(request):
    return request.param


def test_saved_and_loaded_alone(name, tmp_path):
    gas_scheduler, _ = scheduler(
        name, base="deis-2/karras" if "flow" not in name else None, schedule="pipeline", strict=True
    )
    gas_scheduler.save_pretrained(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path / "folder")) == ["README.md", "scheduler_config.json", "solver.json"]
    again = gas.GASScheduler.from_pretrained(tmp_path / "folder")
    x = noise(2, 3, 4, 4)
    assert torch.equal(pipeline(again, x, 5), pipeline(gas_scheduler, x, 5)), "float64 does not survive"
    ours = {key: value for key, value in gas_scheduler.config.items() if not key.startswith("_")}
    assert ours == {key: value for key, value in again.config.items() if not key.startswith("_")}
    # Plain JSON, nothing pickled.
    assert json.loads(json.dumps(dict(gas_scheduler.config)))["solver"] == gas_scheduler.config.solver
    changed = gas.GASScheduler.from_pretrained(tmp_path / "folder", missing_nfe="error")
    assert changed.config.missing_nfe == "error" and changed.config.schedule == "pipeline"
    in_memory = gas.GASScheduler.from_config(gas_scheduler.config)
    assert torch.equal(pipeline(in_memory, x, 5), pipeline(gas_scheduler, x, 5))


@pytest.mark.parametrize("name", ["vp", "v", "x0", "flow"])
def test_a_solver_file_is_enough_where_it_says_its_model(name, tmp_path):
    process = process_of(CONFIGS[name])
    model = gas.OwnModel(lambda x, t: x, process.schedule, (3, 4, 4), t_end=process.t_end)
    artefact = gas.save(None, learned(process), model=model)
    document = artefact.document.model_copy(
        update={"model": {**artefact.document.model, "prediction": process.prediction}}
    )
    path = tmp_path / "solver.json"
    path.write_text(json.dumps(add_checksum(document.model_dump(exclude_none=True))))
    gas_scheduler, x = gas.GASScheduler.from_pretrained(path), noise(2, 3, 4, 4)
    want = pipeline(gas.GASScheduler.from_config(CONFIGS[name], solver=path), x, 5)
    assert torch.allclose(pipeline(gas_scheduler, x, 5), want, atol=1e-9)
    assert torch.equal(
        pipeline(gas.GASScheduler.from_pretrained(tmp_path), x, 5), pipeline(gas_scheduler, x, 5)
    )


def test_a_solver_file_that_does_not_say_its_model(tmp_path):
    for name, solver in [("bare", gas.GeneralizedSolver(gas.VPLinear(), 3, 1e-3)), ("edm", None)]:
        process = process_of(CONFIGS["edm"])
        model = (
            gas.OwnModel(lambda x, t: x, process.schedule, (2,), t_end=process.t_end)
            if solver is None
            else None
        )
        artefact = gas.save(None, solver or learned(process), model=model)
        metadata = artefact.document.model_dump(exclude_none=True)
        if model:
            metadata["model"]["prediction"] = "epsilon"  # as a pipeline's model says: of an EDM network here
        (tmp_path / f"{name}.json").write_text(json.dumps(add_checksum(metadata)))
        with pytest.raises(
            ValueError, match=r"use GASScheduler.from_config\(pipe.scheduler.config, solver=...\)"
        ):
            gas.GASScheduler.from_pretrained(tmp_path / f"{name}.json")


def test_damaged_and_missing_files(tmp_path):
    gas_scheduler, _ = scheduler("vp")
    gas_scheduler.save_pretrained(tmp_path / "whole")
    text = (tmp_path / "whole" / "scheduler_config.json").read_text()
    half = tmp_path / "half"
    half.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"holds neither scheduler_config.json nor solver.json \(it is empty\)"
    ):
        gas.GASScheduler.from_pretrained(half)
    (half / "unet.incomplete").write_text("")
    with pytest.raises(FileNotFoundError, match=r"\(it has unet.incomplete\): .* downloading again"):
        gas.GASScheduler.from_pretrained(half)
    (half / "scheduler_config.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"is not valid JSON .* downloading again"):
        gas.GASScheduler.from_pretrained(half)
    (half / "scheduler_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not a scheduler's config or a solver"):
        gas.GASScheduler.from_pretrained(half)
    (half / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"names the solver file 'solver.json' .* pass solver=..."):
        gas.GASScheduler.from_pretrained(half)
    assert gas.GASScheduler.from_pretrained(half, solver=None).artefact is None
    changed = json.loads((tmp_path / "whole" / "solver.json").read_text())
    changed["solvers"][0]["times"].pop()
    (half / "solver.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"solver file .*half/solver.json: .*must be 5 numbers, got 4"):
        gas.GASScheduler.from_pretrained(half)
    del changed["checksum"]
    embedded = {**json.loads(text), "solver": changed}  # as in configs of before
    with pytest.raises(
        ValueError, match=r"solver in the scheduler's config is damaged: .*must be 5 numbers, got 4"
    ):
        gas.GASScheduler.from_config(embedded)
    with pytest.raises(FileNotFoundError, match="there is no solver file or folder"):
        gas.GASScheduler.from_pretrained(tmp_path / "nowhere.json")


_FRESH = """
import sys, gas, torch, warnings
warnings.simplefilter("error", UserWarning)
from diffusers import DiffusionPipeline
assert "gas.integrations" not in sys.modules
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
assert type(pipe.scheduler) is gas.GASScheduler
for _ in range(2):
    seed = torch.Generator().manual_seed(0)
    image = pipe(generator=seed, num_inference_steps=4, output_type="pt", batch_size=2).images
torch.save(torch.as_tensor(image), sys.argv[2])
"""


@pytest.mark.slow
def test_a_saved_pipeline_runs_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "layers_per_block": 1,
    }
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(16, 16), norm_num_groups=8, **blocks
    ).eval()
    config = diffusers.DDPMScheduler().config
    process = process_of(config)
    pipe = diffusers.DDPMPipeline(unet, gas.GASScheduler.from_config(config, solver=learned(process, nfe=4)))
    pipe.save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["scheduler"] == ["gas", "GASScheduler"]
    run_fresh(_FRESH, tmp_path / "pipe", tmp_path / "out.pt")
    images = torch.load(tmp_path / "out.pt", weights_only=True)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoise = process.denoiser(lambda x, time: unet(x, time).sample)
        want = gas.sample(denoise, x, learned(process, nfe=4)().detach())
    want = (want / 2 + 0.5).clamp(0, 1)
    images = images if images.shape == want.shape else images.permute(0, 3, 1, 2)
    assert float((images - want).abs().max()) < 1e-5


_WITHOUT_US = """
import sys, torch
sys.modules["gas"] = None
exec(sys.argv[2].replace("pipeline-folder", sys.argv[1]))
pipe.set_progress_bar_config(disable=True)
images = pipe(generator=torch.manual_seed(0), num_inference_steps=3, output_type="pt").images
assert type(pipe.scheduler).__name__ == sys.argv[3], type(pipe.scheduler)
assert torch.isfinite(torch.as_tensor(images)).all()
print(pipe.scheduler.config.beta_schedule, pipe.scheduler.config.timestep_spacing)
"""


@pytest.mark.slow
def test_a_saved_pipeline_loads_without_this_library(tmp_path):
    """By the lines of its card, with a scheduler of diffusers that is told the same of the model."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=8, layers_per_block=1, **blocks
    )
    config = diffusers.DDPMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing").config
    scheduler = gas.GASScheduler.from_config(config, solver=learned(process_of(config), nfe=4))
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipe")
    card = (tmp_path / "pipe" / "scheduler" / "README.md").read_text()
    lines = card.split("```python\n")[2].split("```")[0]
    printed = run_fresh(_WITHOUT_US, tmp_path / "pipe", lines, "DDIMScheduler")
    assert printed.splitlines()[-1].split() == ["scaled_linear", "trailing"]


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("v", "DDIMScheduler"),
        ("edm", "EDMEulerScheduler"),
        ("edm-v", "EulerDiscreteScheduler"),
        ("cosine", "CosineDPMSolverMultistepScheduler"),
        ("flow", "FlowMatchEulerDiscreteScheduler"),
        ("flow-vp", "UniPCMultistepScheduler"),
    ],
)
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_the_stand_in_is_of_the_same_model(name, cls, tmp_path):
    ours = gas.GASScheduler.from_config(CONFIGS[name])
    assert stand_in(ours.process, ours.config) == cls
    if isinstance(getattr(diffusers, cls), DummyObject):
        pytest.skip(f"{cls} needs torchsde")
    ours.save_pretrained(tmp_path)
    theirs = getattr(diffusers, cls).from_pretrained(tmp_path)
    assert gas.GASScheduler.from_config({**theirs.config, "_class_name": cls}).process == ours.process
    assert theirs.config.get("flow_shift", theirs.config.get("shift", 1.0)) == ours.config.shift


def test_a_card_names_only_a_base_model_that_the_hub_may_have(tmp_path):
    process = process_of(CONFIGS["vp"])
    for name in ("StableDiffusionPipeline", "/home/me/model", "owner/na\nme", None):
        model = gas.OwnModel(lambda x, t: x, process.schedule, (3,), name=name or "x", t_end=process.t_end)
        card = model_card(process, gas.save(None, learned(process), model=model))
        assert "base_model" not in card and "on a package index" in card


def test_model_card(tmp_path):
    process = process_of(CONFIGS["vp"])
    model = gas.OwnModel(lambda x, t: x, process.schedule, (3, 4, 4), name="owner/base", t_end=process.t_end)
    artefact = gas.save(
        None,
        [learned(process, 4), learned(process, 6)],
        model=model,
        guidance=2.0,
        teacher={"solver": "unipc-3-bh2", "nfe": 20},
        loss="l1",
        training={"pairs": 640},
        starts={4: "deis-3/karras"},
        measured={4: {"mse": 0.00123, "fid | all": 5.5}, 6: {"mse": 0.0007}},
    )
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"png")
    gas_scheduler = gas.GASScheduler.from_config(CONFIGS["vp"], solver=artefact)
    gas_scheduler.save_pretrained(tmp_path / "card", picture=picture)
    text = (tmp_path / "card" / "README.md").read_text()
    front = text.split("---")[1]
    metadata = yaml.safe_load(front)
    assert metadata["base_model"] == "owner/base" and metadata["library_name"] == "diffusers"
    assert {"gas-solver", "diffusers"} <= set(metadata["tags"])
    for line in (
        'pipe.scheduler = gas.GASScheduler.from_pretrained("card")',
        "| guidance scale | 2 |",
        "| network evaluations (NFE) | 4, 6 |",
        "| prediction | epsilon |",
        "| sample shape | [3, 4, 4] |",
        "| teacher: solver | unipc-3-bh2 |",
        "| training: pairs | 640 |",
        "| started from, NFE 4 | deis-3/karras |",
        "| forward passes | 8, 12 |",
        "| NFE | forward passes | fid \\| all | mse |",
        "| 4 | 8 | 5.500 | 0.001230 |",
        "| 6 | 12 |  | 0.0007000 |",
        "![Samples](samples.png)",
    ):
        assert line in text, line
    assert (tmp_path / "card" / "samples.png").read_bytes() == b"png"
    assert gas.load(tmp_path / "card" / "solver.json").nfes == [4, 6]


CARD = "---\ntags:\n- gas-solver\n---\n"
CARDS = {
    "of ours": (CARD.encode(), True),
    "of ours, with a byte order mark": (CARD.encode("utf-8-sig"), True),
    "of ours, by an editor of Windows": (CARD.replace("\n", "\r\n").encode(), True),
    "of a user": (b"# My model\n", False),
    "in Latin-1": (CARD.encode() + b"\xe9", False),
    "of 2 MB": (CARD.encode() + b" " * (2 << 20), False),
}


@pytest.mark.parametrize(("content", "ours"), CARDS.values(), ids=CARDS)
def test_only_a_card_of_ours_is_written_over(content, ours, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    assert may_overwrite(tmp_path / "README.md") is ours


def test_a_pipe_in_place_of_a_card_is_left_alone(tmp_path):
    assert may_overwrite(tmp_path / "README.md")
    os.mkfifo(tmp_path / "README.md")
    assert not may_overwrite(tmp_path / "README.md")


def test_pushing_offline_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    gas_scheduler, _ = scheduler("vp")

    def refused(*args, **kwargs):
        raise OSError("connection refused\nsecond line")

    monkeypatch.setattr(huggingface_hub, "create_repo", refused)
    words = re.escape(
        "could not push to owner/name (OSError: connection refused): log in with `hf auth login`"
    )
    with pytest.raises(ConnectionError, match=words):
        gas_scheduler.push_to_hub("owner/name")
    with pytest.raises(ConnectionError, match=words):
        gas_scheduler.save_pretrained(tmp_path / "folder", push_to_hub=True, repo_id="owner/name")
    assert (tmp_path / "folder" / "scheduler_config.json").exists()


def test_pushing_uploads_config_solver_and_card(monkeypatch):
    import huggingface_hub

    gas_scheduler, _ = scheduler("vp")
    uploaded = {}

    def upload(**kwargs):
        uploaded.update(kwargs, files=sorted(os.listdir(kwargs["folder_path"])))
        uploaded["card"] = (kwargs["folder_path"] / "README.md").read_text()
        return "address"

    monkeypatch.setattr(
        huggingface_hub, "create_repo", lambda repo_id, **_: type("Repo", (), {"repo_id": repo_id})
    )
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert gas_scheduler.push_to_hub("owner/name", base_model="owner/base", private=True) == "address"
    assert (
        uploaded["files"] == ["README.md", "scheduler_config.json", "solver.json"]
        and uploaded["repo_id"] == "owner/name"
    )
    assert (
        'from_pretrained("owner/name")' in uploaded["card"] and 'base_model: "owner/base"' in uploaded["card"]
    )
