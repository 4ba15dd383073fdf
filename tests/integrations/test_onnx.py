"""Solvers as ONNX give torch's numbers, hold their weights once, and say what is missing."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gas
from gas.integrations.onnx import TOLERANCE, DenoiserModule, Step, Unrolled, export, largest_difference
from support.commands import run
from support.small_zoo import write_small

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed", exc_type=Exception)
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed", exc_type=Exception)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Half as deep as digits: what a graph costs is its number of operations."""
    return gas.zoo.load(write_small("digits", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def table(model):
    return gas.Classical("unipc-3-bh2", "log_snr", 3, 1e-3).table(model.schedule)


@pytest.fixture(scope="module")
def file(tmp_path_factory, model, table):
    path = tmp_path_factory.mktemp("onnx") / "solver.json"
    gas.save(path, table, model=model, guidance=2.0)
    return path


@pytest.mark.slow
def test_the_whole_guided_sampler_from_the_command_line(tmp_path, model):
    file, out = tmp_path / "two.json", tmp_path / "sampler.onnx"
    table = gas.Classical("unipc-2-bh2", "log_snr", 2, 1e-3).table(model.schedule)
    gas.save(file, table, model=model, guidance=2.0)
    words = ["export", "-s", file, "--onnx", out, "-m", model.path, "--nfe", 2, "--json"]
    report = json.loads(run(*words).stdout)
    assert report["largest_difference"] < TOLERANCE
    assert report["inputs"] == ["x", "labels"]
    x, labels = model.noise(range(7)), torch.arange(7)
    expected = gas.sample(model.bind(labels, 2.0), x, table)
    session = onnxruntime.InferenceSession(out)
    (output,) = session.run(None, {"x": x.numpy(), "labels": labels.numpy()})
    assert float(np.abs(output - expected.numpy()).max()) < 1e-5
    # The network is evaluated twice and its weights stand there once.
    graph = onnx.load(out).graph
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.network.modules())
    assert sum(node.op_type == "Conv" for node in graph.node) == 2 * convolutions
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())
    stored = sum(onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer)
    assert 0.9 * weights < stored < 1.5 * weights and stored < report["bytes"]


@pytest.mark.slow
def test_a_denoiser_at_any_time_and_batch(tmp_path, model):
    out, x, labels = tmp_path / "network.onnx", model.noise(range(5)), torch.arange(5)
    module = DenoiserModule(model.conditional, model.network)
    inputs = {"x": x[:3], "t": torch.tensor([0.5], dtype=torch.float64), "label": labels[:3]}
    assert export(out, module, inputs, batch={"x": 0, "label": 0}) < TOLERANCE
    for t in (1.0, 0.3, 1e-3):
        given = {"x": x, "t": torch.tensor([t], dtype=torch.float64), "label": labels}
        expected = model.bind(labels)(x, torch.tensor(t, dtype=torch.float64))
        assert largest_difference(out.read_bytes(), given, expected) < TOLERANCE * max(
            1, expected.abs().max()
        )


@pytest.mark.slow
def test_a_network_of_discrete_steps_that_asks_how_large_a_batch_is(tmp_path):
    """As in diffusers' U-Nets: float steps of a table of ``alphas_cumprod``, and a branch for large batches."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, step):
            x = x.contiguous() if x.shape[0] >= 64 else x
            return self.layer(x) + step.to(x.dtype)[:, None, None, None] / 1000

    network, schedule = Network(), gas.VPDiscrete(torch.linspace(0.999, 0.01, 50))
    denoise = gas.denoise.VelocityDenoiser(gas.denoise.DiscreteTime(network, schedule), schedule)
    x, out = torch.randn(5, 1, 4, 4), tmp_path / "network.onnx"
    inputs = {"x": x[:3], "t": torch.tensor([0.5], dtype=torch.float64)}
    assert export(out, DenoiserModule(denoise, network), inputs, batch={"x": 0}) < TOLERANCE
    for t in (1.0, 0.123, 0.02):
        given = {"x": x, "t": torch.tensor([t], dtype=torch.float64)}
        with torch.no_grad():
            expected = denoise(x, given["t"][0])
        assert largest_difference(out.read_bytes(), given, expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 2])
def test_one_row_from_the_command_line(tmp_path, file, table, row):
    out = tmp_path / "row.onnx"
    report = json.loads(run("export", "-s", file, "--onnx", out, "--nfe", 3, "--row", row, "--json").stdout)
    assert report["bytes"] < 10_000
    states, outputs = torch.randn(2, row + 1, 1000)
    expected = torch.tensordot(table.states[row, : row + 1].float(), states, 1)
    expected = expected + torch.tensordot(table.outputs[row, : row + 1].float(), outputs, 1)
    given = {"states": states, "outputs": outputs}
    assert largest_difference(out.read_bytes(), given, expected) < 1e-5


@pytest.mark.slow
def test_a_network_that_fixes_the_batch_is_not_written(tmp_path, table):
    class Fixed(nn.Module):
        def forward(self, x, t):
            return x * torch.ones(int(x.shape[0]), 1)

    fixed, out = Fixed(), tmp_path / "fixed.onnx"
    with pytest.raises(ValueError, match=r"ONNX graph does not run|cannot be written as ONNX"):
        export(out, Unrolled(fixed, fixed, table), {"x": torch.ones(3, 4)}, batch={"x": 0})
    assert not out.exists()


@pytest.mark.slow
def test_a_graph_with_other_numbers_is_not_written(tmp_path, table, monkeypatch):
    out = tmp_path / "row.onnx"
    monkeypatch.setattr("gas.integrations.onnx.largest_difference", lambda *given: 1e-3)
    given = {name: torch.ones(1, 6) for name in ("states", "outputs")}
    with pytest.raises(ValueError, match=r"differs from torch by 1\.0e-03, more than 1e-05"):
        export(out, Step(table, 0), given, batch=dict.fromkeys(given, 1))
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", 3], "row must lie in 0 .. 2 for a table of NFE 3, got 3"),
        (["--nfe", 9], "has no table for NFE 9; it has NFE 3"),
        (["-m", "mnist"], "was made for another model or use"),
        (["--onnx", "a.txt"], "the name must end in .onnx"),
    ],
)
def test_bad_calls_get_one_line(tmp_path, file, words, message):
    given = ["export", "-s", file, "--onnx", tmp_path / "a.onnx", "--nfe", 3, *words]
    given += [] if "--row" in words or "-m" in words else ["-m", "digits"]
    assert message in " ".join(run(*given, code=2).stderr.split())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_it_says_what_to_install(tmp_path, model, file, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    given = ["export", "-s", file, "--onnx", tmp_path / "a.onnx", "-m", model.path, "--nfe", 3]
    assert "pip install 'gas-solver[onnx]'" in run(*given, code=2).stderr
