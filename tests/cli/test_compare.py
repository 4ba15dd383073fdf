"""gas compare from end to end on the digits model."""

import json
import shlex
from dataclasses import replace

import pytest

import gas
from gas.cli.compare import _unseen
from gas.models.protocol import weights_hash
from support.commands import refused, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers", "short_runs", "small_digits"),
]

SMALL = ["--model", "digits"]
QUICK = ["--iterations", 2, "--batch", 8, "--gas-iterations", 2, "--rank", 8, "--guides", 8]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with pairs, and a comparison of them."""
    folder = tmp_path_factory.mktemp("work")
    run("pairs", *SMALL, "--seeds", 88, "--out", folder / "pairs", "--nfe", 6)
    words = [*SMALL, "--pairs", folder / "pairs", "--validation", 24, "--seeds", "500:524", *QUICK]
    words += ["--out", folder / "out"]
    shown = run("compare", *words, "--solvers", "ddim,gits,gs-free,gas", "--nfe", 2, "--json")
    return folder, words, json.loads(shown.stdout)


@pytest.mark.slow
def test_a_comparison_is_one_command_and_every_cell_another(work, tmp_path):
    folder, _, rows = work
    assert [row["spec"] for row in rows] == ["teacher", "ddim", "gits", "gs-free", "gas"]
    assert rows[4]["evaluations"] > rows[3]["evaluations"]  # GS, and the critic's steps
    out = folder / "out"
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "4 solvers at NFE 2" in page
    (command,) = [
        line for line in (out / "report.md").read_text().splitlines() if line.startswith("    gas compare")
    ]
    assert all(part in command for part in ("--solvers ddim,gits,gs-free,gas", "--nfe 2", "--rank 8"))
    text = (out / "report.md").read_text()
    assert "GAS continues from GS for 2 steps" in text
    digest = weights_hash(gas.zoo.load("digits").classifier)
    assert (
        f"Distributions are compared in the features of model digits (weights' SHA-256 {digest}); data are the"
        in text
    )
    # The command of a cell, as it was told, makes that cell: here in another folder, from nothing.
    typed = shlex.split(rows[3]["command"].replace(str(out), str(tmp_path)))
    assert typed[:2] == ["gas", "compare"]
    again = json.loads(run(*typed[1:], "--json").stdout)
    assert [row["spec"] for row in again] == ["teacher", "gs-free"]
    assert "GAS continues" not in (tmp_path / "report.md").read_text()
    assert again[1]["metrics"] == rows[3]["metrics"]
    sampled = ["--seeds", "500:502", "--out", tmp_path / "x.npz", "--json"]
    shown = run("sample", *SMALL, "--solver", out / "solvers" / "gas-2.json", *sampled)
    assert json.loads(shown.stdout)["nfe"] == 2
    assert gas.load(out / "solvers" / "gits-2.json").table(2).nfe == 2


def test_again_it_only_tells_and_people_get_a_table(work):
    folder, words, _ = work
    cell = folder / "out" / "cells" / "gas-2.json"
    before = cell.stat().st_mtime_ns
    shown = run("compare", *words, "--solvers", "ddim,gas", "--nfe", 2, "--metrics", "frechet").output
    shown = " ".join(shown.split())
    assert "Frechet distance to the teacher's samples" in shown
    assert "GAS" in shown
    assert cell.stat().st_mtime_ns == before


def test_what_would_fail_late_is_refused_at_once(work, tmp_path):
    folder, words, _ = work
    assert "did you mean 'gs'" in refused("compare", *words, "--solvers", "gz")
    assert "did you mean 'frechet'" in refused("compare", *words, "--metrics", "frechett")
    assert "--seeds and --unseen are two sets" in refused("compare", *words, "--unseen", folder / "pairs")
    place = words.index("--seeds")
    unseeded = [*words[:place], *words[place + 2 :]]
    assert "share 88 seeds" in refused("compare", *unseeded, "--unseen", folder / "pairs")
    assert "gauss-newton has no relax" in refused("compare", *words, "--relax", 0.1)
    few = ["--validation", 60, "--solvers", "gas"]
    assert "two batches of 24 pairs" in refused("compare", *words, *few)


@pytest.mark.slow
def test_a_comparison_that_is_told_again_has_the_same_bytes(work, tmp_path):
    """What is read from cells draws and tells what the run did that made them, but for seconds."""
    _, words, _ = work
    command = [*words[:-1], tmp_path / "out", "--solvers", "ddim,gs", "--nfe", 2]

    def files():
        names = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
        return {str(name): (tmp_path / name).read_bytes() for name in names}

    run("compare", *command)
    before = files()
    assert any(name.endswith(".png") for name in before)
    run("compare", *command)
    after = files()
    assert {name for name in before if before[name] != after.get(name)} == set()
    (tmp_path / "out" / "cells" / "gs-2.json").unlink()  # killed before this cell was written
    run("compare", *command)
    timed = {"out/report.csv", "out/report.html", "out/cells/gs-2.json"}  # which state seconds
    assert {name for name in before if before[name] != files().get(name)} <= timed


def test_pairs_that_do_not_name_their_teacher_need_unseen_ones(tmp_path):
    model = gas.zoo.load("digits")
    pairs = gas.pairs.teach(model, gas.Classical("ddim", "log_snr", 2, model.t_end), range(2))
    imported = {"recipe": {"guidance": 1.0, "teacher": {"imported": "set", "sha256": "0" * 64}}}
    with pytest.raises(gas.UserError, match="do not say their teacher"):
        _unseen(model, replace(pairs, manifest=imported), None, "500:504", None, tmp_path)
