"""Pipelines as models: what they are asked, what is left as it was, and what is said of what cannot be."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
import torch

import gas
from gas.models.protocol import Model, passes_of

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers"),
]  # other libraries' deprecations

from gas.pipelines.loading import open_pipeline  # noqa: E402
from gas.pipelines.model import from_pipeline  # noqa: E402
from gas.pipelines.prompts import read_prompts  # noqa: E402
from gas.training.elimination import check_branches  # noqa: E402
from support import pipelines  # noqa: E402 (after the library it needs)
from support.commands import refused, run  # noqa: E402

PROMPTS = ["a cat", "dog on the mat"]
LABELS = torch.tensor([1, 0, 1])
TIME = torch.tensor(0.6, dtype=torch.float64)


@pytest.fixture(scope="module")
def sd():
    return from_pipeline(pipelines.build("sd1"), PROMPTS)


def ddpm(**kwargs):
    return from_pipeline(pipelines.build("ddpm"), **kwargs)


# --- what is asked --------------------------------------------------------------------------------------


def test_guidance_is_the_usual_rule_between_two_prompts(sd):
    assert isinstance(sd, Model)
    x = sd.noise(range(3))
    plain, without = sd.bind(LABELS)(x, TIME), sd.denoise(x, TIME)
    guided = sd.bind(LABELS, 3.0)(x, TIME)
    torch.testing.assert_close(guided, torch.lerp(without, plain, 3.0), rtol=1e-4, atol=1e-4)
    assert float((plain - without).abs().max()) > 1e-4


def test_it_is_the_network_asked_at_its_own_float_time():
    model = ddpm()
    x = model.noise(range(2))
    alpha, sigma = model.schedule(TIME)
    with torch.no_grad():
        output = model.network(x, torch.full((2,), 0.6 * 1000 - 1)).sample
    torch.testing.assert_close(model.denoise(x, TIME), (x - sigma * output) / alpha, rtol=1e-5, atol=1e-5)


def test_answers_are_differentiable_in_state_and_time():
    model = ddpm()
    x, t = model.noise([1]).requires_grad_(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (model.denoise(x, t) * direction).sum().backward()
    with torch.no_grad():
        rise = [(model.denoise(x, t + h) * direction).sum().double() for h in (1e-4, -1e-4)]
        along = [(model.denoise(x + h * direction, t) * direction).sum().double() for h in (1e-2, -1e-2)]
    assert float(t.grad) == pytest.approx(float(rise[0] - rise[1]) / 2e-4, rel=2e-2)
    slope = float((x.grad * direction).sum())
    assert slope == pytest.approx(float(along[0] - along[1]) / 2e-2, rel=1e-2)


def guided_pairs(model, guidance):
    noise = model.noise([0]).cpu()
    manifest = {"recipe": {"guidance": guidance, "teacher": {}}}
    return gas.Pairs(torch.tensor([0]), noise, noise, torch.tensor([0]), manifest)


def test_guidance_is_an_input_of_a_distilled_network():
    model = from_pipeline(pipelines.build("flux"), PROMPTS, height=16, width=16)
    noise, before = model.noise(range(3)), model.controlled.evaluated
    outputs = [model.bind(LABELS, guidance)(noise, TIME) for guidance in (1.0, 3.5)]
    assert model.controlled.evaluated == before + 2 * 3  # not twice for a guided one
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-4
    assert model.fingerprint()["guidance"] == "input"
    assert passes_of(model, 3.5) == 1
    pairs = guided_pairs(model, 3.5)
    with pytest.raises(
        gas.UserError, match=r"guidance is an input of the network of .*: a prediction is one forward"
    ):
        check_branches(model, pairs)
    artefact = gas.save(
        None, gas.GeneralizedSolver(model.schedule, 2, model.t_end), model=model, guidance=3.5
    )
    assert artefact.document.forward_passes(artefact.entry(2)) is None


def test_a_prompt_is_encoded_once():
    model = from_pipeline(pipelines.build("sd1"), PROMPTS)
    model.bind(LABELS, 2.0)(model.noise(range(3)), TIME)
    calls = []
    handle = model.pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for labels in (LABELS, LABELS[:2], LABELS[1:].flip(0)):
        model.bind(labels, 2.0)(model.noise(range(len(labels))), TIME)
    handle.remove()
    assert not calls


def test_the_pipeline_is_left_as_it_was(sd):
    pipe = sd.pipe
    before, config, state = pipe.scheduler, dict(pipe.config), torch.get_rng_state()
    sd.bind(LABELS, 2.0)(sd.noise(range(3)), TIME)
    sd.decode(sd.noise([0]))
    with pytest.raises(ValueError, match=r"states of StableDiffusionPipeline are .*4, 8, 8"):
        sd.bind(LABELS)(torch.zeros(3, 5, 8, 8), TIME)
    assert pipe.scheduler is before and dict(pipe.config) == config
    assert pipe._progress_bar_config == {"disable": True}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_half_precision_stays_inside_the_pipeline(family):
    size = {"height": 16, "width": 16} if family == "flux" else {}
    full = from_pipeline(pipelines.build(family), PROMPTS, **size)
    half = from_pipeline(pipelines.build(family).to(torch.bfloat16), PROMPTS, **size)
    x = full.noise(range(3))
    expected, samples = full.bind(LABELS, 2.0)(x, TIME), half.bind(LABELS, 2.0)(x, TIME)
    assert samples.dtype == torch.float32
    assert 0 < float((samples - expected).abs().mean()) < 0.05
    assert half.decode(x).dtype == torch.float32


def test_weights_that_lie_nowhere_identify_nothing():
    model = ddpm()
    model.sample_shape  # noqa: B018 (asks the network)
    model.network.to("meta")
    with pytest.raises(
        ValueError, match=r"weights of DDPMPipeline lie on no device.*enable_model_cpu_offload"
    ):
        model.fingerprint()


@pytest.mark.parametrize("family", ["sd1", "wan"])
def test_decoding_is_the_pipelines_own(family):
    size = {"wan": {"height": 16, "width": 16, "num_frames": 5}}.get(family, {})
    model = from_pipeline(pipelines.build(family), PROMPTS, **size)
    noise = model.noise([4])
    table = gas.Classical("ddim", "time_uniform", 2, model.t_end).table(model.schedule)
    with torch.no_grad():
        samples = model.decode(gas.sample(model.bind(torch.tensor([0]), 2.0), noise, table))
    pipe = model.pipe
    pipe.scheduler = gas.GASScheduler.from_config(pipe.scheduler.config, solver=table)
    kwargs = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt", **size}
    theirs = next(iter(pipe(PROMPTS[0], latents=noise, **kwargs).values()))
    torch.testing.assert_close(samples, 2 * theirs - 1, rtol=0, atol=1e-5)


def test_decoded_losses_reach_the_latents(sd):
    x = sd.noise([0]).requires_grad_()
    calls, gradients = [], {}

    def decode(latents):
        calls.append(len(latents))
        return sd.decode(latents)

    for recompute in (False, True):
        loss = gas.losses.FeatureLoss(decode, recompute=recompute)(x, torch.zeros_like(x)).sum()
        (gradients[recompute],) = torch.autograd.grad(loss, x)
    assert len(calls) == 2 + 3  # of both samples, and once more in the backward pass
    assert float(gradients[True].abs().max()) > 0
    assert torch.equal(gradients[True], gradients[False])


# --- pairs ----------------------------------------------------------------------------------------------


def test_pairs_say_what_labels_mean_and_hold_decoded_samples(sd, tmp_path):
    teacher = gas.Classical("ddim", "time_uniform", 2, sd.t_end)
    spec = gas.PairsSpec(range(3), teacher.config(), guidance=2.0, shard=2, decoded=True)
    for _ in gas.write_pairs(sd, teacher.table(sd.schedule), tmp_path, spec):
        pass
    pairs = gas.read_pairs(tmp_path, model=sd, decoded=True)
    assert pairs.prompts == ["a cat", "dog on the mat", "a cat"]
    assert pairs.subset(slice(1, 2)).prompts == ["dog on the mat"]
    assert pairs.decoded.dtype == torch.float16
    torch.testing.assert_close(pairs.decoded.float(), sd.decode(pairs.target), rtol=0, atol=2e-3)
    assert gas.read_pairs(tmp_path, model=sd).decoded is None
    other = from_pipeline(sd.pipe, ["a cat", "a dog"])
    with pytest.raises(ValueError, match=r"conditions\.prompts: .*mat.* stored"):
        gas.read_pairs(tmp_path, model=other)
    with pytest.raises(ValueError, match="conditions: "):
        gas.read_pairs(tmp_path, model=from_pipeline(sd.pipe))


def test_without_a_decoder_nothing_is_decoded(tmp_path):
    model = gas.OwnModel(lambda x, t: 0 * x, gas.VPLinear(), (2,))
    table = gas.Classical("ddim", "time_uniform", 2, 1e-3).table(model.schedule)
    with pytest.raises(ValueError, match=r"model own has no decode\(x\)"):
        next(gas.write_pairs(model, table, tmp_path, gas.PairsSpec(range(2), {}, decoded=True)))
    for _ in gas.write_pairs(model, table, tmp_path, gas.PairsSpec(range(2), {})):
        pass
    with pytest.raises(ValueError, match="without decoded samples"):
        gas.read_pairs(tmp_path, decoded=True)


# --- what cannot be -------------------------------------------------------------------------------------


def test_what_is_not_supported_is_said_with_what_is():
    with pytest.raises(ValueError, match=r"Linear is not a pipeline with a scheduler.*gas\.OwnModel"):
        from_pipeline(torch.nn.Linear(1, 1))
    pipe = pipelines.build("ddpm")
    from diffusers import LCMScheduler

    pipe.scheduler = LCMScheduler()
    with pytest.raises(ValueError, match="scheduler LCMScheduler is not supported"):
        from_pipeline(pipe)


def flux(**kwargs):
    return from_pipeline(pipelines.build("flux"), ["a cat"], height=16, width=16, **kwargs)


def img2img(**kwargs):
    return from_pipeline(pipelines.build("sd_inpaint"), ["a cat"], **kwargs)


def called_twice(pipe):
    """A pipeline whose scheduler takes two steps at each time."""

    class Twice(type(pipe)):
        def __call__(
            self, batch_size=1, generator=None, num_inference_steps=2, output_type="pt", return_dict=True
        ):
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.randn(batch_size, 3, 8, 8, generator=generator)
            for t in self.scheduler.timesteps:
                for _ in range(self.steps):
                    x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
            return (x,)

    pipe.__class__ = Twice
    return pipe


@pytest.mark.parametrize(("steps", "message"), [(0, "never called its scheduler"), (2, "more than once")])
def test_a_pipeline_that_is_not_sampled_step_by_step_is_refused(steps, message):
    pipe = called_twice(pipelines.build("ddpm"))
    pipe.steps = steps
    with pytest.raises(ValueError, match=message):
        from_pipeline(pipe).bind(None)(torch.zeros(1, 3, 8, 8), TIME)
    pipe.steps = 1
    assert from_pipeline(pipe).sample_shape == (3, 8, 8)


def test_a_pipeline_that_changes_states_between_steps_is_refused(sd):
    from diffusers import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline(**sd.pipe.components, requires_safety_checker=False)
    call = pipelines.CALLS["sd_inpaint"]
    with pytest.raises(ValueError, match=r"changes its states between steps.*an input"):
        from_pipeline(pipe, PROMPTS, **call).noise([0])


def test_a_negative_prompt_of_a_distilled_network_is_extrapolated_from():
    """Then the guidance is ``true_cfg_scale``, and the scale that the network takes is an argument of the call."""
    model = flux(negative_prompt="red bell", guidance_scale=3.0)
    x = model.noise([0])
    plain, guided = model.bind(torch.tensor([0]))(x, TIME), model.bind(torch.tensor([0]), 4.0)(x, TIME)
    away = from_pipeline(model.pipe, ["red bell"], height=16, width=16).bind(torch.tensor([0]), 3.0)(x, TIME)
    torch.testing.assert_close(guided, torch.lerp(away, plain, 4.0), rtol=1e-4, atol=1e-4)
    assert float((plain - away).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["sd1", "qwen_image", "z_image"])
def test_a_batch_is_its_samples_one_by_one(family):
    """Prompts of different lengths: padded, listed, or sampled one by one where a pipeline pads to the longest."""
    model = from_pipeline(pipelines.build(family), PROMPTS, **pipelines.CALLS.get(family, {}))
    x, labels = model.noise(range(2)), torch.tensor([0, 1])
    alone = [model.bind(labels[n : n + 1], 2.0)(x[n : n + 1], TIME) for n in range(2)]
    torch.testing.assert_close(model.bind(labels, 2.0)(x, TIME), torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "flux", "z_image"])
def test_predictions_do_without_the_text_encoders(family):
    model = from_pipeline(pipelines.build(family), PROMPTS, **pipelines.CALLS.get(family, {}))
    x = model.noise(range(3))
    expected = [model.bind(LABELS, scale)(x, TIME) for scale in (1.0, 2.0)]
    model = from_pipeline(model.pipe, PROMPTS, **pipelines.CALLS.get(family, {}))
    model.free_text_encoders(2.0)
    assert model.pipe.text_encoder is None
    for scale, prediction in zip((1.0, 2.0), expected, strict=True):
        torch.testing.assert_close(model.bind(LABELS, scale)(x, TIME), prediction, rtol=1e-5, atol=1e-5)
    assert model.decode(x).isfinite().all() and model.fingerprint()
    with pytest.raises(ValueError, match="prompt 'red bell' was not encoded before"):
        replace(model, prompts=("red bell",)).bind(LABELS[1:2])(x[:1], TIME)


def test_images_are_encoded_once():
    model = from_pipeline(pipelines.build("sd_inpaint"), PROMPTS, **pipelines.CALLS["sd_inpaint"])
    model.bind(LABELS[:1])(model.noise([0]), TIME)
    calls = []
    handle = model.pipe.vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    for t in (0.3, 0.6):
        model.bind(LABELS[:1])(model.noise([1]), torch.tensor(t, dtype=torch.float64))
    handle.remove()
    assert not calls
    other = {**pipelines.CALLS["sd_inpaint"], "image": torch.zeros(1, 3, 16, 16)}
    first = model.bind(LABELS[:1])(model.noise([0]), TIME)
    second = from_pipeline(model.pipe, PROMPTS, **other).bind(LABELS[:1])(model.noise([0]), TIME)
    assert float((first - second).abs().max()) > 1e-3
    conditions = [
        each.conditions_fingerprint() for each in (model, from_pipeline(model.pipe, PROMPTS, **other))
    ]
    assert conditions[0] != conditions[1] and json.dumps(conditions)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda sd: ddpm(prompts=["a cat"]), "for a pipeline that takes prompts, got .*a cat"),
        (lambda sd: from_pipeline(sd.pipe, "a cat"), "prompts must be a list"),
        (lambda sd: ddpm(negative_prompt="a dog"), "DDPMPipeline takes no negative_prompt: leave it out"),
        (lambda sd: flux(true_cfg_scale=4.0), "takes no argument 'true_cfg_scale' here"),
        (lambda sd: flux(guidance_scale=4.0), "takes no argument 'guidance_scale' here: it is the guidance"),
        (lambda sd: img2img(strength=0.5), r"strength must be 1 for a table.* got 0\.5"),
        (
            lambda sd: from_pipeline(pipelines.build("wan_i2v")),
            r"needs image: from_pipeline\(pipe, prompts, image=\.\.\.\)",
        ),
        (lambda sd: from_pipeline(sd.pipe, heigth=8), "takes no argument 'heigth'"),
        (lambda sd: from_pipeline(sd.pipe, latents=1), "takes no argument 'latents'"),
        (lambda sd: ddpm().bind(None, 2.0), "DDPMPipeline takes no guidance: use 1, got 2"),
        (lambda sd: sd.bind(None, 2.0), "guidance 2 needs prompts or classes"),
        (lambda sd: sd.bind(LABELS, 0.5), "guidance must be 1 .* got 0.5"),
        (
            lambda sd: gas.save(None, gas.GeneralizedSolver(sd.schedule, 2, sd.t_end), guidance=7.5).check(
                sd, 2
            ),
            r"guidance 7.5 \(this model: 2\)",
        ),
        (lambda sd: sd.bind(torch.tensor([2])), "label 2 is out of range: .* has 2 classes or prompts"),
    ],
)
def test_what_does_not_fit_is_refused(act, message, sd):
    with pytest.raises(ValueError, match=message):
        act(sd)


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n  caf\xc3\xa9 \n")
    assert read_prompts(path) == ["a cat", "café"]
    path.write_text(" \n\n")
    with pytest.raises(ValueError, match="is empty: write one prompt a line"):
        read_prompts(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte 3\)"):
        read_prompts(path)
    with open(path, "wb") as file:
        file.truncate(30 << 20)
    with pytest.raises(ValueError, match=r"prompt file .*prompts.txt: it has 31,457,280 bytes, more than"):
        read_prompts(path)


# --- the command line -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(sd, tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    sd.pipe.save_pretrained(root / "sd")
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    return root


@pytest.mark.slow
def test_the_commands_take_a_pipeline(folder):
    model = ["--model", f"diffusers:{folder / 'sd'}"]
    prompts = ["--prompts", folder / "prompts.txt"]
    teacher = ["--seeds", 8, "--nfe", 4, "--guidance", 2, "--decoded", "--out", folder / "pairs"]
    run("pairs", *model, *prompts, *teacher)
    learn = ["--validation", 2, "--nfe", 2, "--loss", "l1", "--iterations", 2, "--start", "ddim/time_uniform"]
    run("train", *model, "--pairs", folder / "pairs", *learn, "--out", folder / "s.json")
    document = gas.load(folder / "s.json").document
    assert document.guidance == 2.0 and document.model["prediction"] == "epsilon"
    solver = ["--solver", folder / "s.json"]
    sample = ["sample", *model, *solver, "--nfe", 2, "--seeds", 2]
    run(*sample, *prompts, "--out", folder / "s.png")
    assert (folder / "s.png").read_bytes()[:4] == b"\x89PNG"
    options = ["--seeds", "50:53", "--baselines", "ddim/time_uniform", "--json"]
    rows = json.loads(run("evaluate", *model, *prompts, *solver, *options).stdout)["rows"]
    assert {row["nfe"] for row in rows} == {2, 4}
    assert "needs prompts" in refused(*sample, "--out", folder / "s.npz")


def test_bad_input_is_one_line(folder, tmp_path, monkeypatch):
    from diffusers import LCMScheduler

    def pairs(model, *more):
        return refused("pairs", "--model", f"diffusers:{model}", *more, "--out", tmp_path / "pairs")

    assert "there is no model folder" in pairs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "it has no readable model_index.json" in pairs(tmp_path / "empty")
    half = tmp_path / "half"
    open_pipeline(str(folder / "sd")).save_pretrained(half)
    weights = half / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is incomplete or damaged" in pairs(half)
    weights.unlink()
    assert "is incomplete or damaged" in pairs(half)
    (tmp_path / "empty.txt").write_text("\n")
    assert "is empty: write one prompt a line" in pairs(folder / "sd", "--prompts", tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "is not UTF-8 (byte 3)" in pairs(folder / "sd", "--prompts", tmp_path / "latin.txt")
    (half / "model_index.json").write_text("{")
    assert "it has no readable model_index.json" in pairs(half)
    foreign = open_pipeline(str(folder / "sd"))
    foreign.register_modules(scheduler=LCMScheduler())
    foreign.save_pretrained(tmp_path / "foreign")
    assert "scheduler LCMScheduler is not supported" in pairs(tmp_path / "foreign")
    assert "--call must be like" in pairs(folder / "sd", "--call", "height")
    assert "--prompts and --call are for pipelines" in refused(
        "pairs", "--model", "digits", "--call", "height=8", "--out", tmp_path / "pairs"
    )
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'gas-solver[diffusers]'" in pairs(folder / "sd")
