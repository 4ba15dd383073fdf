"""The published setups: every setting can be changed, and each runs from its files to a report by real commands."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gas
from gas.paper.backbone import load_backbone
from gas.paper.files import find_files
from gas.paper.presets import FIXED, PRESETS, Preset, preset_by_name
from gas.paper.tables import TABLES
from gas.paper.training import critic_for
from gas.training.adversarial.r3gan import load_discriminator
from support import standins
from support.commands import refused, run
from support.published import GOLDEN, pickled, student, teachers

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers", "short_runs")

os.environ["HF_HUB_OFFLINE"] = "1"
SETTINGS = [f.name for f in fields(Preset) if f.name not in FIXED]


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_told_as_they_are_set(name: str) -> None:
    preset = PRESETS[name]
    assert preset.changed(f"{key}={value}" for key, value in preset.settings().items()) == preset
    assert set(preset.settings()) == set(SETTINGS) and preset.name == name


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_changed(name: str) -> None:
    """To another value of its type, and to nothing of another type; its neighbours stay."""
    preset = PRESETS["cifar10"]
    others: dict[str, object] = {
        "teacher": "ipndm-2", "teacher_grid": "time_uniform", "solver": "ld3", "start": "ipndm-3/log_snr",
        "decay": "cosine", "checkpointing": "none", "keep": "last", "keep_gas": "best", "objective": "classic",
        "pairing": "paired", "loss": "l1", "relax": 0.25, "ema": 0.5, "guidance": 1.5,
        "ema_warmup": False,
    }  # fmt: skip
    value = getattr(preset, name)
    other = others.get(name)
    if other is None:
        other = f"{value}x" if isinstance(value, str) else value
        other = (
            tuple(2 * x if isinstance(x, int) else x / 2 for x in value)
            if isinstance(value, tuple)
            else other
        )
        other = value + 1 if isinstance(value, int) else value / 2 if isinstance(value, float) else other
    text = ",".join(map(str, other)) if isinstance(other, tuple) else str(other)
    changed = preset.changed([f"{name}={text}"])
    assert getattr(changed, name) == other != value
    assert {k: v for k, v in vars(changed).items() if k != name} == {
        k: v for k, v in vars(preset).items() if k != name
    }
    if not isinstance(value, str):
        with pytest.raises(ValueError, match=f"^{name} must be "):
            preset.changed([f"{name}=many"])
    with pytest.raises(ValueError, match=f"unknown setting '{name}q'.*did you mean '{name}'"):
        preset.changed([f"{name}q=1"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batch", "a setting must be like batch=8, got 'batch'"),
        ("batch=0", "batch must be from 1 to"),
        ("name=x", "unknown setting 'name'"),
        ("betas=0.9", "betas must be 2 values separated by a comma, got '0.9'"),
        ("betas=0.9,2", r"betas must lie in \[0, 1\), got 2"),
        ("teacher=unipc", "unknown solver 'unipc': did you mean 'unipc-"),
        ("teacher_grid=logsnr", "unknown grid 'logsnr': did you mean 'log_snr'"),
        ("solver=gss", "unknown solver 'gss': did you mean 'gs'"),
        ("keep=worst", "keep must be 'best' or 'last', got 'worst'"),
        ("weight=-1", "weight of discriminator 'samples' must lie in"),
        ("pairs=60000", r"pairs and validation must fit into teacher_seeds, got 60000 \+ 1000"),
        ("evaluation_seeds=5,5", "evaluation_seeds must be FIRST,STOP"),
        ("t_end=1", r"t_end must lie in \(0, 1\), got 1"),
        ("validation=0", "validation must be from 1 to"),
        ("nfes=", "nfes must be numbers from 1 to"),
    ],
)
def test_settings_that_make_no_sense(setting: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PRESETS["ffhq"].changed([setting])


def test_the_papers_numbers() -> None:
    """Of each setup, a few that differ: method.md's table read once more, by hand."""
    training_settings = {
        name: (
            p.t_end,
            p.batch,
            p.iterations,
            p.iterations_gas,
            p.pairs,
            p.pairs_gas,
            p.validation,
            p.weight,
            p.guidance,
        )
        for name, p in PRESETS.items()
    }
    assert training_settings == {
        "cifar10": (1e-3, 24, 10_000, 10_000, 1400, 1400, 1000, 0.1, 1.0),
        "ffhq": (1e-4, 24, 10_000, 10_000, 1400, 5000, 1000, 1.0, 1.0),
        "afhqv2": (1e-4, 24, 10_000, 10_000, 1400, 5000, 1000, 1.0, 1.0),
        "lsun": (1e-3, 8, 30_000, 30_000, 1400, 5000, 1000, 1.0, 1.0),
        "imagenet": (1e-3, 8, 30_000, 30_000, 1400, 5000, 1000, 1.0, 2.0),
        "coco": (1e-3, 4, 1000, 2000, 1400, 5000, 128, 1.0, 7.5),
    }
    assert all(
        (p.learning_rate, p.betas, p.clip, p.ema, p.ema_warmup) == (1e-3, (0.9, 0.999), 1.0, 0.999, True)
        for p in PRESETS.values()
    )
    assert PRESETS["imagenet"].teacher_for(4).nfe == 10 and PRESETS["coco"].teacher_for(4).nfe == 5
    with pytest.raises(ValueError, match="unknown preset 'cifar': did you mean 'cifar10'"):
        preset_by_name("cifar")


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of weights for each preset."""
    return {name: tmp_path_factory.mktemp(name) / "weights" for name in PRESETS}


def written(name: str, weights: dict[str, Path]) -> Path:
    folder = weights[name]
    return folder if folder.exists() else standins.write_weights(PRESETS[name], folder)


def test_a_missing_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["paper", "train", "ffhq", "--nfe", 4, "--set", "loss=l1", "--out", tmp_path / "x.json"]
    monkeypatch.setenv("GAS_WEIGHTS", str(tmp_path / "here"))
    line = refused(*words)
    assert (
        f"preset ffhq needs {tmp_path}/here/edm-ffhq-64x64-uncond-vp.pkl" in line
        and "--preset-weights or GAS_WEIGHTS" in line
    )
    assert "gas paper doctor ffhq says what it is and where it is published" in line
    assert f"{tmp_path}/there/edm-ffhq" in refused(*words, "--preset-weights", tmp_path / "there")


def test_a_network_of_another_size(weights: dict[str, Path]) -> None:
    folder = written("cifar10", weights)
    with pytest.raises(
        ValueError, match=r"is a network for images of 8 x 8, preset cifar10 of 32 x 32.*--set size=8"
    ):
        load_backbone(PRESETS["cifar10"], folder)


def test_converted_files_are_found(weights: dict[str, Path], tmp_path: Path) -> None:
    source = written("cifar10", weights)
    preset = PRESETS["cifar10"].changed(["size=8"])
    for file in (original for original in find_files(preset, source) if not original.role.startswith("loss")):
        assert file.path is not None
        run("paper", "convert", file.path, tmp_path / "cifar10" / f"{file.path.stem}.safetensors")
    places = [file.path for file in find_files(preset, tmp_path)][:2]
    assert all(place is not None and place.suffix == ".safetensors" for place in places)
    x = torch.randn(1, 3, 8, 8)
    original, two = (load_backbone(preset, folder) for folder in (source, tmp_path))
    torch.testing.assert_close(original.denoise(x, torch.tensor(0.5)), two.denoise(x, torch.tensor(0.5)))


def test_the_critic_is_the_published_one_or_drawn_anew(weights: dict[str, Path], tmp_path: Path) -> None:
    folder, sizes = (
        written("cifar10", weights),
        ["critic_widths=8,8", "critic_groups=2,2", "critic_blocks=1,1"],
    )
    preset = PRESETS["cifar10"].changed(["size=8", "weight=0.3", *sizes])
    model = load_backbone(preset, folder)
    critic = critic_for(preset, model, folder)
    (file,) = (each.path for each in find_files(preset, folder) if each.role == "critic")
    assert file is not None and critic.weight == 0.3
    for name, value in load_discriminator(file).state_dict().items():
        assert torch.equal(value, critic.network.state_dict()[name])
    with pytest.raises(FileNotFoundError, match=r"preset cifar10 needs \S*R3GAN-CIFAR10\.pkl"):
        critic_for(preset, model, tmp_path)
    latent = replace(preset, critic_file="")
    first, again = (critic_for(latent, model, tmp_path).network.state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = critic_for(replace(latent, seed=1), model, tmp_path).network.state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    wide = latent.changed(["critic_widths=8,8,8", "critic_groups=2,2,2", "critic_blocks=1,1,1"])
    with pytest.raises(
        ValueError, match=r"sees 3 x 16 x 16, its samples are 3 x 8 x 8: give it another critic_widths"
    ):
        critic_for(wide, model, tmp_path)


# ---------------------------------------------------------------- from end to end


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' and transformers' own
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_from_its_files_to_a_report(
    name: str, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pairs, GS, GAS, samples, evaluation, report: the real commands on a stand-in of the right layout."""
    preset = PRESETS[name]
    monkeypatch.setenv("GAS_WEIGHTS", str(written(name, weights)))
    monkeypatch.chdir(tmp_path)
    nfe, words = preset.nfes[1], [name, *standins.small(preset)]
    results = json.loads(
        run("paper", "pairs", *words, *(["--nfe", nfe] if name == "coco" else []), "--json").stdout
    )
    assert results["seeds"] == [0, 6] and results["t_end"] == preset.teacher_t_end
    assert results["nfe"] == (nfe + 1 if name == "coco" else preset.teacher_nfe)
    for objective in ("gs", "gas"):
        result = run("paper", "train", *words, "--nfe", nfe, "--objective", objective, "--json")
        (row,) = json.loads(result.stdout)
        assert f"preset {name}: {preset.title}" in result.stderr and "(was 1400)" in result.stderr
        artefact = gas.load(row["file"])
        training = artefact.document.training
        assert (artefact.nfes, training["preset"], training["objective"]) == ([nfe], name, objective)
        assert artefact.document.guidance == preset.guidance
        assert artefact.document.teacher is not None and artefact.document.teacher["solver"] == preset.teacher
    folder = Path("runs") / name
    assert len(list(folder.glob("pairs*"))) == 1  # what training asked for is what `gas pairs` had made
    a, b = (gas.load(folder / f"{o}-{nfe}.json").table(nfe) for o in ("gs", "gas"))
    assert not torch.equal(a.outputs, b.outputs)
    solver = ["--solver", folder / f"gas-{nfe}.json"]
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS, name, preset.changed(standins.NETWORKS[preset.kind]))
        run("sample", "--model", f"preset:{name}", *solver, "--seeds", 2, "--out", "x.png")
    printed = run(
        "paper", "evaluate", *words, *solver, "--seeds", "50:52", "--baselines", "", "--json"
    ).stdout
    report = json.loads(printed)
    assert report["preset"] == name and report["rows"][0]["name"] == "GAS"
    Path("results.json").write_text(printed)
    (table,) = [
        key for key, each in TABLES.items() if key.startswith("table2") and each.figures[0].preset == name
    ]
    other = [*standins.small(preset), "--markdown", "report.md", "--json"]
    cells_reported = json.loads(run("paper", "reproduce", table, "--results", ".", *other).stdout)["cells"]
    states = {row["state"] for row in cells_reported if row["solver"] == "GAS" and row["nfe"] == nfe}
    measured = {"results.json: no FID in it (--features inception and a reference)"}
    assert states == measured
    assert f"{name}-gas-{nfe}" in Path("report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("way", [["paper", "evaluate", "cifar10"], ["evaluate", "--model", "preset:cifar10"]])
def test_the_teacher_ends_where_the_preset_says(
    way: list[str], weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student and teacher of CIFAR-10 end at different times, and EDM's schedule depends on where it ends."""
    preset = PRESETS["cifar10"].changed(["size=8"])
    monkeypatch.setenv("GAS_WEIGHTS", str(written("cifar10", weights)))
    monkeypatch.setitem(PRESETS, "cifar10", preset)
    model = load_backbone(preset)
    table = gas.Classical("ddim", "log_snr", 2, preset.t_end).table(model.schedule)
    gas.save(tmp_path / "x.json", table, model=model, teacher=preset.teacher_for(2).config())
    words = [*way, "--solver", tmp_path / "x.json"]
    words += ["--seeds", "50:53", "--baselines", "", "--json"]
    (row, _) = json.loads(run(*words).stdout)["rows"]
    taught = load_backbone(replace(preset, t_end=preset.teacher_t_end))
    master = preset.teacher_for(2).table(taught.schedule)
    noise = model.noise(range(50, 53))
    apart = gas.sample(model.denoise, noise, table) - gas.sample(taught.denoise, noise, master)
    assert row["mse"] == pytest.approx(float(apart.square().mean()), rel=1e-4)
    run(*words, "--precision", "bf16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_the_authors_own_files(
    weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student and a teacher set, converted for a preset, are that preset's; evaluated against its teacher."""
    preset = PRESETS["lsun"].changed(["size=16"])
    monkeypatch.setenv("GAS_WEIGHTS", str(written("lsun", weights)))
    monkeypatch.setitem(PRESETS, "lsun", preset)
    monkeypatch.chdir(tmp_path)
    torch.save(student(GOLDEN[0]), "student.pt")
    run("paper", "convert", "student.pt", "student.json", "--model", "preset:lsun")
    gas.load("student.json").check(load_backbone(preset))
    run(
        "sample", "--model", "preset:lsun", "--solver", "student.json", "--seeds", 1, "--out", "x.safetensors"
    )
    content = load_file("x.safetensors")  # latents, and what its first stage makes of them
    assert (content["samples"].shape, content["decoded"].shape) == ((1, 3, 8, 8), (1, 3, 16, 16))
    pickled(teachers(8), Path("dataset.pkl"))
    run(
        "paper",
        "convert",
        "dataset.pkl",
        "imported",
        "--model",
        "preset:lsun",
        "--t-end",
        preset.teacher_t_end,
    )
    small = ["--set", "validation=2", "--set", "pairs=4", "--set", "batch=2", "--set", "iterations=1"]
    run("paper", "train", "lsun", "--nfe", 4, *small, "--pairs", "imported", "--out", "own.json")
    training = gas.load("own.json").document.training
    assert training["seeds"] == [0, 8]  # the first four, and of eight the last two
    words = [
        "--solver",
        "student.json",
        "--solver",
        "own.json",
        "--nfe",
        4,
        "--seeds",
        "50:52",
        "--baselines",
        "",
    ]
    rows = json.loads(run("paper", "evaluate", "lsun", *words, "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["GS", "GS (own)", "unipc-3-bh2 / time_uniform (teacher)"]
    rows = json.loads(run("paper", "evaluate", "lsun", *words[2:], "--json").stdout)["rows"]
    assert rows[-1]["name"] == "unipc-3-bh2 / time_uniform (teacher)"  # an imported set does not say its own


@pytest.mark.slow
def test_pixels_learn_by_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset's own loss, from the published layout of its two files."""
    folder = standins.write_weights(PRESETS["cifar10"], tmp_path / "weights")
    standins.write_lpips(folder)
    monkeypatch.chdir(tmp_path)
    words = [*standins.small(PRESETS["cifar10"]), "--set", "loss=lpips"]
    run("paper", "train", "cifar10", "--nfe", 4, "--preset-weights", folder, *words)
    assert gas.load("runs/cifar10/gs-4.json").document.loss == "lpips"


@pytest.mark.parametrize("nfe", ["4", "4,6"])
def test_a_dry_run_says_what_would_be_done(nfe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run(
        "paper",
        "train",
        "coco",
        "--nfe",
        nfe,
        "--objective",
        "gas",
        "--preset-weights",
        tmp_path,
        "--dry-run",
    ).stderr
    assert "guidance              7.5" in printed and "missing, put it at" in printed
    assert (
        "pairs of seeds 0 to 5127 in runs/coco/pairs-nfe4-5128, then runs/coco/gas-4.json"
        in printed.replace("\n", " ")
    )
    assert not list(tmp_path.iterdir())


def test_what_does_not_go_with_a_preset(tmp_path: Path, weights: dict[str, Path]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    assert "No such option: --loss" in refused("paper", "train", "lsun", "--loss", "l2")
    assert "No such option: --set" in refused("train", "--set", "batch=8")
    assert "--pairs are needed" in refused("train", "--model", "digits", "--out", tmp_path / "x.json")
    assert "Missing option '--out'" in refused("pairs", "--model", "digits")
    assert "--out names one file" in refused("paper", "train", "lsun", "--out", tmp_path / "x.json")
    assert "objective must be 'gs' or 'gas', got 'lpips'" in refused(
        "paper", "train", "lsun", "--objective", "lpips"
    )
    line = refused(
        "paper", "train", "ffhq", "--nfe", 4, "--out", tmp_path / "x.json", "--preset-weights", tmp_path
    )
    assert "preset ffhq needs" in line
    assert "depends on the student's: --nfe" in refused("paper", "pairs", "coco")
    assert "has its own: --set teacher_nfe" in refused("paper", "pairs", "lsun", "--nfe", 4)
    assert "takes no --prompts" in refused(
        "paper",
        "train",
        "cifar10",
        "--set",
        "loss=l1",
        "--preset-weights",
        written("cifar10", weights),
        "--prompts",
        prompts,
    )
