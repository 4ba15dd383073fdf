"""The zoo's latent pipelines: digits as prompted, and solvers served by the pipeline itself."""

import json
import math
from dataclasses import replace

import pytest
import torch

import gas
from gas import zoo
from gas.classical.registry import Classical
from gas.io import write_safetensors
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds
from gas.training.adam import AdamSteps
from gas.training.adversarial.setup import GAS, adversary_for, fit_adversarial
from gas.zoo import latent as latent_models
from gas.zoo.weights_file import WEIGHTS, read_weights, write_weights
from support.commands import run
from support.forks import run_fresh

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")

NAMES = ("mnist-latent", "mnist-flow")


@pytest.fixture(scope="module")
def measuring():
    return zoo.load("mnist")


@pytest.fixture(scope="module", params=NAMES)
def latent(request):
    return zoo.load(request.param)


@pytest.mark.slow
def test_a_pipeline_draws_the_digit_of_its_prompt(latent, measuring):
    """Through the pipeline's own call, with the scheduler that it comes with."""
    pipe = zoo.pipeline(latent.name)
    noise = latent.noise(range(20))
    prompts = [latent.prompts[i % 10] for i in range(20)]
    call = dict(latent.arguments, num_inference_steps=12, guidance_scale=2.0, output_type="pt")
    drawn = pipe(prompts, latents=noise, **call).images
    assert drawn.shape == (20, 1, 32, 32)
    named = measuring.classifier(2 * drawn - 1).argmax(dim=1)
    assert int((named == torch.arange(20) % 10).sum()) >= 19
    picture = pipe("seven", num_inference_steps=2, guidance_scale=2.0).images[0]
    assert picture.size == (32, 32)


@pytest.mark.slow
def test_a_solver_in_the_pipeline_is_gas_sample(latent, tmp_path):
    """The three lines of the documentation, on one file."""
    assert isinstance(latent, Model)
    table = Classical("dpmpp-3m", "log_snr", 4, latent.t_end).table(latent.schedule)
    solver = gas.GeneralizedSolver.from_table(latent.schedule, table, latent.t_end)
    with torch.no_grad():
        for number in solver.parameters():
            number.add_(0.02)
    gas.save(tmp_path / "solver.json", solver, model=latent, guidance=2.0)
    pipe = zoo.pipeline(latent.name)
    pipe.scheduler = gas.GASScheduler.from_config(
        pipe.scheduler.config, solver=tmp_path / "solver.json", guidance_scale=2.0, strict=True
    )
    labels, noise = labels_of_seeds(10, range(3)), latent.noise(range(3))
    call = dict(latent.arguments, num_inference_steps=4, guidance_scale=2.0, output_type="latent")
    drawn = pipe([latent.prompts[i] for i in range(3)], latents=noise, **call).images
    with torch.no_grad():
        expected = gas.sample(latent.bind(labels, 2.0), noise, gas.load(tmp_path / "solver.json").table(4))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_samples_are_measured_decoded_against_real_images(latent, measuring):
    x = latent.noise(range(2))
    torch.testing.assert_close(latent.features(x), measuring.features(latent.decode(x)))
    assert latent.reference is not None and latent.reference.count == 1000


@pytest.mark.slow
def test_a_solver_learns_against_a_critic_of_its_latents(latent):
    table = Classical("ddim", "log_snr", 2, latent.t_end).table(latent.schedule)
    pairs, others = gas.pairs.teach(latent, table, range(8), guidance=2.0).split(2)
    config = replace(GAS, iterations=3, batch=2, validate_every=3)
    adversary = adversary_for(latent, pairs, config=config, samples=4)
    (critic,) = adversary.discriminators()
    assert critic.logits(pairs.target[:2], None).shape[0] == 2
    start = Classical("ddim", "time_uniform", 1, latent.t_end).table(latent.schedule)
    solver = gas.GeneralizedSolver.from_table(latent.schedule, start, latent.t_end)
    steps = AdamSteps(solver, latent, pairs, gas.losses.l1, config, adversary.weighted(1.0), "independent")
    before = [number.detach().clone() for number in solver.parameters()]
    assert all(math.isfinite(steps.step()) for _ in range(3))
    assert any(not torch.equal(a, b) for a, b in zip(before, solver.parameters(), strict=True))
    first, *_, last = fit_adversarial(adversary, solver, latent, pairs, others)
    assert last.iteration == 3
    assert last.best_loss <= first.start_loss


def test_every_digit_is_one_token_and_nothing_else_is_a_digit():
    words = latent_models.tokenizer()
    tokens = {word: words(word).input_ids for word in latent_models.WORDS}
    assert all(len(ids) == 3 for ids in tokens.values())
    assert len({ids[1] for ids in tokens.values()}) == 10
    assert not {ids[1] for ids in tokens.values()} & set(words("a cat on the mat, eighth").input_ids)


@pytest.mark.slow
def test_files_that_do_not_belong_together(tmp_path):
    latent = WEIGHTS / "mnist-latent.safetensors"
    write_weights(tmp_path / "other-denoiser.safetensors", *read_weights(latent))
    assert zoo.pipeline(tmp_path / "other-denoiser.safetensors") is not None  # with the shipped autoencoder
    tensors, card = read_weights(WEIGHTS / "mnist-autoencoder.safetensors")
    write_weights(tmp_path / "mnist-autoencoder.safetensors", tensors, {**card, "scaling_factor": 2.0})
    with pytest.raises(ValueError, match="denoises latents of another autoencoder"):
        zoo.pipeline(tmp_path / "other-denoiser.safetensors")
    (tmp_path / "mnist-autoencoder.safetensors").unlink()
    (tmp_path / "other-denoiser.safetensors").write_bytes(latent.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="are damaged or not a zoo model"):
        zoo.load(tmp_path / "other-denoiser.safetensors")
    write_safetensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"card": '{"name": "x"}'})
    with pytest.raises(ValueError, match="are damaged or not a zoo model"):
        zoo.load(tmp_path / "other.safetensors")


def test_images_are_no_pipeline():
    with pytest.raises(
        ValueError, match=r"'digits' is not a diffusers pipeline; .*: emoji, mnist-flow, mnist-latent"
    ):
        zoo.pipeline("digits")


@pytest.mark.slow
def test_without_diffusers_the_error_names_the_extra():
    """Where the import of diffusers fails."""
    script = (
        "from gas import zoo\n"
        "assert zoo.names() == ['digits', 'emoji', 'mnist', 'mnist-flow', 'mnist-latent']\n"
        "assert zoo.card('mnist-flow')['sample_shape'] == [4, 8, 8] and zoo.load('digits').classes == 10\n"
        "try:\n    zoo.load('mnist-latent')\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    printed = run_fresh(script, without=["diffusers"])
    assert "the zoo's latent models are diffusers pipelines" in printed
    assert "pip install 'gas-solver[diffusers]'" in printed


@pytest.mark.slow
def test_the_commands_take_it_by_name(tmp_path):
    model, work = ["--model", "mnist-flow"], tmp_path
    run("pairs", *model, "--seeds", 4, "--nfe", 3, "--guidance", 2, "--out", work / "pairs")
    learn = ["--validation", 2, "--nfe", 2, "--iterations", 1, "--start", "ddim/time_uniform"]
    run("train", *model, "--pairs", work / "pairs", *learn, "--out", work / "s.json")
    assert gas.load(work / "s.json").document.model["name"] == "mnist-flow"
    run("sample", *model, "--solver", work / "s.json", "--nfe", 2, "--seeds", 4, "--out", work / "s.png")
    assert (work / "s.png").read_bytes()[:4] == b"\x89PNG"
    measure = ["--seeds", "50:54", "--baselines", "ddim/time_uniform", "--json"]
    printed = run("evaluate", *model, "--solver", work / "s.json", *measure).stdout
    assert all(row["to_teacher"] and row["frechet_data"] > 0 for row in json.loads(printed)["rows"])
    export = ["export", "--solver", work / "s.json", "--onnx", work / "x.onnx", "--nfe", 2, *model]
    message = run(*export, code=2).stderr
    assert "model mnist-flow is a pipeline of latents, which this command does not take" in message
    assert "mnist-flow" in run("zoo").stdout


@pytest.mark.slow
def test_the_demo_learns_at_the_guidance_of_the_card(tmp_path, monkeypatch):
    for name, number in {"TRAINED": 32, "VALIDATED": 8, "EVALUATED": 12, "GAS_STEPS": 4}.items():
        monkeypatch.setattr(f"gas.cli.demo.{name}", number)
    demo = ["demo", "--model", "mnist-latent", "--iterations", 1, "--nfe", 2, "--out", tmp_path, "--json"]
    rows = {row["name"]: row for row in json.loads(run(*demo).stdout)["rows"]}
    learned, model = gas.load(tmp_path / "mnist-latent-2.json"), zoo.load("mnist-latent")
    assert learned.document.guidance == 2.0 and rows["GS"]["forward_passes"] == 4
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end)
    unseen = gas.evaluation.teacher_pairs(model, teacher, range(50_000, 50_012), guidance=2.0)
    error = float(gas.evaluate(model, unseen, learned.table(2), gas.losses.l2).mean())
    assert rows["GS"]["mse"] == pytest.approx(error, rel=1e-3)
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
