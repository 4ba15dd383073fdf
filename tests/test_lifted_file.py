"""Files of lifted tables: the same bits back, and one clear line for a residuals' file that is missing or another."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gas
from gas.integrations.onnx import Correction, Unrolled, export
from gas.io import add_checksum
from gas.residual import MAX_NUMBERS
from support.commands import run
from support.solvers import table_named

SHAPE, NFE = (2, 4, 6), 3
SCHEDULE = gas.VPLinear()


def network(x, t):
    return torch.tanh(x + t) * 0.9


def start(dtype=torch.float32):
    return torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(0)).to(dtype)


def lifted(name="ddim", nfe=NFE, rows=(-1, 1, 2), seed=0, **options):
    generator, residuals = torch.Generator().manual_seed(seed), {}
    for row in rows:
        reads = (max(row + 1, 1), row + 1)
        residual = gas.Residual(
            "convolution", SHAPE[0], *reads, width=5, scales=[0.5] * (sum(reads) + 1), **options
        )
        with torch.no_grad():
            for parameter in residual.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        residuals[row] = residual
    table = table_named(name, nfe)
    return gas.Table(table.times, table.states, table.outputs, residuals=residuals)


def model(shape=SHAPE):
    return gas.OwnModel(network, SCHEDULE, shape, name="toy")


def weights_of(path):
    """The weights file that a solver file names."""
    return path.with_name(json.loads(path.read_text())["weights"]["file"])


@pytest.fixture
def path(tmp_path):
    gas.save(tmp_path / "family.json", lifted(), model=model())
    return tmp_path / "family.json"


@pytest.mark.parametrize("double", [False, True])
def test_the_same_bits_come_back(tmp_path, double):
    tables = [lifted(), table_named("unipc-2-bh2", 4), lifted("ipndm-3", 5, rows=(4,), seed=1, patch=2)]
    if double:
        for table in tables[::2]:
            for residual in table.residuals.values():
                residual.double()
    saved = gas.save(tmp_path / "family.json", tables, model=model())
    read = gas.load(tmp_path / "family.json")
    beside = f"family-{read.document.weights.sha256[:12]}.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["family.json", beside])
    dtype = torch.float64 if double else torch.float32
    for table in tables:
        for artefact in (saved, read):
            again = artefact.table(table.nfe)
            assert torch.equal(
                gas.sample(network, start(dtype), again), gas.sample(network, start(dtype), table)
            )
            assert list(again.residuals or ()) == list(table.residuals or ())
    assert read.table(4).residuals is None
    read.check(model())
    # Written again, under another name: the same numbers and hash.
    read.write(tmp_path / "other" / "copy.json")
    copied = gas.load(tmp_path / "other" / "copy.json")
    assert copied.document.weights.sha256 == read.document.weights.sha256
    assert copied.document.weights.file == beside.replace("family", "copy")


def test_an_interrupt_between_the_two_writes_leaves_the_solver_before(path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = gas.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(gas.solver_file, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gas.save(path, lifted(seed=9), model=model())
    assert gas.load(path).document == before.document
    gas.save(path, lifted(seed=9), model=model())
    assert gas.load(path).document.weights != before.document.weights


@pytest.mark.parametrize(
    "name", ["a:b.json", "a\\b.json", "s.safetensors", "n" * 230 + ".json", "v.1", "é.json"]
)
def test_any_name_of_a_file_has_its_residuals(tmp_path, name):
    for other in (name, "v.2"):
        gas.save(tmp_path / other, lifted(seed=len(other)), model=model())
    assert gas.load(tmp_path / name).table(NFE).residuals


def test_weights_of_another_writer_are_written_with_their_hash(path, tmp_path):
    rewritten(path, lambda tensors: None)
    gas.load(path).write(tmp_path / "again.json")
    assert gas.load(tmp_path / "again.json").table(NFE).residuals


@pytest.mark.parametrize("change", [lambda r: r.half(), lambda r: r.biases[0].data.fill_(math.nan)])
def test_numbers_that_no_file_holds_are_not_written(tmp_path, change):
    table = lifted()
    change(next(iter(table.residuals.values())))
    with pytest.raises(gas.UserError, match="the tensor 'nfe-"):
        gas.save(tmp_path / "s.json", table)
    assert not list(tmp_path.iterdir())


def test_tables_of_branches_have_residuals_of_their_own(tmp_path):
    guided = table_named("ddim", 1).guided(2.0)
    residuals = {1: lifted(rows=(1,), seed=4).residuals[1]}
    branched = gas.Table(guided.times, guided.states, guided.outputs, guided.branches, residuals)
    gas.save(tmp_path / "s.json", [lifted("ddim", 2, rows=(1,)), branched])
    read = gas.load(tmp_path / "s.json")
    for table, again in ((lifted("ddim", 2, rows=(1,)), read.table(2)), (branched, read.table(forwards=2))):
        expected = table.residuals[1].state_dict()
        assert all(torch.equal(x, expected[name]) for name, x in again.residuals[1].state_dict().items())


def test_files_without_residuals_say_nothing_of_them(tmp_path):
    gas.save(tmp_path / "plain.json", table_named("ddim", NFE))
    assert {p.name for p in tmp_path.iterdir()} == {"plain.json"}
    assert not {"weights", "residuals"} & set((tmp_path / "plain.json").read_text().replace('"', " ").split())


def test_residuals_of_other_samples_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(gas.UserError, match=r"takes states \(B, 2, ..\) with 2 sizes, got \(1, 3, 4, 6\)"):
        gas.save(tmp_path / "s.json", lifted(), model=model((3, 4, 6)))
    assert not list(tmp_path.iterdir())


def rewritten(path, change):
    """Change the tensors, and have the JSON expect the changed file."""
    import hashlib

    weights = weights_of(path)
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    content = json.loads(path.read_text())
    data = weights.read_bytes()
    content["weights"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(add_checksum(content)))


def of_content(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(add_checksum(content)))


def flip(path):
    weights = weights_of(path)
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)


def too_large(content):
    content["solvers"][0]["residuals"][0]["config"]["width"] = 500


FAULTS = {
    "missing": (lambda p: weights_of(p).unlink(), "needs family-[0-9a-f]{12}.safetensors beside it"),
    "one bit": (flip, "is another file than was written with it"),
    "cut": (
        lambda p: shutil.copy(p, weights_of(p)),
        "is another file than was written with it",
    ),
    "other name": (
        lambda p: of_content(p, lambda c: c["weights"].update(file="other.safetensors")),
        "needs other.safetensors beside it",
    ),
    "path": (
        lambda p: of_content(p, lambda c: c["weights"].update(file="../family.safetensors")),
        "weights.file: String should match pattern",
    ),
    "absolute": (
        lambda p: of_content(p, lambda c: c["weights"].update(file="/tmp/family.safetensors")),
        "weights.file: String should match pattern",
    ),
    "pickle": (
        lambda p: of_content(p, lambda c: c["weights"].update(file="family.pt")),
        "weights.file: String should match pattern",
    ),
    "too many bytes": (
        lambda p: of_content(p, lambda c: c["weights"].update(bytes=1 << 40)),
        "weights.bytes: Input should be less than or equal to",
    ),
    "no weights": (
        lambda p: of_content(p, lambda c: c.pop("weights")),
        "residuals, at most 256, and weights need each other, got 3 residuals",
    ),
    "no residuals": (
        lambda p: of_content(p, lambda c: c["solvers"][0].pop("residuals")),
        "weights need each other, got 0 residuals",
    ),
    "one residual less": (
        lambda p: of_content(p, lambda c: c["solvers"][0]["residuals"].pop()),
        "the tensor 'nfe-3.row-2.biases.0' of torch.float32 is no residual's",
    ),
    "row twice": (
        lambda p: of_content(
            p, lambda c: c["solvers"][0]["residuals"].append(c["solvers"][0]["residuals"][0])
        ),
        "a row of NFE 3 may have one residual",
    ),
    "row outside": (
        lambda p: of_content(p, lambda c: c["solvers"][0]["residuals"][2].update(row=3)),
        "no residual's",
    ),
    "many numbers": (lambda p: of_content(p, too_large), f"a residual may have {MAX_NUMBERS:,} numbers"),
    "unknown form": (
        lambda p: of_content(p, lambda c: c["solvers"][0]["residuals"][0]["config"].update(form="dense")),
        "form must be 'convolution' or 'token'",
    ),
    "unknown setting": (
        lambda p: of_content(p, lambda c: c["solvers"][0]["residuals"][0]["config"].update(bias="no")),
        "unexpected keyword",
    ),
    "another width": (
        lambda p: of_content(p, lambda c: c["solvers"][0]["residuals"][0]["config"].update(width=6)),
        r"has shape \(5,\), its config says \(6,\)",
    ),
    "unknown field": (
        lambda p: of_content(p, lambda c: c["weights"].update(url="http://x")),
        "weights.url: Extra inputs are not permitted",
    ),
    "a tensor more": (
        lambda p: rewritten(p, lambda t: t.update(extra=torch.ones(3))),
        "the tensor 'extra' of torch.float32 is no residual's",
    ),
    "a tensor of a residual more": (
        lambda p: rewritten(p, lambda t: t.update({"nfe-3.row-1.extra": torch.ones(3)})),
        r"'extra' has shape \(3,\), its config says None",
    ),
    "a tensor less": (
        lambda p: rewritten(p, lambda t: t.pop("nfe-3.row-1.scales")),
        "'scales' has shape None",
    ),
    "integers": (
        lambda p: rewritten(p, lambda t: t.update({"nfe-3.row-1.scales": t["nfe-3.row-1.scales"].int()})),
        "of torch.int32 is no residual's",
    ),
    "NaN": (
        lambda p: rewritten(p, lambda t: t["nfe-3.row-1.weights.0"].fill_(torch.nan)),
        "'nfe-3.row-1.weights.0' has numbers out of range",
    ),
    "a scale of zero": (
        lambda p: rewritten(p, lambda t: t["nfe-3.row-1.scales"].zero_()),
        "'nfe-3.row-1.scales' has numbers out of range",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_as_written_is_refused_in_one_line(path, fault):
    damage, message = FAULTS[fault]
    damage(path)
    with pytest.raises(gas.UserError, match=message) as caught:
        gas.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_a_write_that_fails_leaves_the_solver_before_it(path, monkeypatch):
    """The weights are written first: a disk that is full then leaves both files as they were."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("gas.io.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            gas.save(path, lifted(seed=1), model=model())
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_inspect_prints_residuals_with_size_and_cost(path):
    warning = run("inspect", path, "--nfe", NFE).stderr
    assert "a residual network corrects x_0, x_2, x_3: these numbers alone" in " ".join(warning.split())
    text = run("inspect", path).stdout
    assert "Residuals (family-" in text
    for row, residual in lifted().residuals.items():
        line = next(line for line in text.splitlines() if f"x_{row + 1} " in line and "convolution" in line)
        numbers, multiply_adds = residual.cost(SHAPE)
        assert f"{numbers:,}" in line
        assert f"{multiply_adds:,}" in line


def test_the_numpy_reader_runs_residuals_from_onnx(path, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    run("export", "--solver", path, "--residual", "-1", "--onnx", tmp_path / "-1.onnx")
    table = gas.load(path).table(NFE)
    for row in (1, 2):
        history = torch.randn(2 * (row + 1), 2, *SHAPE)
        export(
            tmp_path / f"{row}.onnx",
            Correction(table.residuals[row]),
            {"history": history},
            batch={"history": 1},
        )
    sessions = {row: onnxruntime.InferenceSession(tmp_path / f"{row}.onnx") for row in (-1, 1, 2)}

    def correct(row, history):
        return sessions[row].run(None, {"history": np.stack(history).astype(np.float32)})[0]

    file = Path(__file__).parents[1] / "examples" / "numpy_sampler.py"
    spec = importlib.util.spec_from_file_location("numpy_sampler", file)
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)

    def denoise(x, t):
        return network(torch.from_numpy(x), t).numpy()

    entry = json.loads(path.read_text())["solvers"][0]
    samples = reader.sample(denoise, start().numpy(), entry, correct)
    torch.testing.assert_close(
        torch.from_numpy(samples), gas.sample(network, start(), table), rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match="has residuals: pass correct"):
        reader.sample(denoise, start().numpy(), entry)


def test_the_whole_sampler_as_onnx_has_the_residuals(path, tmp_path):
    pytest.importorskip("onnxruntime")
    layer = torch.nn.Conv2d(SHAPE[0], SHAPE[0], 1)

    def denoise(x, t):
        return torch.tanh(layer(x) + t)

    module = Unrolled(denoise, layer, gas.load(path).table(NFE))
    assert torch.equal(module(start()), gas.sample(denoise, start(), gas.load(path).table(NFE)))
    assert export(tmp_path / "whole.onnx", module, {"x": start()}, batch={"x": 0}) < 1e-4
