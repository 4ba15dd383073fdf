"""``gas paper reproduce``: the paper's figures, what was measured of them, and runs that are really made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gas
from gas.cli.paper.reproduce import _published_features
from gas.display import significant
from gas.features.extractor import extractor_by_name
from gas.features.real import RealImages
from gas.metrics.distances import distribution
from gas.paper.backbone import load_backbone
from gas.paper.presets import PRESETS
from gas.paper.reproduction import run_for
from gas.paper.tables import TABLES
from support import inception, standins
from support.commands import refused, run
from support.covering import covering, thinned

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers", "short_runs")

METHOD = {  # method.md, section 6, once more: teacher, and the last figure of GAS
    "table2a": (2.03, 2.17), "table2b": (2.60, 2.66), "table2c": (2.16, 2.31),
    "table2d": (3.06, 3.36), "table2e": (4.10, 4.17), "table2f": (11.48, 11.36),
}  # fmt: skip


def evaluated(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """A file as gas evaluate writes it."""
    values = {"frechet_data": None, "to_data": None, "samples": 50_000}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model": "cifar10", "rows": [{**values, **row} for row in rows], **more}))


def cells(table: str, results: Path, *words: object) -> dict[tuple[str, int], dict[str, Any]]:
    printed = json.loads(run("paper", "reproduce", table, "--results", results, "--json", *words).stdout)
    return {(row["solver"], row["nfe"]): row for row in printed["cells"]}


@pytest.mark.parametrize("name", thinned(list(TABLES), 3))
def test_tables_are_of_presets_and_solvers_that_exist(name: str, tmp_path: Path) -> None:
    """Runs are real: a dry run of the training of every solver says what it would do."""
    table, checked = TABLES[name], set()
    if name in METHOD:
        teacher, last = METHOD[name]
        assert [f.value for f in table.figures if f.solver == "teacher"][-1] == teacher
        assert [f.value for f in table.figures if f.solver == "GAS"][-1] == last
    rows = json.loads(run("paper", "reproduce", name, "--results", tmp_path, "--json").stdout)["cells"]
    for row, figure in zip(rows, table.figures, strict=True):
        assert row["ours"] is None and row["state"].startswith("missing; needs ")
        command = run_for(figure, tmp_path)
        assert row["run"] == command.name
        if row["solver"] not in checked:
            words = [word for setting in figure.settings for word in ("--set", setting)]
            words += [
                "--nfe",
                str(command.nfe),
                "--objective",
                command.objective,
                "--out",
                str(command.solver),
            ]
            shown = run("paper", "train", figure.trained_on, *words, "--dry-run").stderr
            assert f"then {command.solver}" in shown.replace("\n", " ")
        checked.add(row["solver"])


@covering(name=TABLES.keys(), given=[False, True])
def test_a_run_measures_what_its_cell_shows(name: str, given: bool, tmp_path: Path) -> None:
    """By default in Inception's features against the preset's real data, from its published files."""
    for figure in TABLES[name].figures:
        command = run_for(figure, tmp_path)
        features = _published_features(command, tmp_path / "w")
        assert features.features == "inception" and features.reference is not None
        assert features.weights == tmp_path / "w" / "pt_inception-2015-12-05-6726825d.pth"
        assert features.reference.parent == tmp_path / "w" and features.reference.suffix == ".npz"
        if figure.metric != "FID":
            assert features.real == features.reference and features.real.name.startswith("VIRTUAL_")
        missing = set(command.missing(tmp_path / "w", measuring=not given))
        assert missing.isdisjoint({features.weights.name, features.reference.name}) == given


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
    cell_values = cells("table2a", tmp_path)
    assert cell_values["GS", 4]["ours"] == 4.5 and cell_values["GS", 4]["difference"] == pytest.approx(0.09)
    assert cell_values["DPM++(3M)", 4]["ours"] == 46.5 and cell_values["UniPC", 4]["ours"] == 44.0
    assert cell_values["teacher", None]["ours"] == 2.05
    assert (
        cell_values["GAS", 4]["ours"] is None
        and "no FID in it (--features inception" in cell_values["GAS", 4]["state"]
    )
    assert (
        "1,000 samples, the paper 50,000" in cell_values["GS", 6]["state"]
        and cell_values["GS", 8]["ours"] is None
    )
    assert cell_values["GAS", 6]["state"] == (
        "missing; needs edm-cifar10-32x32-uncond-vp.pkl, R3GAN-CIFAR10.pkl, vgg16-397923af.pth, lpips-vgg.pth, "
        "pt_inception-2015-12-05-6726825d.pth, cifar10-32x32.npz"
    )
    text = run("paper", "reproduce", "table2a", "--results", tmp_path, "--markdown", tmp_path / "t.md").stdout
    assert "GS 4 FID 4.41 4.50 +0.09" in " ".join(text.split())
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert (
        f"| GS | 4 | FID | 4.41 | 4.50 | +0.09 | cifar10-gs-4 | {tmp_path}/a.json: 50,000 samples |" in lines
    )
    # A run measures a column of classical solvers, and the teacher, with GS: beside it are three more and GAS.
    runs = {row["run"] for row in cell_values.values()}
    assert len(runs) == 4 * 4
    assert {solver for (solver, _), row in cell_values.items() if row["run"] == "cifar10-gs-10"} == {
        *("DPM++(3M)", "UniPC", "iPNDM", "GS", "teacher"),
    }


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

    def files(*changes: str) -> tuple[str, str]:
        command = run_for(TABLES["theory"].figures[0], Path("r"), changes)
        return str(command.solver), str(command.result)

    usual = ("runs/ffhq/gs-4.json", "r/ffhq-gs-4.json")
    assert files() == files("batch=24") == usual  # the published one
    eight, nine = files("batch=8"), files("batch=9")
    assert files("batch=9", "batch=8") == eight and len({*eight, *nine, *usual}) == 6
    seeds = files("evaluation_seeds=5,9")
    assert seeds[0] == usual[0] and seeds[1] != usual[1]  # one solver, measured on others

    schedule = gas.EDMasVP(1e-4, 0.002, 80.0)
    table = gas.Classical("ddim", "log_snr", 4, 1e-4).table(schedule)
    settings_of_gs = {**PRESETS["ffhq"].changed(["batch=8"]).settings(), "objective": "gs"}
    Path("runs/ffhq").mkdir(parents=True)
    gas.save("runs/ffhq/gs-4.json", table, training=settings_of_gs)
    monkeypatch.setattr("gas.paper.reproduction.MeasuringRun.missing", lambda *_, **__: [])
    line = refused("paper", "reproduce", "theory", "--results", "r", "--run")
    assert (
        "runs/ffhq/gs-4.json was trained with batch=8, this cell needs batch=24: move that file away" in line
    )


def test_rows_of_one_name_are_not_taken_for_another(tmp_path: Path) -> None:
    """GAS with the classic loss, and GAS of another setup, are called GAS in their files."""
    row = {"name": "GAS", "nfe": 4, "frechet_data": 6.0}
    classic = {**row, "name": "GAS, classic"}
    evaluated(tmp_path / "any.json", [classic], preset="imagenet", features="inception")
    cells_by_name = cells("table6", tmp_path)
    assert cells_by_name["GAS, classic", 4]["ours"] == 6.0 and cells_by_name["GAS", 4]["ours"] is None
    evaluated(tmp_path / "afhqv2-gas-4.json", [row], preset="afhqv2", features="inception")
    cells_by_name = cells("transfer", tmp_path)
    assert cells_by_name["GAS", 4]["ours"] == 6.0 and cells_by_name["GAS of FFHQ", 4]["ours"] is None


def test_recall_and_cells_of_gas_compare(tmp_path: Path) -> None:
    to_data = {"prdc": {"precision": 0.5, "recall": 0.7, "density": 1.0, "coverage": 0.9}}
    metrics = {"frechet_data": 5.0, "to_data": to_data, "samples": 50_000, "name": "GAS", "nfe": 4}
    cell = {"spec": "gas", "label": "GAS", "category": "learned", "nfe": 4, "metrics": metrics}
    metric_values = {
        "format": "gas-comparison-cell",
        "model": "imagenet",
        "cell": cell,
        "measured": {"features": "inception"},
    }
    (tmp_path / "gas-4.json").write_text(json.dumps(metric_values))
    (tmp_path / "gas-5.json").write_text(
        json.dumps({**metric_values, "cell": {**cell, "nfe": 5, "metrics": None}})
    )
    rows = json.loads(run("paper", "reproduce", "coverage", "--results", tmp_path, "--json").stdout)["cells"]
    assert [row["ours"] for row in rows] == [None, 0.7, None, 0.9]


def test_bad_input(tmp_path: Path) -> None:
    assert "unknown table 'table2x': did you mean 'table2" in refused("paper", "reproduce", "table2x")
    assert "table2a" in run("paper", "reproduce").stdout
    (tmp_path / "cut.json").write_text('{"rows": [')
    assert "cut.json is damaged" in refused("paper", "reproduce", "table2a", "--results", tmp_path)
    evaluated(tmp_path / "cut.json", [{"name": "GS"}])
    assert "cut.json is damaged (KeyError: 'nfe')" in refused(
        "paper", "reproduce", "table2a", "--results", tmp_path
    )
    (tmp_path / "cut.json").unlink()
    line = refused("paper", "reproduce", "table2a", "--results", tmp_path, "--set", "batch=none")
    assert line == "error: batch must be a valid integer, got 'none'"


@pytest.mark.slow
def test_what_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table from end to end on a stand-in: trained, evaluated and told; cells of files that lack are left out."""
    monkeypatch.chdir(tmp_path)
    preset = PRESETS["ffhq"]
    weights = standins.write_weights(preset, tmp_path / "weights")
    words = [
        "--run",
        "--features",
        "model",
        "--precision",
        "bf16",
        "--preset-weights",
        weights,
        *standins.small(preset),
        "--set",
        "evaluation_seeds=50,54",
    ]
    cells_by_name = cells("theory", tmp_path / "results", *words)
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
    assert all(
        "no FID in it" in row["state"] for row in cells_by_name.values()
    )  # of stand-ins, in no features
    (weights / preset.critic_file).unlink()
    result = run("paper", "reproduce", "transfer", "--results", tmp_path / "results", *words)
    assert (
        "left out afhqv2-gas-4: edm-afhqv2-64x64-uncond-vp.pkl, R3GAN-FFHQ-64x64.pkl is missing"
        in result.stderr
    )


@pytest.mark.slow
def test_a_solver_of_another_setup_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFHQ's solver on AFHQv2's network: its own weights, one schedule, and a row that says whose solver it is."""
    monkeypatch.chdir(tmp_path)
    for name in ("ffhq", "afhqv2"):
        standins.write_weights(PRESETS[name], tmp_path / "weights")
    torch.save(inception.weights(divide=16), "inception.pth")
    np.savez("real.npz", mu=np.zeros(128), sigma=np.eye(128))
    measure = ["--features", "inception", "--weights", "inception.pth", "--reference", "real.npz"]
    small = [*standins.small(PRESETS["ffhq"]), "--set", "evaluation_seeds=50,54"]
    words = ["--run", *measure, "--preset-weights", tmp_path / "weights", *small]
    cells_by_name = cells("transfer", tmp_path / "results", *words)
    gas_row, other = cells_by_name["GAS", 4], cells_by_name["GAS of FFHQ", 4]
    assert gas_row["ours"] > 0 and other["ours"] > 0
    assert other["run"] == "afhqv2-from-ffhq-gas-4"
    (solver,) = tmp_path.glob("runs/ffhq/gas-4*.json")
    words = [
        "afhqv2",
        "--preset-weights",
        tmp_path / "weights",
        *small,
        "--solver",
        solver.relative_to(tmp_path),
    ]
    line = refused("paper", "evaluate", *words)
    assert "made for another model or use: name ffhq (this model: afhqv2)" in line and "--transfer" in line
    rows = json.loads(run("paper", "evaluate", *words, "--transfer", "--baselines", "", "--json").stdout)[
        "rows"
    ]
    assert rows[0]["name"] == "GAS of ffhq"
    (tmp_path / "weights" / PRESETS["afhqv2"].network).unlink()
    assert "edm-afhqv2" in cells("transfer", tmp_path / "none", *words[1:3])["GAS of FFHQ", 4]["state"]


@pytest.mark.slow
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
    measure = ["--features", "inception", "--weights", "inception.pth"]
    measure += ["--reference", "batch.npz", "--real", "folder"]
    words = ["--run", "--preset-weights", weights, *standins.small(PRESETS["imagenet"])]
    words += ["--set", "evaluation_seeds=50,57", *measure]
    cells_printed = json.loads(
        run("paper", "reproduce", "coverage", "--results", "results", "--json", *words).stdout
    )["cells"]
    assert all(0 <= row["ours"] <= 1 for row in cells_printed)
    (path,) = Path("results").glob("imagenet-gs-4*.json")
    report = json.loads(path.read_text())
    network = extractor_by_name("inception", "inception.pth")
    network_features = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    model = load_backbone(PRESETS["imagenet"].changed(["size=16"]), weights)
    (solver,) = Path("runs/imagenet").glob("gs-4*.json")
    denoise = model.bind(torch.arange(50, 57) % model.classes, 2.0)
    samples = gas.sample(denoise, model.noise(range(50, 57)), gas.load(solver).table(4))
    expected = distribution(network.of(model)(samples), network_features)
    assert report["rows"][0]["to_data"]["kernel"] == pytest.approx(expected.kernel, rel=1e-3)
    assert report["real_sha256"] == RealImages(Path("folder")).sha256()


@pytest.mark.slow
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
    ours = next(c["metrics"]["frechet_data"] for c in cells if c["spec"] == "dpmpp-3m")
    first = Path("out/report.md").read_text().split("## ")[1]
    assert first.startswith(
        "Frechet distance to the data's statistics, as published: arXiv 2510.17699 / ours / difference"
    )
    assert f"| DPM-Solver++(3M) | 46.59 / {significant(ours)} / {ours - 46.59:+.3f} |" in first
    assert "log_snr" not in first  # on a grid of its own it is another solver


@pytest.mark.slow
def test_fid_is_measured_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Inception's features and statistics of real data, small stand-ins of both, a cell has its figure."""
    monkeypatch.chdir(tmp_path)
    preset = PRESETS["ffhq"]
    weights = standins.write_weights(preset, tmp_path / "weights")
    torch.save(inception.weights(divide=16), "inception.pth")
    np.savez("real.npz", mu=np.zeros(128), sigma=np.eye(128))
    measure = ["--features", "inception", "--weights", "inception.pth", "--reference", "real.npz"]
    words = ["--run", *measure, "--preset-weights", weights, *standins.small(preset)]
    cells_by_name = cells("theory", tmp_path / "results", *words, "--set", "evaluation_seeds=50,54")
    ours = [cells_by_name[solver, 4]["ours"] for solver in ("GS", "GS without theory")]
    assert (
        all(value > 0 for value in ours) and "4 samples, the paper 50,000" in cells_by_name["GS", 4]["state"]
    )
    assert cells_by_name["GS", 4]["difference"] == pytest.approx(ours[0] - 10.70)
