"""Every example runs as it stands, with the names of ``gas.__all__``, and learns something.

The numpy and JavaScript samplers are tested against torch in test_solver_file.py and integrations/test_javascript.py.
"""

import io
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import gas

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers", "short_runs")

EXAMPLES = Path(__file__).parents[1] / "examples"
GOLDEN = Path(__file__).parent / "golden"
NEEDS = {"diffusers_pipeline": "diffusers", "onnx_network": "onnxruntime", "control": "Box2D"}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name, *words, **smaller):
        """What a script prints; sizes that are constants in it may be smaller."""
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], exc_type=Exception)
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        script = str(EXAMPLES / f"{name}.py")
        if smaller:
            main = runpy.run_path(script)["main"]
            assert smaller.keys() <= main.__globals__.keys()
            main.__globals__.update(smaller)
            main()
        else:
            runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def short_trainings(monkeypatch):
    """Two Gauss-Newton steps after the start: for examples whose gain is not looked at."""
    for name in ("distill", "distill_family"):
        short = partial(getattr(gas, name), config=gas.GaussNewton(iterations=2))
        monkeypatch.setattr(gas, name, short)


def test_every_example_has_its_test():
    examples = [
        "control",
        "diffusers_pipeline",
        "flow_model",
        "galaxies",
        "numpy_sampler",
        "onnx_network",
        "own_network",
        "sound",
    ]
    assert examples == SCRIPTS
    for name in SCRIPTS:
        paths = set(re.findall(r"gas\.(\w+)", (EXAMPLES / f"{name}.py").read_text())) - {"save"}
        assert paths <= set(gas.__all__), (name, paths)


@pytest.mark.slow
def test_the_job_array(tmp_path):
    """Local processes in place of SLURM's: one is out of time and queued again, two finish the set together."""
    for name, line in (
        ("srun", f'shift; exec {sys.executable} -m gas "$@"'),
        ("scontrol", 'echo "$@" >> queue'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    words = ["--model", "digits", "--seeds", "64", "--shard", "8", "--nfe", "2", "--out", "pairs"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}

    def start(limit):
        command = ["bash", EXAMPLES / "pairs_array.sh", *words]
        return subprocess.Popen(command, cwd=tmp_path, env={**environment, "MAX_TIME": limit})

    assert start("0.01s").wait(300) == 75
    assert (tmp_path / "queue").read_text() == "requeue 17\n"
    assert [process.wait(300) for process in (start("1h"), start("1h"))] == [0, 0]
    assert len(gas.read_pairs(tmp_path / "pairs")) == 64


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gain"), [("own_network", 100), ("flow_model", 10), ("onnx_network", 100)])
@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_own_networks_and_flows(run, name, gain):
    classical, learned = map(float, re.findall(r"error to the teacher ([\d.]+)", run(name)))
    assert learned * gain < classical


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers
def test_a_pipeline(run, tmp_path):
    text = run("diffusers_pipeline")
    losses = [float(loss) for loss in re.findall(r"validation loss ([\d.]+)", text)]
    assert losses[-1] < 0.1 * losses[0]
    assert float(re.search(r"of the teacher: ([\d.]+)", text)[1]) < 0.02
    assert (tmp_path / "three.png").read_bytes()[:4] == b"\x89PNG"


def test_numpy(run, tmp_path):
    gas.save(tmp_path / "s.json", gas.Classical("ipndm-2", "log_snr", 3, 1e-3).table(gas.VPLinear()))
    assert re.fullmatch(r"NFE 3: .* by \d\.\de-\d+\n", run("numpy_sampler", tmp_path / "s.json"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of pygame
@pytest.mark.usefixtures("short_trainings")
def test_control(run):
    """A tiny run, which a second one prints again without flying."""
    words = ["--work", "work", "--results", "results", "--nfe", 1, "--episodes", 2, "--demonstrations", 5]
    sizes = {"SEEDS": 2, "PAIRS": 48, "VALIDATION": 16, "ERRORS": 32}
    table = run("control", *words, "--steps", "40", **sizes)
    names = ["Euler", "GS", "teacher", "the pilot"]
    assert re.findall(r"^\| ([\w+\- ]+) \|", table, re.MULTILINE)[2:] == names
    assert len(list(Path("results").glob("*.json"))) == 5
    shutil.rmtree("work")
    assert run("control", *words, **sizes) == table


# --- galaxies ----------------------------------------------------------------------------------------------


@pytest.fixture
def galaxies():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "galaxies.py")))


@pytest.mark.parametrize(("size", "name"), [(32, "score"), (64, "score-64")])
def test_the_network_of_galaxies_is_that_of_its_authors(galaxies, tmp_path, size, name):
    """Golden numbers of their network in JAX, with random parameters; Equinox writes one array after another."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    for parameter in galaxies.ScoreNet(size).parameters():
        shape = (
            parameter.shape
            if parameter.ndim != 4
            else [(64, 2, 4, 4), (1, 64, 4, 4)][parameter.shape[1] == 1]
        )
        np.save(file, rng.normal(size=shape, scale=0.1).astype("float32"))
    with zipfile.ZipFile(tmp_path / "wheel", "w") as archive:
        archive.writestr(galaxies.FILE.format(size), file.getvalue())
    x, t = (
        torch.from_numpy(rng.normal(size=(2, 1, size, size)).astype("float32")),
        torch.tensor([0.02, 7.0]) / 10,
    )
    model = galaxies.galaxies(tmp_path / "wheel", size)
    golden = json.loads((GOLDEN / "galaxies.json").read_text())[name]
    np.testing.assert_allclose(
        model.weights(x, t)[:, 0, :: size // 4, :: size // 4], golden, rtol=0, atol=1e-5
    )
    # Their process: dx = -(x + score) / 2 over t in [0, 10], a variance of 1 - exp(-t).
    alpha, sigma = model.schedule(torch.tensor(0.3, dtype=torch.float64))
    assert (float(alpha), float(sigma)) == pytest.approx((math.exp(-1.5), math.sqrt(1 - math.exp(-3))))


def test_statistics_of_galaxies_are_those_of_known_profiles(galaxies):
    place = torch.arange(64, dtype=torch.float64) - 31.5
    flux = [torch.exp(-(place[:, None] ** 2 / a**2 + place**2 / b**2) / 2) for a, b in ((6, 6), (8, 4))]
    samples = 10 * torch.log1p(torch.stack(flux)[:, None])
    measures = galaxies.statistics(samples)
    assert measures["flux"].tolist() == pytest.approx([2 * math.pi * 36, 2 * math.pi * 32], rel=1e-3)
    assert float(measures["radius"][0]) == pytest.approx(6 * math.sqrt(2 * math.log(2)), abs=0.25)
    assert measures["ellipticity"].tolist() == pytest.approx([0, (64 - 16) / (64 + 16)], abs=1e-3)


@pytest.mark.slow
def test_galaxies(run):
    """With the real networks: ``GALAXYGRAD=galaxygrad-0.2.1-py3-none-any.whl``, from ``pip download``."""
    if "GALAXYGRAD" not in os.environ:
        pytest.skip("GALAXYGRAD does not name the wheel of galaxygrad 0.2.1")
    *classical, learned = re.findall(
        r"mean ([\d.]+)", run("galaxies", os.environ["GALAXYGRAD"], "--pairs", 48)
    )
    assert 2 * float(learned) < min(map(float, classical))


# --- sound -------------------------------------------------------------------------------------------------


@pytest.fixture
def sound():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "sound.py")))


def test_frames_survive_the_way_to_sound_and_back(sound):
    """Harmonics of 150 Hz that fade: their frames are those of the wave that is made of them, to a few decibels."""
    time = np.arange(sound.FRAMES * sound.HOP) / sound.RATE
    wave = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 20)) * np.exp(-4 * time)
    frames = sound.log_mel(wave)
    assert frames.shape == (sound.MELS, sound.FRAMES)
    assert float(frames.max()) == 1
    again = sound.log_mel(sound.waves(frames[None])[0])
    assert float((again - frames).square().mean().sqrt()) * sound.RANGE / 2 < 4
    # Decibels do not depend on loudness.
    torch.testing.assert_close(sound.log_mel(0.01 * wave), frames)


def test_the_flow_network_predicts_velocities_of_data(sound):
    """At one time, states of the same prediction have velocities that differ by their own difference over t."""
    torch.manual_seed(0)
    network = (
        sound.Speaker().eval().requires_grad_(False)
    )  # its last layer is zero: the data is that of its bias
    model = sound.spoken_digits(network)
    labels = torch.tensor([3, 4])
    predictions = model.bind(labels)(model.noise(range(2)), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(predictions[0], predictions[1])
    assert not gas.check_model(model)


@pytest.mark.slow
@pytest.mark.usefixtures("short_trainings")
def test_spoken_digits(run, tmp_path):
    """All of it with tiny numbers; run again, nothing is trained and the same table is printed."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng, which speaks the corpus, is not installed")
    tiny = {"voices": 10, "steps": 3, "hearing": 60, "pairs": 12, "unseen": 10, "trainings": 2, "nfe": 2}
    files = {"out": "out", "wav": "row.wav", "picture": "row.png", "json": "row.json"}
    options = [f"--{name}={value}" for name, value in (tiny | files).items()]
    accents = ["en-us", "en-gb"]
    text = run("sound", *options, ACCENTS=accents)
    *_, table = text.partition("| NFE")
    assert all(
        f"| {name}" in table for name in ("Euler", "UniPC-3", "best of all classical", "GS", "teacher")
    )
    rate, wave = wavfile.read(tmp_path / "row.wav")
    assert (rate, wave.dtype, len(wave) > 3 * 10 * 0.4 * rate) == (8000, np.uint8, True)
    assert 100 < int(wave.max()) - int(wave.min()) < 255
    assert (tmp_path / "row.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((tmp_path / "row.json").read_text())["rows"]
    assert [row["training"] for row in rows if row["name"] == "GS"] == [0, 1]
    again = run("sound", *options, ACCENTS=accents)
    assert "step" not in again
    assert again.endswith(table)
