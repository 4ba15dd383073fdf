"""Every example runs as it stands, with the names of ``gas.__all__``, and learns something.

The numpy and JavaScript samplers are tested against torch in test_solver_file.py and integrations/test_javascript.py.
"""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import gas

pytestmark = pytest.mark.usefixtures("quick_gauss_newton")

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"diffusers_pipeline": "diffusers", "onnx_network": "onnxruntime"}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name, *words):
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], exc_type=Exception)
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_has_its_test():
    assert SCRIPTS == ["diffusers_pipeline", "flow_model", "numpy_sampler", "onnx_network", "own_network"]
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
