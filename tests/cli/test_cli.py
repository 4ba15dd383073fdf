"""The command line from end to end on the digits model, and what it says to bad input."""

import json
import math
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import gas
from gas.archives import verify_arrays
from gas.cli.app import app
from gas.cli.train import _saved_if_interrupted
from gas.display import significant
from gas.io import CHECKSUM, add_checksum, open_safetensors, read_safetensors
from gas.metrics.distances import distribution
from gas.metrics.frechet import extract
from gas.training.adversarial.r3gan import DIGITS, MNIST, R3GANDiscriminator
from gas.zoo import data
from support.commands import ForkedCommand, numbers_in, refused, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers", "short_runs", "small_digits"),
]

SMALL = ["--model", "digits"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with pairs and a solver file for NFE 2 and 3."""
    folder = tmp_path_factory.mktemp("work")
    run("pairs", *SMALL, "--seeds", 96, "--out", folder / "pairs", "--nfe", 8)
    words = [
        "--pairs",
        folder / "pairs",
        "--validation",
        32,
        "--iterations",
        6,
        "--start",
        "ipndm-3/log_snr",
        "--out",
        folder / "digits.json",
    ]
    result = run("train", *SMALL, *words, "--nfe", "2-3", "--json")
    (folder / "train.out").write_text(result.stdout)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["s4s-alt", "gs-free"])
def test_a_kind_of_solver_trains_samples_and_is_told(work, tmp_path, solver):
    words = ["--pairs", work / "pairs", "--validation", 32, "--nfe", 2, "--out", tmp_path / "s.json"]
    start = ["--start", "ipndm-2/dmn", "--iterations", 2]
    run("train", *SMALL, *words, *start, "--solver", solver)
    printed = run("inspect", tmp_path / "s.json").output
    assert "learned" in printed
    assert solver in printed
    entry = gas.load(tmp_path / "s.json").entry(2)
    # A solver that did not validate surely better is not shipped, but the classical table that it started from.
    shipped = gas.load(tmp_path / "s.json").document.training["solver"]
    assert shipped == solver
    learned = {"s4s-alt": ("S4S", True), "gs-free": ("GeneralizedSolver", False)}[solver]
    assert (entry.kind, entry.theory) in (learned, ("table", True))
    assert entry.start == "ipndm-2/dmn"
    out = tmp_path / "x.safetensors"
    run("sample", *SMALL, "--solver", tmp_path / "s.json", "--nfe", 2, "--seeds", "500:502", "--out", out)
    assert all(len(part) == 2 for part in load_file(out).values())


def test_kinds_of_solver_and_their_settings_are_checked(work, tmp_path):
    given = ["--pairs", work / "pairs", "--validation", 32, "--nfe", 2, "--out", tmp_path / "s.json"]
    words = ["train", *SMALL, *given]
    assert "did you mean 's4s'" in refused(*words, "--solver", "S4S")
    assert "gauss-newton has no relax" in refused(*words, "--relax", 0.1)
    assert "'--relax'" in refused(*words, "--relax", -0.1, "--method", "adam")
    run(*words, "--start", "ddim", "--solver", "ld3", "--method", "adam", "--relax", 0.1, "--iterations", 2)
    assert gas.load(tmp_path / "s.json").document.training["relax"] == 0.1


def test_train_reports_and_cleans_up(work):
    rows = json.loads((work / "train.out").read_text())
    assert [row["nfe"] for row in rows] == [2, 3]
    for row in rows:
        assert row["validation_loss"] <= row["best_classical_loss"]
        assert 1000 < row["training_evaluations"] < 100_000
        assert row["validation_median"] > 0
        # Jensen: a mean of logarithms.
        assert row["validation_psnr"] > 10 * math.log10(4 / row["validation_loss"])
    assert not (work / "digits.json.state").exists()
    document = gas.load(work / "digits.json").document
    assert document.teacher == {"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 8, "t_end": 1e-3}
    assert document.training["pairs"] == 64


@pytest.mark.slow
def test_train_against_a_critic(work, tmp_path):
    words = ["--pairs", work / "pairs", "--validation", 30, "--nfe", 2, "--start", "ddim/log_snr"]
    words += ["--iterations", 2, "--objective", "gas", "--gas-iterations", 4]
    run("train", *SMALL, *words, "--out", tmp_path / "gas.json")
    document = gas.load(tmp_path / "gas.json").document
    assert document.training["objective"] == "gas"
    assert (document.training["weight"], document.training["balance"]) == (None, 10.0)
    # The critic stays behind: the file holds a solver of the usual kind, so sampling costs the same.
    (entry,) = json.loads((tmp_path / "gas.json").read_text())["solvers"]
    assert entry["kind"] == "GeneralizedSolver"
    assert "critic" not in json.dumps(entry)
    assert (tmp_path / "gas.json").stat().st_size < 1.5 * (work / "digits.json").stat().st_size
    out = ["--out", tmp_path / "x.json"]
    assert "'--weight'" in refused("train", *SMALL, *words, *out, "--weight", -1)
    assert "two measures of one thing" in refused(
        "train", *SMALL, *words, *out, "--weight", 1, "--balance", 40
    )
    assert "--weight is a setting of --objective gas" in refused(
        "train", *SMALL, *words[:8], *out, "--weight", 2
    )
    assert "objective must be 'gs' or 'gas'" in refused("train", *SMALL, *words, *out, "--objective", "gan")
    assert "did you mean 'relativistic'" in refused("train", *SMALL, *words, *out, "--critic", "relativist")


def test_sample_is_gas_sample_in_every_format(work, tmp_path):
    words = ["sample", *SMALL, "--solver", work / "digits.json", "--nfe", 3, "--seeds", "100:105"]
    for suffix in (".npz", ".safetensors", ".png"):
        run(*words, "--out", tmp_path / f"s{suffix}", "--batch", 2)
    model = gas.zoo.load("digits")
    seeds = range(100, 105)
    labels = torch.tensor([s % 10 for s in seeds])
    with torch.no_grad():
        expected = gas.sample(model.bind(labels), model.noise(seeds), gas.load(work / "digits.json").table(3))
    samples = torch.from_numpy(np.load(tmp_path / "s.npz")["samples"])
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(load_file(tmp_path / "s.safetensors")["samples"], samples)
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


def test_samples_carry_a_checksum(work, tmp_path):
    words = ["sample", *SMALL, "--solver", work / "digits.json", "--nfe", 3, "--seeds", 2]
    for suffix in (".npz", ".safetensors"):
        run(*words, "--out", tmp_path / f"s{suffix}")
    verify_arrays(dict(np.load(tmp_path / "s.npz")))
    with warnings.catch_warnings(action="error"):
        tensors, _ = read_safetensors(tmp_path / "s.safetensors", warn=True)
    with open_safetensors(tmp_path / "s.safetensors") as file:
        checksum = {CHECKSUM: file.metadata()[CHECKSUM]}
    save_file({**tensors, "samples": tensors["samples"] + 1}, tmp_path / "t.safetensors", checksum)
    with pytest.raises(ValueError, match="damaged"):
        read_safetensors(tmp_path / "t.safetensors")


@pytest.mark.slow
def test_evaluate_measures_what_it_says(work):
    words = ["evaluate", *SMALL, "--solver", work / "digits.json", "--seeds", "500:548", "--teacher-nfe", 8]
    report = json.loads(run(*words, "--json", "--every").stdout)
    rows = {(row["name"], row["nfe"]): row for row in report["rows"]}
    assert {nfe for _, nfe in rows} == {2, 3, 8}
    assert {row["samples"] for row in report["rows"]} == {48}
    assert rows["unipc-3-bh2 / log_snr (teacher)", 8]["mse"] == 0
    best = [row for name, row in rows.items() if "best of all" in name[0] and name[1] == 3]
    others = [row["mse"] for name, row in rows.items() if name[1] == 3 and name[0] != "GS"]
    assert best[0]["mse"] == min(others)

    model = gas.zoo.load("digits")
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 8, model.t_end)
    pairs = gas.pairs.teach(model, teacher.table(model.schedule), range(500, 548))
    error = gas.evaluate(model, pairs, gas.load(work / "digits.json").table(3), gas.losses.l2)
    assert rows["GS", 3]["mse"] == pytest.approx(float(error.mean()), rel=1e-4)


def table_rows(shown):
    """The cells of every line of printed tables."""
    return [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines() if line.strip()]


class Hostile:
    """Touches a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_settings_that_would_fail_late_are_refused_at_once(work, tmp_path):
    words = ["train", *SMALL, "--pairs", work / "pairs", "--out", tmp_path / "s.json", "--nfe", 2]
    words += ["--validation", 32]
    cases = {
        "Invalid value for '--validation'": ["--validation", 0],
        "gauss-newton needs --loss l2": ["--loss", "l1", "--method", "gauss-newton"],
    }
    gas = ["--objective", "gas"]
    save_file(R3GANDiscriminator(**MNIST).state_dict(), tmp_path / "mnist.safetensors")
    cases["this discriminator takes x of shape"] = [
        *gas,
        "--critic-weights",
        tmp_path / "mnist.safetensors",
    ]
    save_file(R3GANDiscriminator(**{**DIGITS, "in_channels": 3}).state_dict(), tmp_path / "rgb.safetensors")
    cases["takes x of shape (B, 3, 8, 8), got (1, 1, 8, 8)"] = [
        *gas,
        "--critic-weights",
        tmp_path / "rgb.safetensors",
    ]
    cases["no R3GAN discriminator"] = [*gas, "--critic-weights", tmp_path / "other.safetensors"]
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    marker = tmp_path / "ran"
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Hostile(marker)))
    cases["refused the name 'posix.system'"] = [*gas, "--critic-weights", tmp_path / "hostile.pkl"]
    cases["--critic-steps is a setting of --objective gas"] = ["--critic-steps", 2]
    cases["'--weight'"] = [*gas, "--weight", -1]
    for problem, more in cases.items():
        assert problem in refused(*words, *more)
    assert not marker.exists()


@pytest.mark.slow
def test_a_table_for_people(work, tmp_path):
    words = [
        "evaluate",
        *SMALL,
        "--solver",
        work / "digits.json",
        "--seeds",
        "500:692",
        "--teacher-nfe",
        8,
        "--nfe",
        3,
        "--baselines",
        "ddim/log_snr",
    ]
    shown = run(*words, "--picture", tmp_path / "e.png").stdout
    assert (
        "digits: 192 samples, seeds 500 to 691" in shown
    )  # 3 a feature and more: the distances have intervals
    # What people read are the numbers that programs get.
    rows = json.loads(run(*words, "--json").stdout)["rows"]
    (gs,) = [row for row in rows if row["name"] == "GS"]
    errors, median_cells = [cells for cells in table_rows(shown) if cells[0] == "GS"]
    assert errors[1] == "3" and numbers_in(errors[2])[0] == pytest.approx(gs["mse"], rel=0.1)
    assert numbers_in(errors[3]) == pytest.approx([gs["mse_median"], *gs["mse_median_interval"]], rel=0.1)
    assert float(errors[4]) == pytest.approx(gs["psnr"], abs=0.06)
    assert float(errors[5]) == pytest.approx(gs["frechet_data"], abs=0.051)
    low, high = gs["frechet_data_interval"]
    value, *interval = numbers_in(median_cells[2])
    assert low <= value <= high
    assert interval == pytest.approx([(high - low) / 2], rel=0.05)
    assert value == pytest.approx(gs["frechet_data_corrected"], abs=0.051)
    assert float(median_cells[6]) == pytest.approx(gs["to_teacher"]["prdc"]["recall"], abs=6e-4)
    assert (tmp_path / "e.png").exists()


def test_evaluate_compares_several_files(work, tmp_path):
    path, other = work / "digits.json", json.loads((work / "digits.json").read_text())
    other["training"]["objective"] = "gas"
    other["solvers"] = [entry for entry in other["solvers"] if entry["nfe"] == 2]
    (tmp_path / "digits.json").write_text(json.dumps(add_checksum(other)))
    words = ["evaluate", *SMALL, "--seeds", "500:692", "--teacher-nfe", 8, "--baselines", "ddim/log_snr"]
    files = ["--solver", path, "--solver", tmp_path / "digits.json"]
    rows = json.loads(run(*words, *files, "--json").stdout)["rows"]
    reported = {(row["name"], row["nfe"]): row for row in rows}
    assert {key for key in reported if key[0] in ("GS", "GAS")} == {("GS", 2), ("GS", 3), ("GAS", 2)}
    assert reported["GS", 2]["to_teacher"] == reported["GAS", 2]["to_teacher"]
    shares = reported["GS", 2]["to_teacher"]["prdc"]
    assert set(shares) == {"precision", "recall", "density", "coverage"}
    low, high = reported["GS", 2]["to_teacher"]["frechet_interval"]
    assert 0 <= low <= high
    assert reported["GS", 2]["to_teacher"]["frechet"] > 0
    assert "NFE 3" in refused(*words, *files, "--nfe", 3)
    # No curve has to be GS's: a picture must not cost what was measured.
    picture = ["--nfe", 2, "--picture", tmp_path / "gas.png"]
    assert "GAS" in run(*words, "--solver", tmp_path / "digits.json", *picture).stdout
    assert (tmp_path / "gas.png").exists()
    assert "is given twice" in refused(*words, *[w for _ in range(3) for w in ("--solver", path)])


def test_a_solver_that_diverges_costs_no_row_of_another(work, tmp_path):
    path, diverging = work / "digits.json", json.loads((work / "digits.json").read_text())
    for entry in diverging["solvers"]:
        entry["outputs"] = [[1e30 * weight for weight in row] for row in entry["outputs"]]
        entry.pop("nominal", None)
        entry["kind"] = "table"
    diverging["teacher"]["note"] = "an entry that says more"
    (tmp_path / "far.json").write_text(json.dumps(add_checksum(diverging)))
    words = [
        "evaluate",
        *SMALL,
        "--seeds",
        "500:564",
        "--teacher-nfe",
        8,
        "--baselines",
        "ddim/log_snr",
        "--nfe",
        2,
    ]
    result = run(*words, "--solver", path, "--solver", tmp_path / "far.json", "--json")
    assert {row["name"].split()[0] for row in json.loads(result.stdout)["rows"]} >= {"GS", "ddim"}
    assert "warning: NFE 2: samples of GS (far) are not finite: left out" in " ".join(result.stderr.split())


def test_an_existing_file_is_replaced_only_on_request(work):
    words = ["train", *SMALL, "--pairs", work / "pairs", "--nfe", 2, "--out", work / "digits.json"]
    before = (work / "digits.json").read_bytes()
    assert "exists: name another file, or replace it with --overwrite" in refused(*words)
    assert (work / "digits.json").read_bytes() == before


def test_an_nfe_between_two_trained_ones_says_so(work, tmp_path):
    artefact = gas.load(work / "digits.json")
    model = gas.zoo.load("digits")
    tables = [artefact.table(2), gas.Classical("ipndm-2", "time_cubic", 5, model.t_end).table(model.schedule)]
    gas.save(tmp_path / "gap.json", tables, model=model)
    words = [*SMALL, "--solver", tmp_path / "gap.json", "--seeds", "50000:50004"]
    shown = run("sample", *words, "--nfe", 3, "--out", tmp_path / "s.npz", "--json")
    assert "NFE 3 is not trained: interpolated from NFE 2 and 5" in shown.stderr
    assert json.loads(shown.stdout)["interpolated_from"] == [2, 5]
    assert "interpolated from NFE 2 and 5" in run("inspect", tmp_path / "gap.json", "--nfe", 4).output
    assert "no table for NFE 6" in refused("sample", *words, "--nfe", 6, "--out", tmp_path / "s.npz")
    rows = json.loads(run("evaluate", *words, "--nfe", 3, "--baselines", "ddim/karras", "--json").stdout)[
        "rows"
    ]
    names = [row["name"] for row in rows]
    assert names[1:3] == ["GS, NFE 2 instead", "GS, interpolated from NFE 2 and 5"]


def test_a_file_of_one_nfe_is_sampled_at_it(work, tmp_path):
    gas.save(tmp_path / "one.json", gas.load(work / "digits.json").table(3), model=gas.zoo.load("digits"))
    words = ["sample", *SMALL, "--solver", tmp_path / "one.json", "--seeds", 2, "--out", tmp_path / "s.npz"]
    assert json.loads(run(*words, "--json").stdout)["nfe"] == 3


@pytest.mark.slow
def test_evaluate_against_real_images(work, tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (1008, 28, 28), dtype=np.uint8)
    head = struct.pack(">HBB3I", 0, 8, 3, *raw.shape)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(head + raw.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 1008) + bytes(1008))
    model = gas.zoo.load("mnist")
    gas.save(
        tmp_path / "ddim.json", gas.Classical("ddim", "log_snr", 1, 1e-3).table(model.schedule), model=model
    )
    words = ["--model", "mnist", "--solver", tmp_path / "ddim.json", "--seeds", "500:508", "--baselines", ""]
    words += ["--teacher-nfe", 2, "--real", tmp_path]
    report = json.loads(run("evaluate", *words, "--json").stdout)
    held, _ = data.mnist(tmp_path).test
    with torch.no_grad():
        samples = gas.sample(
            model.bind(torch.arange(500, 508) % 10),
            model.noise(range(500, 508)),
            gas.load(tmp_path / "ddim.json").table(1),
        )
    expected = distribution(extract(model.features, samples), extract(model.features, held))
    reported = report["rows"][0]["to_data"]
    assert reported["kernel"] == pytest.approx(expected.kernel, rel=1e-3)
    assert reported["frechet"] == pytest.approx(expected.frechet, rel=1e-3)
    assert report["rows"][-1]["to_data"]["frechet"] > 0  # the teacher's own distance to data is worth knowing
    assert "against real images" in run("evaluate", *words).stdout
    small = ["evaluate", *SMALL, "--solver", work / "digits.json", "--seeds", "500:508"]
    assert "--real with MNIST's IDX files needs model mnist, got digits" in refused(
        *small, "--real", tmp_path
    )
    assert "nowhere' does not exist" in refused(*small, "--real", tmp_path / "nowhere")


def test_forward_passes_are_learned_evaluated_and_sampled(tmp_path):
    guided, file = tmp_path / "pairs", tmp_path / "s.json"
    run("pairs", *SMALL, "--guidance", 2, "--seeds", 48, "--out", guided, "--nfe", 6)
    words = ["--pairs", guided, "--validation", 16, "--start", "ddim/log_snr", "--iterations", 1]
    printed = run("train", *SMALL, *words, "--nfe", 1, "--forwards", 3, "--out", file, "--json").stdout
    assert [set(row) & {"nfe", "forwards"} for row in json.loads(printed)] == [{"nfe"}, {"forwards"}]
    artefact = gas.load(file)
    assert (artefact.nfes, artefact.forwards) == ([1], [3])
    assert artefact.table(forwards=3).branches.count("unconditional") == 1
    words = ["--solver", file, "--seeds", "5000:5004"]
    rows = json.loads(run("evaluate", *SMALL, *words, "--baselines", "ddim", "--json").stdout)["rows"]
    passes = {row["name"]: row["forward_passes"] for row in rows}
    assert passes["GS"] == 2
    assert passes["GS, by forward passes"] == 3
    assert passes["unipc-3-bh2 / log_snr (teacher)"] == 12
    run("sample", *SMALL, *words, "--forwards", 3, "--out", tmp_path / "x.safetensors")
    x = load_file(tmp_path / "x.safetensors")["samples"]
    model = gas.zoo.load("digits")
    labels = torch.arange(5000, 5004) % model.classes
    expected = gas.sample(model.bind(labels, 2.0), model.noise(range(5000, 5004)), artefact.table(forwards=3))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert "unconditional" in run("inspect", file, "--forwards", 3).stdout
    shown = run("inspect", file).stdout
    assert re.search(r"NFE +forward passes", shown)
    assert re.search(r"^ *1 +2 ", shown, re.MULTILINE)  # one guided prediction
    assert re.search(r"^ +3 +BNS", shown, re.MULTILINE)


def test_one_file_serves_a_range_of_guidance_scales(tmp_path):
    folders, file = [tmp_path / "one", tmp_path / "three"], tmp_path / "s.json"
    for folder, scale in zip(folders, (1, 3), strict=True):
        run("pairs", *SMALL, "--guidance", scale, "--seeds", 24, "--out", folder, "--nfe", 4)
    words = ["--pairs", folders[0], "--pairs", folders[1], "--validation", 8, "--start", "ddim/log_snr"]
    run("train", *SMALL, *words, "--iterations", 1, "--batch", 8, "--nfe", 2, "--out", file)
    artefact = gas.load(file)
    assert artefact.document.scales == (1.0, 3.0)
    training = artefact.document.training
    assert (training["pairs"], training["validation"], training["degree"]) == (32, 16, 1)
    assert training["seeds"] == [0, 24]
    assert {"validation_loss_guidance_1", "validation_loss_guidance_3"} <= artefact.entry(2).measured.keys()
    assert re.search(r"guidance +1 to 3", run("inspect", file).stdout)
    shown = [run("inspect", file, "--nfe", 2, "--guidance", scale).stdout for scale in (1, 2.5)]
    assert shown[0] != shown[1]
    words = ["--solver", file, "--seeds", "5000:5004", "--guidance", 2.5]
    run("sample", *SMALL, *words, "--nfe", 2, "--out", tmp_path / "x.safetensors")
    model, labels = gas.zoo.load("digits"), torch.arange(5000, 5004) % 10
    denoise, noise = model.bind(labels, 2.5), model.noise(range(5000, 5004))
    expected = gas.sample(denoise, noise, artefact.at(2.5).table(2))
    x = load_file(tmp_path / "x.safetensors")["samples"]
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    printed = run("evaluate", *SMALL, *words, "--baselines", "ddim", "--json").stdout
    error = next(row["mse"] for row in json.loads(printed)["rows"] if row["name"] == "GS")
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 4, model.t_end)
    target = gas.pairs.teach(model, teacher, range(5000, 5004), guidance=2.5).target
    assert error == pytest.approx(float((x - target).square().mean()), rel=1e-4)
    assert "serves guidance 1 to 3, got 4" in refused(
        "sample", *SMALL, *words[:-1], 4, "--out", tmp_path / "y.npz"
    )


def test_folders_that_make_no_range_are_refused_before_any_training(tmp_path):
    """Their last seeds are to validate on: of folders with other seeds, others may train on them."""
    model = gas.zoo.load("digits")
    folders = {
        "one": (range(24), 1.0, 2),
        "three": (range(24), 3.0, 2),
        "fewer": (range(16), 3.0, 2),
        "later": (range(8, 32), 3.0, 2),
        "finer": (range(24), 3.0, 3),
    }
    for name, (seeds, scale, nfe) in folders.items():
        teacher = gas.Classical("ddim", "log_snr", nfe, model.t_end)
        list(gas.write_pairs(model, teacher, tmp_path / name, gas.PairsSpec(seeds, guidance=scale)))
    words = [
        "train",
        *SMALL,
        "--nfe",
        2,
        "--out",
        tmp_path / "s.json",
        "--pairs",
        tmp_path / "one",
        "--pairs",
    ]
    same = "--pairs: make every folder with the same --seeds; got 0:24, "
    assert f"{same}0:16" in refused(*words, tmp_path / "fewer")
    assert f"{same}8:32" in refused(*words, tmp_path / "later")
    assert "must differ in nothing else" in refused(*words, tmp_path / "finer")
    assert "one set each, got 1, 1" in refused(*words, tmp_path / "one")
    for given, named in (
        (["--loss", "l1"], "--loss"),
        (["--method", "paper", "--solver", "ld3"], "--method, --solver"),
        (["--forwards", 3, "--no-theory"], "--forwards, --no-theory"),
        (["--budget", 9000], "--budget"),
        (["--objective", "gas"], "--objective"),
    ):
        assert refused(*words, tmp_path / "three", *given).endswith(f"alone: leave out {named}")
    assert not (tmp_path / "s.json.state").exists()


def test_inspect_shows_what_is_in_the_file(work, tmp_path):
    assert json.loads(run("inspect", work / "digits.json", "--json").stdout)["format"] == "gas-solver"
    shown = run("inspect", work / "digits.json").stdout
    facts = {cells[0]: cells[1] for cells in table_rows(shown) if len(cells) == 2}
    assert (facts["model"], facts["shape"], facts["schedule"]) == ("digits", "1x8x8", "edm_vp")
    assert facts["teacher"] == "solver unipc-3-bh2, grid log_snr, nfe 8, t_end 0.001"
    measured = gas.load(work / "digits.json").entry(3).measured
    (line,) = [cells[-1] for cells in table_rows(shown) if cells[0] == "3"]
    numbers = dict(part.split(" ") for part in line.split(", "))
    assert {name: float(value.replace(",", "")) for name, value in numbers.items()} == pytest.approx(
        measured, rel=1e-3
    )
    assert {"validation_loss", "validation_median", "validation_psnr"} <= numbers.keys()
    table = run("inspect", work / "digits.json", "--nfe", 2, "--picture", tmp_path / "t.png").stdout
    assert "sum_j states[n, j] x_j" in table
    assert significant(float(gas.load(work / "digits.json").table(2).outputs[1, 1])) in table
    assert (tmp_path / "t.png").exists()


def test_zoo_lists_the_cards():
    cards = json.loads(run("zoo", "--json").stdout)
    assert cards["digits"]["sample_shape"] == [1, 8, 8]
    assert "digits" in run("zoo").stdout


@pytest.mark.slow
def test_demo_runs_on_digits(tmp_path, monkeypatch):
    for name, number in {"TRAINED": 64, "VALIDATED": 32, "EVALUATED": 64, "GAS_STEPS": 8}.items():
        monkeypatch.setattr(f"gas.cli.demo.{name}", number)
    result = run("demo", *SMALL, "--out", tmp_path, "--iterations", 3, "--nfe", 2)
    assert "done in" in result.stderr
    rows = {cells[0]: cells for cells in table_rows(result.stdout)}
    names = ["DPM-Solver++(3M)", "UniPC-3", "iPNDM-3", "GS", "GAS", "teacher"]
    assert [name for name in rows if name in names] == names
    assert [rows[name][1] for name in names] == ["2"] * 5 + ["20"]
    errors = {name: float(rows[name][2].split(" ± ")[0]) for name in names[:-1]}
    assert errors["GS"] < min(errors[name] for name in names[:3])
    model = gas.zoo.load("digits")
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end).table(model.schedule)
    unseen = gas.pairs.teach(model, teacher, range(50_000, 50_064))
    table = gas.load(tmp_path / "digits-2.json").table(2)
    assert errors["GS"] == pytest.approx(
        float(gas.evaluate(model, unseen, table, gas.losses.l2).mean()), rel=0.02
    )
    for name in ("samples.png", "times.png", "digits-2.json", "digits-2-gas.json"):
        assert (tmp_path / name).exists()


def test_missing_and_truncated_weights(tmp_path, work):
    words = ["--solver", work / "digits.json", "--nfe", 3, "--out", tmp_path / "s.png"]
    assert "missing" in refused("sample", "--model", tmp_path / "no.safetensors", *words)
    whole = gas.zoo.load("digits").path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    assert "cut.safetensors are damaged" in refused("sample", "--model", tmp_path / "cut.safetensors", *words)
    assert "did you mean 'digits'" in refused("sample", "--model", "digit", *words)


def test_a_flipped_byte_in_a_shard(tmp_path):
    run("pairs", *SMALL, "--seeds", 40, "--out", tmp_path / "p", "--nfe", 2)
    shard = next((tmp_path / "p").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    words = ["train", *SMALL, "--pairs", tmp_path / "p", "--validation", 8, "--out", tmp_path / "d.json"]
    assert shard.name in refused(*words)
    assert not (tmp_path / "d.json").exists()


def test_a_solver_of_another_model(tmp_path, work):
    other = json.loads((work / "digits.json").read_text())
    other["model"]["sample_shape"] = [1, 16, 16]
    other["model"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(add_checksum(other)))
    line = refused(
        "sample", *SMALL, "--solver", tmp_path / "other.json", "--nfe", 3, "--out", tmp_path / "s.png"
    )
    assert "made for another model" in line
    assert "sample shape (1, 16, 16)" in line
    assert "sha256" in line


def test_numbers_that_are_not(tmp_path, work):
    text = (work / "digits.json").read_text()
    document = json.loads(text)
    document["solvers"][0]["times"][0] = float("nan")
    (tmp_path / "nan.json").write_text(json.dumps(document))
    assert "NaN is not a number" in refused("inspect", tmp_path / "nan.json")
    document["solvers"][0]["times"][0] = 1.0
    document["solvers"][0]["nominal"] = [1.0, 0.2, 0.3]
    (tmp_path / "rising.json").write_text(json.dumps(document))
    assert "must decrease strictly" in refused("inspect", tmp_path / "rising.json")


def test_names_numbers_and_lists_out_of_range(tmp_path, work):
    sample = ["sample", *SMALL, "--solver", work / "digits.json", "--out", tmp_path / "s.png"]
    assert "no table for NFE 7; it has NFE 2, 3" in refused(*sample, "--nfe", 7)
    assert "label must be from 0 to 9" in refused(*sample, "--nfe", 3, "--label", 10)
    assert "seeds must be like" in refused(*sample, "--nfe", 3, "--seeds", "5:2")
    assert ".png, .npz, .safetensors" in refused(*sample[:-1], tmp_path / "s.gif", "--nfe", 3)
    assert "device 'tpu9' cannot be used" in refused(*sample, "--nfe", 3, "--device", "tpu9")
    pairs = ["pairs", *SMALL, "--out", tmp_path / "p"]
    assert "did you mean 'unipc-3-bh2'" in refused(*pairs, "--teacher", "unipc-3-bh")
    assert "did you mean 'log_snr'" in refused(*pairs, "--grid", "logsnr")
    assert "must decrease strictly" in refused(*pairs, "--grid", "1,0.4,0.5,0.001", "--nfe", 3)
    assert "is 3 times from 1 to 0.001" in refused(*pairs, "--grid", "1,0.001", "--nfe", 2)
    assert "nfe must be even" in refused(*pairs, "--teacher", "heun", "--nfe", 3)
    train = ["train", *SMALL, "--pairs", work / "pairs", "--out", tmp_path / "d.json"]
    assert "nfe must be like" in refused(*train, "--nfe", "6-x")
    assert "from high to low: write 3-6" in refused(*train, "--nfe", "6-3")
    assert "checkpointing must be 'none', 'auto' or a number" in refused(
        *train, "--validation", 32, "--method", "adam", "--checkpointing", "tiny"
    )
    assert "did you mean 'l2'" in refused(*train, "--loss", "L2", "--validation", 32)
    assert "--validation must be below the 96 pairs, got 96" in refused(*train, "--validation", 96)
    assert "has no manifest.json" in refused(*train[:-4], "--pairs", tmp_path, "--out", tmp_path / "d.json")
    assert "unexpected extra argument" in refused("zoo", "paint")
    unknown = refused(*train[:-1], tmp_path / "e.json", "--validation", 32, "--solver", "zzz")
    assert "unknown solver 'zzz'. Known: gs" in unknown  # nothing is like it, so that nothing is suggested


def test_a_file_that_does_not_say_its_model_is_taken_on_trust_and_says_so(work, tmp_path):
    solver_content = json.loads((work / "digits.json").read_text())
    bare = tmp_path / "bare.json"
    bare.write_text(
        json.dumps(add_checksum({"format": "gas-solver", "version": 1, "solvers": solver_content["solvers"]}))
    )
    words = ["sample", *SMALL, "--nfe", 3, "--seeds", 2, "--out", tmp_path / "x.npz", "--solver"]
    assert "does not say what model it is for: digits is taken on trust" in " ".join(
        run(*words, bare).stderr.split()
    )
    assert "trust" not in run(*words, work / "digits.json").stderr


@pytest.mark.parametrize(
    ("weight", "problem"), [(1e38, "are not finite"), (-1e308, "float32 does not hold, -1e+308")]
)
def test_a_weight_that_leads_nowhere_is_one_clear_line(work, tmp_path, weight, problem):
    changed = json.loads((work / "digits.json").read_text())
    changed["solvers"][1]["outputs"][0] = [weight]
    changed["solvers"][1].pop("nominal")
    (tmp_path / "large.json").write_text(json.dumps(add_checksum(changed)))
    words = ["sample", *SMALL, "--nfe", 3, "--seeds", 2, "--out", tmp_path / "x.npz", "--solver"]
    assert problem in refused(*words, tmp_path / "large.json")
    assert not (tmp_path / "x.npz").exists()


def test_files_and_folders_in_each_others_place_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "/file cannot be written (File exists)" in refused(
        "pairs", *SMALL, "--seeds", 4, "--out", tmp_path / "file"
    )
    assert f"'{tmp_path}' is a directory" in refused("inspect", tmp_path)
    assert "/none.json' does not exist" in refused("inspect", tmp_path / "none.json")


@pytest.mark.slow
def test_a_training_says_what_it_learns_from_and_chooses_on(work, tmp_path):
    words = ["train", *SMALL, "--pairs", work / "pairs", "--nfe", 2, "--iterations", 1, "--start", "ddim"]
    printed = run(*words, "--validation", 32, "--out", tmp_path / "a.json").stderr
    assert "64 pairs to learn from, the last 32 to choose on\n" in printed
    printed = run(*words, "--validation", 90, "--out", tmp_path / "b.json").stderr
    assert "6 pairs to learn from, the last 90 to choose on; few to learn from: make more, or say" in printed
    assert "--validation 24" in printed


def test_errors_show_their_traceback_on_request(work, tmp_path):
    words = [
        "--debug",
        "sample",
        *SMALL,
        "--solver",
        work / "digits.json",
        "--nfe",
        7,
        "--out",
        tmp_path / "s.png",
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, ValueError)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    words = ["pairs", *SMALL, "--seeds", 128, "--nfe", 2, "--out", tmp_path / "p"]
    code, stderr = ForkedCommand(*words, before=limit).ended(120)
    assert code == 2, stderr
    assert "error: " in stderr
    assert "make room" in stderr
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["manifest.json"]
    run(*words)
    assert len(gas.read_pairs(tmp_path / "p")) == 128


@pytest.mark.parametrize("finished", [True, False])
def test_an_interrupt_between_two_nfe_leaves_a_file_of_the_guidance(tmp_path, finished):
    """The first NFE may be learned, while solvers of the second are still ranked."""
    model = gas.zoo.load("digits")
    progress = gas.training.BestSoFar(model)
    for nfe in (2, 3):
        classical = gas.Classical("ddim", "log_snr", nfe, model.t_end)
        progress.results[nfe] = gas.Distilled(
            nfe=nfe,
            solver=classical.table(model.schedule),
            start=classical.spec,
            best_classical=classical,
            best_classical_loss=1.0,
            loss=1.0,
            evaluations=1,
            provenance={"guidance": 2.0, "loss": "l2"} if finished and nfe == 2 else {},
        )
    with pytest.raises(KeyboardInterrupt), _saved_if_interrupted(tmp_path / "s.json", progress, 2.0):
        raise KeyboardInterrupt
    artefact = gas.load(tmp_path / "s.json")
    assert artefact.nfes == [2, 3]
    assert artefact.document.guidance == 2.0
    assert artefact.document.loss == ("l2" if finished else None)


def test_a_judge_teaches_from_the_command_line(tmp_path, work):
    words = ["train", *SMALL, "--pairs", work / "pairs", "--judge", "classifier", "--nfe", 2, "--batch", 8]
    words += ["--iterations", 3, "--out"]
    run(*words, tmp_path / "judge.json")
    document = gas.load(tmp_path / "judge.json").document
    assert document.loss == "judge"
    assert document.training["judge"] == "classifier"
    killed, state = ForkedCommand(*words, tmp_path / "again.json"), tmp_path / "again.json.state" / "nfe-2.pt"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.ended(60)[0] == -signal.SIGKILL
    assert state.exists()
    run(*words, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "judge.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "judge.json"]


@pytest.mark.slow
def test_real_images_teach_from_the_command_line(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images)
    words = ["train", *SMALL, "--real", tmp_path / "images.npz", "--objective", "gas", "--gas-iterations", 2]
    shown = run(*words, "--nfe", 2, "--batch", 8, "--out", tmp_path / "real.json")
    assert "64 real images" in shown.output
    artefact = gas.load(tmp_path / "real.json")
    assert artefact.nfes == [2]
    assert artefact.document.training["real"] == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npz", "real.json"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_best_so_far_and_says_how_to_go_on(tmp_path, work, stop):
    words = [
        "train",
        *SMALL,
        "--pairs",
        work / "pairs",
        "--validation",
        32,
        "--nfe",
        2,
        "--out",
        tmp_path / "d.json",
    ]
    words += ["--start", "ddim/log_snr"]

    def interruptible():  # a shell's background job, and so its children, may be born deaf to SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = ForkedCommand(*words, "--iterations", 100_000, before=interruptible)
    state = tmp_path / "d.json.state" / "nfe-2.pt"
    waited = time.monotonic() + 120
    while not state.exists() and time.monotonic() < waited:
        time.sleep(0.02)
    process.send_signal(stop)
    code, stderr = process.ended(60)
    assert code == 128 + stop, stderr
    assert f"State is in {state.parent}; the same command goes on from there." in " ".join(stderr.split())
    best_so_far = gas.load(tmp_path / "d.json")
    assert best_so_far.document.training["unfinished"]
    entry = best_so_far.entry(2)
    assert best_so_far.table(2).nfe == 2
    assert entry.measured["validation_loss"] <= entry.measured["best_classical_loss"]
    assert "other settings" in refused(*words, "--iterations", 7)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "words"), [(signal.SIGTERM, []), (None, ["--max-time", "1h"])])
def test_a_shared_command_gives_its_shard_back_in_time(tmp_path, stop, words):
    words = ["pairs", *SMALL, "--seeds", 10**6, "--shard", 512, "--nfe", 9, "--out", tmp_path / "p", *words]
    process = ForkedCommand(*words, "--shared")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("p/.shard-*.lease-1")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "is at work on" in refused(*words)  # alone
    process.send_signal(stop or signal.SIGALRM)  # as after an hour
    code, stderr = process.ended(60)
    assert code == (143 if stop else 75), stderr
    reason = "interrupted" if stop else "time is up"
    assert f"{reason}. Whole shards are kept in {tmp_path / 'p'}; the same command goes on" in " ".join(
        stderr.split()
    )
    assert not list(tmp_path.glob("p/.shard-*"))


def test_help_is_light_and_shows_an_example():
    """No heavy import on the way to help: that is what keeps it quick."""
    code = (
        "import sys\nfrom gas.cli import app\nheavy = {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name in ("demo", "zoo", "plan", "pairs", "train", "sample", "evaluate", "inspect"):
        assert f"Example: gas {name}" in run(name, "--help").stdout


def test_the_package_is_light_and_names_stay_functions():
    code = "import sys, gas\nassert 'torch' not in sys.modules\n"
    code += "gas.zoo.load('digits')\nassert 'torch._dynamo' not in sys.modules\n"  # which takes a second
    code += "import gas.training.loop, gas.sampling, gas.evaluation.evaluator\n"
    code += "print(callable(gas.sample), callable(gas.fit), callable(gas.Evaluator), gas.VPLinear().beta_0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", "0.1"]
    for name in gas.__all__:
        value = getattr(gas, name)
        where = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "gas")
        assert where.startswith("gas"), name
        assert getattr(value, "__name__", name).rpartition(".")[2] == name or name in ("PAPER", "Critic")
    with pytest.raises(AttributeError, match="No gas attribute nothing"):
        _ = gas.nothing
    assert Path(gas.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize(
    ("words", "enabled"),
    [
        (["statistics", "--out", "s.npz"], False),
        (["evaluate", *SMALL, "--solver", __file__], False),
        (["evaluate", *SMALL, "--solver", __file__, "--precision", "tf32"], True),
    ],
)
def test_commands_compute_in_float32_unless_told(monkeypatch, words, enabled):
    """Torch's default rounds the factors of convolutions on CUDA to TF32."""
    told = []
    monkeypatch.setattr(gas.models, "allow_tf32", told.append)
    refused(*words)
    assert told == [enabled]
