"""``gas paper convert``: every published layout into ours, everything hostile refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gas
from gas.pairs.shards import MANIFEST
from gas.paper import edm
from gas.paper.backbone import load_published
from gas.paper.student import read_student
from gas.paper.teacher_set import PROMPTS, import_pairs, read_teacher_set
from gas.unpickle.allowed import FileTensor
from gas.unpickle.loading import read_pickle
from support import commands
from support.commands import run
from support.covering import covering, thinned
from support.hostile_pickles import hostile
from support.published import GOLDEN, drawn, pickled, student, teachers, write_edm

EDM: dict[str, Any] = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8}
EDM |= {"channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]}


def convert(*words: object) -> Any:
    return run("paper", "convert", *words)


def refused(*words: object) -> str:
    """The one line that a bad file is answered with."""
    return commands.refused("paper", "convert", *words)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = drawn(edm.EDMNetwork("EDMPrecond", **EDM))
    return write_edm(tmp_path_factory.mktemp("edm") / "edm.pkl", "EDMPrecond", net, EDM)


# ---------------------------------------------------------------- weights


def test_an_edm_network(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "edm.safetensors"
    report = json.loads(convert(network, out, "--json").stdout)
    assert (report["kind"], report["out"]) == ("edm", str(out))
    assert load_published(out).fingerprint() == load_published(network).fingerprint()
    assert report["numbers"] == sum(value.numel() for value in edm.read(network).state_dict().values())


def test_a_damaged_network_leaves_nothing(network: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pkl").write_bytes(network.read_bytes()[:-100])
    assert "cut short, damaged" in refused(tmp_path / "cut.pkl", tmp_path / "edm.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "cut.pkl"]


# ---------------------------------------------------------------- students


@pytest.mark.parametrize(
    "entry", [e for e in GOLDEN if e["theory"]], ids=lambda e: f"{e['nfe']}-{e['order']}"
)
def test_a_student_is_the_golden_solver(entry: dict[str, Any], tmp_path: Path) -> None:
    torch.save(student(entry), tmp_path / "student.pt")
    schedule = gas.VPLinear(0.1, 20.0)
    solver = read_student(tmp_path / "student.pt", schedule, entry["t_eps"])
    torch.testing.assert_close(
        solver.t.detach(), torch.tensor(entry["t"], dtype=torch.float64), rtol=0, atol=1e-12
    )
    if entry["schedule"]["kind"] == "vp_linear":
        expected = torch.tensor(entry["unrolled"], dtype=torch.float64)
        assert (solver.nominal().unrolled().detach() - expected).abs().max() < 1e-9 * expected.abs().max()
    out = tmp_path / "solver.json"
    report = json.loads(
        convert(tmp_path / "student.pt", out, "--schedule", "vp", "--t-end", entry["t_eps"], "--json").stdout
    )
    assert (report["nfe"], report["order"]) == (entry["nfe"], entry["order"])
    read = gas.load(out)
    assert torch.equal(read.table(entry["nfe"]).outputs, solver().detach().outputs)
    assert read.document.training["imported"] == "student.pt" and read.document.t_end == entry["t_eps"]


def test_a_student_without_theory_is_read_as_s4s(tmp_path: Path) -> None:
    """The same names and lengths as GS: told apart by the numbers, or by whoever knows better."""
    (entry,) = [e for e in GOLDEN if not e["theory"]]
    torch.save(student(entry), tmp_path / "student.pt")
    words = ["--schedule", "vp", "--t-end", entry["t_eps"]]
    result = convert(tmp_path / "student.pt", tmp_path / "s.json", *words, "--json")
    assert json.loads(result.stdout)["form"] == "s4s" and "was trained without theory" in result.stderr
    solver = read_student(tmp_path / "student.pt", gas.VPLinear(0.1, 20.0), entry["t_eps"])
    assert isinstance(solver, gas.S4S) and entry["schedule"]["kind"] == "vp_linear"
    expected = torch.tensor(entry["unrolled"], dtype=torch.float64)
    assert (solver.nominal().unrolled().detach() - expected).abs().max() < 1e-9 * expected.abs().max()
    read = gas.load(tmp_path / "s.json")
    assert read.document.training["solver"] == "s4s-pc"
    assert torch.equal(read.table(entry["nfe"]).outputs, solver().detach().outputs)
    convert(tmp_path / "student.pt", tmp_path / "gs.json", *words, "--form", "gs")
    assert gas.load(tmp_path / "gs.json").document.training["solver"] == "gs"
    shorter = {**entry, "c_diff": entry["c_diff"][:2], "a_diff": entry["a_diff"][:2]}
    torch.save(student(shorter), tmp_path / "two.pt")
    two = read_student(tmp_path / "two.pt", gas.VPLinear(0.1, 20.0), entry["t_eps"], form="s4s")
    assert isinstance(two, gas.S4S) and not bool(two.predictor[2:].any())


def test_a_student_that_could_be_either_is_asked_about(tmp_path: Path) -> None:
    rows = [torch.tensor([1.0, 0.1]), torch.zeros(2), torch.zeros(2), torch.zeros(2)]
    torch.save({"ema": {"shadow_params": [torch.zeros(1), torch.zeros(2), *rows]}}, tmp_path / "s.pt")
    line = refused(tmp_path / "s.pt", tmp_path / "s.json", "--schedule", "edm")
    assert "add up to 1.00, 0.10 in its steps" in line and "say --form gs or --form s4s" in line
    line = refused(tmp_path / "s.pt", tmp_path / "s.json", "--schedule", "edm", "--form", "ld3")
    assert "unknown form of a student 'ld3'" in line
    convert(tmp_path / "s.pt", tmp_path / "s.json", "--schedule", "edm", "--form", "s4s")


def test_a_student_for_a_model(network: Path, tmp_path: Path) -> None:
    torch.save(student(GOLDEN[0]), tmp_path / "student.pt")
    convert(tmp_path / "student.pt", tmp_path / "s.json", "--model", network)
    gas.load(tmp_path / "s.json").check(load_published(network))
    assert "give --model, or --schedule alone" in refused(tmp_path / "student.pt", tmp_path / "t.json")
    line = refused(tmp_path / "student.pt", tmp_path / "t.json", "--schedule", "edn")
    assert "unknown schedule 'edn': did you mean 'edm'?" in line


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([torch.zeros(3), torch.zeros(4)], "got 2 tensors of [3, 4] numbers"),
        ([torch.zeros(4)] * 4, "got 4 tensors of [4, 4, 4, 4] numbers"),
        ([torch.zeros(1), *[torch.zeros(2)] * 7], "3 corrections a step are more than the 2 steps can use"),
        ([1.0, 2.0], "ema.shadow_params should be tensors"),
    ],
)
def test_students_of_another_form(parameters: list[Any], words: str, tmp_path: Path) -> None:
    torch.save({"ema": {"shadow_params": parameters}}, tmp_path / "student.pt")
    assert words in refused(tmp_path / "student.pt", tmp_path / "s.json", "--schedule", "edm")


# ---------------------------------------------------------------- teacher sets


@covering(form=["pickle 2", "pickle 4", "pickle 5", "torch.save"], count=[7, 300])
def test_a_teacher_set(form: str, count: int, network: Path, tmp_path: Path) -> None:
    data, file = teachers(count), tmp_path / "dataset.pkl"
    if form == "torch.save":
        torch.save(dict(data), file)
    else:
        pickled(data, file, int(form.split()[1]))
    report = json.loads(convert(file, tmp_path / "pairs", "--model", network, "--json").stdout)
    assert (report["pairs"], report["shape"]) == (count, [3, 8, 8])
    pairs = gas.read_pairs(tmp_path / "pairs", model=load_published(network))
    assert torch.equal(pairs.noise, data["noise"]) and torch.equal(pairs.target, data["images"])
    assert pairs.seeds.tolist() == list(range(count)) and pairs.labels is None
    assert pairs.teacher["imported"] == "dataset.pkl"


def test_large_tensors_of_a_pickle_stay_on_disk(tmp_path: Path) -> None:
    data = teachers(300)
    data["view"] = data["noise"][5:250]
    read = read_pickle(pickled(data, tmp_path / "dataset.pkl"), lazy=True)
    assert all(isinstance(read[name], FileTensor) for name in ("noise", "images", "view"))
    assert torch.equal(read["noise"][17:29], data["noise"][17:29])
    assert torch.equal(read["view"][:], data["view"])
    assert read["noise"][9:9].shape == (0, 3, 8, 8)
    (tmp_path / "dataset.pkl").unlink()
    os.mkfifo(tmp_path / "dataset.pkl")
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        read["noise"][17:29]


def test_latents_classes_and_prompts(tmp_path: Path) -> None:
    latents, labels = torch.randn(7, 4, 4, 4), torch.tensor([2, 0, 1, 1, 2, 2, 0])
    given = {"noise": torch.randn(7, 4, 4, 4), "latents": latents, "images": torch.zeros(7, 3, 32, 32)}
    converted = read_teacher_set(pickled(teachers(**given, condition=labels), tmp_path / "a.pkl"))
    assert [p.done for p in import_pairs(converted, tmp_path / "a", shard=3, guidance=2.0)] == [0, 3, 6, 7]
    pairs = gas.read_pairs(tmp_path / "a")
    assert torch.equal(pairs.target, latents) and torch.equal(pairs.labels, labels)
    assert pairs.seeds[0] == 0 and pairs.guidance == 2.0
    prompts = [f"a photograph of {i}" for i in range(7)]
    converted = read_teacher_set(pickled(teachers(**given, condition=prompts), tmp_path / "b.pkl"))
    list(import_pairs(converted, tmp_path / "b"))
    assert json.loads((tmp_path / "b" / PROMPTS).read_text()) == prompts
    assert gas.read_pairs(tmp_path / "b").labels is None


def test_an_import_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    converted = read_teacher_set(pickled(teachers(10), tmp_path / "dataset.pkl"))
    running = import_pairs(converted, tmp_path / "pairs", shard=3)
    next(running), next(running), next(running)
    running.close()
    with pytest.raises(ValueError, match="is unfinished, 6 of 10 pairs"):
        gas.read_pairs(tmp_path / "pairs")
    assert [p.done for p in import_pairs(converted, tmp_path / "pairs", shard=3)] == [6, 9, 10]
    assert len(gas.read_pairs(tmp_path / "pairs")) == 10
    manifest = json.loads((tmp_path / "pairs" / MANIFEST).read_text())
    manifest["recipe"]["stored"] = []
    (tmp_path / "pairs" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="damaged or has unknown fields"):
        gas.read_pairs(tmp_path / "pairs")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": [None] * 7}, "noise should be a float tensor (S, *), got list"),
        ({"images": torch.zeros(7, 3, 8, 8, dtype=torch.uint8)}, "target should be a float tensor"),
        ({"images": torch.zeros(6, 3, 8, 8)}, "should have one shape"),
        (
            {"condition": torch.zeros(3, dtype=torch.long)},
            "condition should be 7 classes, got torch.int64 (3,)",
        ),
        ({"condition": ["a"]}, "condition should be 7 prompts, got 1"),
        ({"condition": 3}, "condition should be classes, prompts or None, got int"),
        ({"images": torch.full((7, 3, 8, 8), float("nan"))}, "is not finite for seed 0"),
    ],
)
def test_teacher_sets_of_another_form(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = pickled(teachers(**changes), tmp_path / "dataset.pkl")
    line = refused(file, tmp_path / "pairs")
    assert words in line and "dataset.pkl" in line


def test_a_teacher_set_of_another_model(network: Path, tmp_path: Path) -> None:
    file = pickled(teachers(shape=(3, 4, 4)), tmp_path / "dataset.pkl")
    assert "has samples of shape [3, 4, 4], edm of [3, 8, 8]" in refused(
        file, tmp_path / "p", "--model", network
    )


_PEAK = """
import sys
from gas.paper.teacher_set import import_pairs, read_teacher_set
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
def run(name): list(import_pairs(read_teacher_set(name), name + ".pairs"))
run(sys.argv[1])  # what the first use of the libraries costs is not what is measured
before = peak()
run(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a process's own peak is read from Linux's /proc"
)
def test_a_teacher_set_is_never_whole_in_memory(tmp_path: Path) -> None:
    """More pairs in the same memory; benchmarks/import_memory.py has figures of larger files."""
    first = pickled(teachers(600, (3, 32, 32)), tmp_path / "first.pkl")
    second = pickled(teachers(5000, (3, 32, 32)), tmp_path / "second.pkl")
    size = second.stat().st_size
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", _PEAK, str(first), str(second)]
    grown = int(subprocess.run(words, check=True, capture_output=True, env=environment).stdout)
    assert size > 120e6 and grown < size / 3


# ---------------------------------------------------------------- everything else

CASES = sorted(hostile("touch mark"))


@pytest.mark.parametrize("case", thinned(CASES, 5))  # the reader alone is given all of them
def test_hostile_files_run_nothing(case: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content, word = hostile(f"touch {mark}")[case]
    (tmp_path / "weights.pkl").write_bytes(content)
    line = refused(tmp_path / "weights.pkl", tmp_path / "out.safetensors")
    assert not mark.exists() and word in line and "weights.pkl: refused" in line
    assert not (tmp_path / "out.safetensors").exists()


def test_the_corpus_has_every_kind() -> None:
    for protocol in range(6):
        assert f"os.system, protocol {protocol}" in CASES
    for kind in (
        "persistent id",
        "a call within a list",
        "persistent object with a call in its state",
        "NEWOBJ",
    ):
        assert kind in CASES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": torch.zeros(2)}, "holds ['weights']: no file that is known (an EDM network; an R3GAN"),
        ([1, 2], "holds list: no file that is known"),
        ({"ema": nn.Linear(2, 2)}, "holds no EDM network that is known"),
        ({"D": nn.Linear(2, 2)}, "holds no R3GAN discriminator"),
    ],
)
def test_files_of_something_else(content: Any, words: str, tmp_path: Path) -> None:
    file = pickled(content, tmp_path / "x.pkl")
    assert words in refused(file, tmp_path / "out.safetensors")


def test_words_about_files(network: Path, tmp_path: Path) -> None:
    assert "should end in .safetensors, got" in refused(network, tmp_path / "out.json")
    (tmp_path / "a.safetensors").touch()
    assert "is safetensors already" in refused(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "none.pkl" in refused(tmp_path / "none.pkl", tmp_path / "b.safetensors")
    file = pickled(teachers(), tmp_path / "d.pkl")
    assert "be a folder, without a suffix" in refused(file, tmp_path / "d.safetensors")


def test_help_shows_an_example() -> None:
    assert "gas paper convert edm-cifar10-32x32-uncond-vp.pkl" in convert("--help").output
