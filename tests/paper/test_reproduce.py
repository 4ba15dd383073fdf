"""gas reproduce: the paper's figures, what was measured of them, and commands that are really run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import gas
from gas.cli.app import app
from gas.features.extractor import extractor_by_name
from gas.features.real import RealImages
from gas.metrics.distances import distribution
from gas.paper.backbone import open_backbone
from gas.paper.presets import PRESETS
from gas.paper.tables import TABLES
from support import inception, standins
from support.commands import refused, run

METHOD = {  # method.md, section 6, once more: teacher, and the last figure of GAS
    "table2a": (2.03, 2.17), "table2b": (2.60, 2.66), "table2c": (2.16, 2.31),
    "table2d": (3.06, 3.36), "table2e": (4.10, 4.17), "table2f": (11.48, 11.36),
}  # fmt: skip


def evaluated(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """A file as gas evaluate writes it."""
    told = {"frechet_data": None, "to_data": None, "samples": 50_000}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model": "cifar10", "rows": [{**told, **row} for row in rows], **more}))


def cells(table: str, results: Path, *words: object) -> dict[tuple[str, int], dict[str, Any]]:
    told = json.loads(run("reproduce", table, "--results", results, "--json", *words).stdout)
    return {(row["solver"], row["nfe"]): row for row in told["cells"]}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_of_presets_and_solvers_that_exist(name: str, tmp_path: Path) -> None:
    """Commands are real: a dry run of the training of every solver says what it would do."""
    table, seen = TABLES[name], set()
    if name in METHOD:
        teacher, last = METHOD[name]
        assert [c.value for c in table.cells if c.solver == "teacher"][-1] == teacher
        assert [c.value for c in table.cells if c.solver == "GAS"][-1] == last
    for row in json.loads(run("reproduce", name, "--results", tmp_path, "--json").stdout)["cells"]:
        assert row["ours"] is None and row["state"].startswith("missing; needs ")
        train, evaluate = (shlex.split(part) for part in row["command"].split(" && "))
        if row["solver"] not in seen:
            told = run(*train[1:], "--dry-run").stderr
            assert f"then {evaluate[evaluate.index('--solver') + 1]}" in told.replace("\n", " ")
        seen.add(row["solver"])


@pytest.mark.parametrize("measure", ["", "--features dinov2 --weights w --reference r.npz"])
@pytest.mark.parametrize("name", TABLES)
def test_a_printed_command_measures_what_its_cell_shows(name: str, measure: str, tmp_path: Path) -> None:
    """Parsed as the command line parses it, each command has the features and the data that its figure needs."""
    words = ["--preset-weights", tmp_path / "w", *(["--measure", measure] if measure else [])]
    told = json.loads(run("reproduce", name, "--results", tmp_path, "--json", *words).stdout)["cells"]
    commands = typer.main.get_command(app).commands
    for row in told:
        train, rest = row["command"].split(" && ")
        evaluate, _, _ = rest.partition(" > ")
        for text, parsed in ((train, {}), (evaluate, {})):
            _, command, *options = shlex.split(text)
            parsed |= commands[command].make_context(command, options, resilient_parsing=True).params
        if measure:
            assert (parsed["features"], parsed["reference"], parsed["real"]) == (
                "dinov2",
                Path("r.npz"),
                None,
            )
            continue
        assert parsed["features"] == "inception"
        assert parsed["weights"] == tmp_path / "w" / "pt_inception-2015-12-05-6726825d.pth"
        assert parsed["reference"].parent == tmp_path / "w" and parsed["reference"].suffix == ".npz"
        if row["metric"] != "FID":
            assert parsed["real"] == parsed["reference"] and parsed["real"].name.startswith("VIRTUAL_")
        # What it needs and is not there is said, and told by gas doctor with where to get it.
        missing = row["state"].removeprefix("missing; needs ").split(", ")
        assert {parsed["weights"].name, parsed["reference"].name} <= set(missing)


def test_results_stand_beside_the_papers(tmp_path: Path) -> None:
    rows = [
        {"name": "dpmpp-3m / log_snr", "nfe": 4, "frechet_data": 46.5},
        {"name": "unipc-3-bh1 / log_snr", "nfe": 4, "frechet_data": 44.0},
        {"name": "GS", "nfe": 4, "frechet_data": 4.5},
        {"name": "unipc-3-bh1 / log_snr (teacher)", "nfe": 20, "frechet_data": 2.05},
    ]
    evaluated(tmp_path / "a.json", rows, preset="cifar10", features="inception")
    evaluated(tmp_path / "b.json", [{"name": "GAS", "nfe": 4, "frechet_data": 3.0}], features="model")
    fewer = {"name": "GS", "nfe": 6, "frechet_data": 2.5, "samples": 1000}
    evaluated(
        tmp_path / "c.json",
        [fewer, {"name": "GS, interpolated from NFE 4 and 8", "nfe": 8}],
        features="inception",
    )
    (tmp_path / "other.json").write_text('{"format": "gas-solver"}')
    found = cells("table2a", tmp_path)
    assert found["GS", 4]["ours"] == 4.5 and found["GS", 4]["difference"] == pytest.approx(0.09)
    assert found["DPM++(3M)", 4]["ours"] == 46.5 and found["UniPC", 4]["ours"] == 44.0
    assert found["teacher", None]["ours"] == 2.05
    assert (
        found["GAS", 4]["ours"] is None and "no FID in it (--features inception" in found["GAS", 4]["state"]
    )
    assert "1,000 samples, the paper 50,000" in found["GS", 6]["state"] and found["GS", 8]["ours"] is None
    assert found["GAS", 6]["state"] == (
        "missing; needs edm-cifar10-32x32-uncond-vp.pkl, R3GAN-CIFAR10.pkl, vgg16-397923af.pth, lpips-vgg.pth, "
        "pt_inception-2015-12-05-6726825d.pth, cifar10-32x32.npz"
    )
    text = run("reproduce", "table2a", "--results", tmp_path, "--markdown", tmp_path / "t.md").stdout
    assert "GS 4 FID 4.41 4.50 +0.09" in " ".join(text.split())
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert f"| GS | 4 | FID | 4.41 | 4.50 | +0.09 | {tmp_path}/a.json: 50,000 samples |" in lines
    # A command makes a column of classical solvers, and the teacher, with GS: what is left are three more and GAS.
    commands = [line for line in lines if line.startswith("gas train --preset cifar10")]
    assert len(commands) == len(set(commands)) == 4 * 4
    assert "# DPM++(3M) 10, UniPC 10, iPNDM 10, GS 10, teacher" in lines
    assert commands[0] in text and f"mkdir -p {tmp_path}" in text


def test_results_of_other_settings_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"name": "GS", "nfe": 4, "frechet_data": 5.0}
    evaluated(Path("a.json"), [row], preset="ffhq", features="inception", settings={"batch": "8"})
    assert cells("theory", tmp_path)["GS", 4]["ours"] is None
    assert cells("theory", tmp_path, "--set", "batch=8")["GS", 4]["ours"] == 5.0
    assert cells("theory", tmp_path, "--set", "batch=9")["GS", 4]["ours"] is None
    free = {**row, "name": "GS without theory"}  # whose setting the row's name says
    evaluated(Path("b.json"), [free], preset="ffhq", features="inception", settings={"solver": "gs-free"})
    assert cells("theory", tmp_path)["GS without theory", 4]["ours"] == 5.0

    def files(*words: object) -> tuple[str, str]:
        train, evaluate = cells("theory", Path("r"), *words)["GS", 4]["command"].split(" && ")
        return shlex.split(train)[-1], shlex.split(evaluate)[-1]

    usual = ("runs/ffhq/gs-4.json", "r/ffhq-gs-4.json")
    assert files() == files("--set", "batch=24") == usual  # the published one
    eight, nine = files("--set", "batch=8"), files("--set", "batch=9")
    assert files("--set", "batch=9", "--set", "batch=8") == eight and len({*eight, *nine, *usual}) == 6
    seeds = files("--set", "evaluation_seeds=5,9")
    assert seeds[0] == usual[0] and seeds[1] != usual[1]  # one solver, measured on others

    schedule = gas.EDMasVP(1e-4, 0.002, 80.0)
    table = gas.Classical("ddim", "log_snr", 4, 1e-4).table(schedule)
    told = {**PRESETS["ffhq"].changed(["batch=8"]).told(), "objective": "gs"}
    Path("runs/ffhq").mkdir(parents=True)
    gas.save("runs/ffhq/gs-4.json", table, training=told)
    monkeypatch.setattr("gas.cli.paper_line.Line.missing", lambda self: [])
    line = refused("reproduce", "theory", "--results", "r", "--run")
    assert (
        "runs/ffhq/gs-4.json was trained with batch=8, this cell needs batch=24: move that file away" in line
    )


def test_rows_of_one_name_are_not_taken_for_another(tmp_path: Path) -> None:
    """GAS with the classic loss, and GAS of another setup, are called GAS in their files."""
    row = {"name": "GAS", "nfe": 4, "frechet_data": 6.0}
    classic = {**row, "name": "GAS, classic"}
    evaluated(tmp_path / "any.json", [classic], preset="imagenet", features="inception")
    found = cells("table6", tmp_path)
    assert found["GAS, classic", 4]["ours"] == 6.0 and found["GAS", 4]["ours"] is None
    evaluated(tmp_path / "afhqv2-gas-4.json", [row], preset="afhqv2", features="inception")
    found = cells("transfer", tmp_path)
    assert found["GAS", 4]["ours"] == 6.0 and found["GAS of FFHQ", 4]["ours"] is None


def test_recall_and_cells_of_gas_compare(tmp_path: Path) -> None:
    to_data = {"prdc": {"precision": 0.5, "recall": 0.7, "density": 1.0, "coverage": 0.9}}
    comparison = {"frechet_data": 5.0, "to_data": to_data, "samples": 50_000, "name": "GAS", "nfe": 4}
    cell = {"spec": "gas", "label": "GAS", "family": "learned", "nfe": 4, "comparison": comparison}
    told = {
        "format": "gas-comparison-cell",
        "model": "imagenet",
        "cell": cell,
        "measured": {"features": "inception"},
    }
    (tmp_path / "gas-4.json").write_text(json.dumps(told))
    (tmp_path / "gas-5.json").write_text(json.dumps({**told, "cell": {**cell, "nfe": 5, "comparison": None}}))
    rows = json.loads(run("reproduce", "coverage", "--results", tmp_path, "--json").stdout)["cells"]
    assert [row["ours"] for row in rows] == [None, 0.7, None, 0.9]


def test_bad_input(tmp_path: Path) -> None:
    assert "unknown table 'table2x': did you mean 'table2" in refused("reproduce", "table2x")
    assert "table2a" in run("reproduce").stdout
    (tmp_path / "cut.json").write_text('{"rows": [')
    assert "cut.json is damaged" in refused("reproduce", "table2a", "--results", tmp_path)
    evaluated(tmp_path / "cut.json", [{"name": "GS"}])
    assert "cut.json is damaged (KeyError: 'nfe')" in refused("reproduce", "table2a", "--results", tmp_path)
    (tmp_path / "cut.json").unlink()
    line = refused("reproduce", "table2a", "--results", tmp_path, "--set", "batch=none")
    assert line == "error: batch must be a whole number, got 'none'"


def test_what_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table from end to end on a stand-in: trained, evaluated and told; cells of files that lack are left out."""
    monkeypatch.chdir(tmp_path)
    preset = PRESETS["ffhq"]
    weights = standins.write_weights(preset, tmp_path / "weights")
    words = [
        "--run",
        "--measure",
        "--precision bf16",
        "--preset-weights",
        weights,
        *standins.small(preset),
        "--set",
        "evaluation_seeds=50,54",
    ]
    found = cells("theory", tmp_path / "results", *words)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {re.sub("-set-[0-9a-f]{8}", "", name) for name in names} == {
        "ffhq-gs-4.json",
        "ffhq-gs-free-4.json",
    }
    assert not names & {"ffhq-gs-4.json", "ffhq-gs-free-4.json"}  # those are of the published settings
    (free,) = [
        r
        for r in json.loads(next((tmp_path / "results").glob("ffhq-gs-free-4*")).read_text())["rows"]
        if "GS" in r["name"]
    ]
    assert free["name"] == "GS without theory" and free["samples"] == 4
    assert all("no FID in it" in row["state"] for row in found.values())  # of stand-ins, in no features
    assert all("--precision bf16 --json >" in row["command"] for row in found.values())
    (weights / preset.critic_file).unlink()
    result = run("reproduce", "transfer", "--results", tmp_path / "results", *words)
    assert (
        "left out GAS, NFE 4: edm-afhqv2-64x64-uncond-vp.pkl, R3GAN-FFHQ-64x64.pkl is missing"
        in result.stderr
    )


def test_a_solver_of_another_setup_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFHQ's solver on AFHQv2's network: its own weights, one schedule, and a row that says whose solver it is."""
    monkeypatch.chdir(tmp_path)
    for name in ("ffhq", "afhqv2"):
        standins.write_weights(PRESETS[name], tmp_path / "weights")
    torch.save(inception.weights(divide=16), "inception.pth")
    np.savez("real.npz", mu=np.zeros(128), sigma=np.eye(128))
    measure = "--features inception --weights inception.pth --reference real.npz"
    small = [*standins.small(PRESETS["ffhq"]), "--set", "evaluation_seeds=50,54"]
    words = ["--run", "--measure", measure, "--preset-weights", tmp_path / "weights", *small]
    found = cells("transfer", tmp_path / "results", *words)
    own, other = found["GAS", 4], found["GAS of FFHQ", 4]
    assert own["ours"] > 0 and other["ours"] > 0
    assert "--preset ffhq" in other["command"] and "--preset afhqv2" in other["command"]
    (solver,) = tmp_path.glob("runs/ffhq/gas-4*.json")
    words = ["--preset", "afhqv2", "--preset-weights", tmp_path / "weights", *small, "--solver", solver]
    line = refused("evaluate", *words)
    assert "made for another model or use: name ffhq (this model: afhqv2)" in line and "--transfer" in line
    rows = json.loads(run("evaluate", *words, "--transfer", "--baselines", "", "--json").stdout)["rows"]
    assert rows[0]["name"] == "GAS of ffhq"
    (tmp_path / "weights" / PRESETS["afhqv2"].network).unlink()
    assert "edm-afhqv2" in cells("transfer", tmp_path / "none", *words[2:4])["GAS of FFHQ", 4]["state"]


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_coverage_is_measured_against_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of recall and coverage from end to end: latents are decoded, real images are not."""
    monkeypatch.chdir(tmp_path)
    weights = standins.write_weights(PRESETS["imagenet"], tmp_path / "weights")
    torch.save(inception.weights(divide=16), "inception.pth")
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    np.savez("batch", arr_0=images, mu=np.zeros(128), sigma=np.eye(128))
    Path("folder/deep").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(f"folder/deep/{number:03}.png")
    measure = "--features inception --weights inception.pth --reference batch.npz --real folder"
    words = ["--run", "--preset-weights", weights, *standins.small(PRESETS["imagenet"])]
    words += ["--set", "evaluation_seeds=50,57", "--measure", measure]
    told = json.loads(run("reproduce", "coverage", "--results", "results", "--json", *words).stdout)["cells"]
    assert all(0 <= row["ours"] <= 1 for row in told)
    (path,) = Path("results").glob("imagenet-gs-4*.json")
    report = json.loads(path.read_text())
    network = extractor_by_name("inception", "inception.pth")
    seen = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    model = open_backbone(PRESETS["imagenet"].changed(["size=16"]), weights)
    (solver,) = Path("runs/imagenet").glob("gs-4*.json")
    denoise = model.bind(torch.arange(50, 57) % model.classes, 2.0)
    made = gas.sample(denoise, model.noise(range(50, 57)), gas.load(solver).table(4))
    expected = distribution(network.of(model)(made), seen)
    assert report["rows"][0]["to_data"]["kernel"] == pytest.approx(expected.kernel, rel=1e-3)
    assert report["real_sha256"] == RealImages(Path("folder")).sha256()


def test_a_comparison_of_a_preset_stands_beside_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gas compare on a stand-in: paper, ours and difference come first, where ours is an FID."""
    monkeypatch.chdir(tmp_path)
    preset = PRESETS["cifar10"].changed(["size=8"])
    monkeypatch.setitem(PRESETS, "cifar10", preset)
    monkeypatch.setenv("GAS_WEIGHTS", str(standins.write_weights(preset, tmp_path / "weights")))
    torch.save(inception.weights(divide=16), "inception.pth")
    np.savez("real.npz", mu=np.zeros(128), sigma=np.eye(128))
    words = ["--model", "preset:cifar10"]
    run("pairs", *words, "--seeds", 8, "--nfe", 4, "--out", "pairs")
    words += ["--pairs", "pairs", "--validation", 2, "--seeds", "50:53", "--out", "out", "--nfe", 4]
    words += ["--solvers", "dpmpp-3m/log_snr,dpmpp-3m", "--rank", 2]
    run("compare", *words)
    assert "2510.17699" not in Path("out/report.md").read_text()
    fid = ["--features", "inception", "--weights", "inception.pth", "--reference", "real.npz"]
    cells = json.loads(run("compare", *words, *fid, "--json").stdout)
    ours = next(c["comparison"]["frechet_data"] for c in cells if c["spec"] == "dpmpp-3m")
    first = Path("out/report.md").read_text().split("## ")[1]
    assert first.startswith(
        "Frechet distance to the data's statistics, as published: arXiv 2510.17699 / ours / difference"
    )
    assert f"| DPM-Solver++(3M) | 46.59 / {ours:.3f} / {ours - 46.59:+.3f} |" in first
    assert "log_snr" not in first  # on a grid of its own it is another solver


def test_fid_is_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Inception's features and statistics of real data, small stand-ins of both, a cell has its figure."""
    monkeypatch.chdir(tmp_path)
    preset = PRESETS["ffhq"]
    weights = standins.write_weights(preset, tmp_path / "weights")
    torch.save(inception.weights(divide=16), "inception.pth")
    np.savez("real.npz", mu=np.zeros(128), sigma=np.eye(128))
    measure = "--features inception --weights inception.pth --reference real.npz"
    words = ["--run", "--measure", measure, "--preset-weights", weights, *standins.small(preset)]
    found = cells("theory", tmp_path / "results", *words, "--set", "evaluation_seeds=50,54")
    ours = [found[solver, 4]["ours"] for solver in ("GS", "GS without theory")]
    assert all(value > 0 for value in ours) and "4 samples, the paper 50,000" in found["GS", 4]["state"]
    assert found["GS", 4]["difference"] == pytest.approx(ours[0] - 10.70)
