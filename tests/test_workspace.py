"""Whose folders and files are: nothing of a user's is deleted or written through, and one process works at a time."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gas
from gas.cli.app import app
from gas.experiments.store import claim_folders
from gas.training.distillation import STATE
from gas.workspace import LOCK, MARKER, claim, discard, hold, scratch
from support.commands import ForkedCommand, refused, run
from support.covering import thinned
from support.forks import fork

pytestmark = pytest.mark.usefixtures(
    "quick_gauss_newton", "few_classical_solvers", "short_runs", "small_digits"
)

CELLS = ("cells", "solvers", "state", "pictures")
REPORTS = ("rankings.json", "report.csv", "report.md", "report.html")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


# --- whose a folder is ----------------------------------------------------------------------------------


def test_a_new_an_empty_and_a_marked_folder_are_claimed(tmp_path):
    for name in ("new/below", "empty"):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
        assert claim(folder) == folder and (folder / MARKER).is_file()
        (folder / "file").write_text("ours")
        assert claim(folder) == folder


@pytest.mark.parametrize("name", ["nfe-4.pt", "notes.txt", ".hidden", "below/file"])
def test_a_folder_with_a_users_files_is_refused_and_left_alone(tmp_path, name):
    path = tmp_path / "state" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"was not written by gas-solver"):
        claim(tmp_path / "state")
    assert path.read_text() == "mine" and not (tmp_path / "state" / MARKER).exists()


def test_a_link_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="is a link and would be written through"):
        claim(tmp_path / "state")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a link"):
        claim(tmp_path / "dangling")
    assert listing(tmp_path / "mine") == []


@pytest.mark.parametrize("name", ["nfe-4.pt", MARKER])
def test_a_link_in_a_claimed_folder_is_refused(tmp_path, name):
    claim(tmp_path / "state")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "state" / name).unlink(missing_ok=True)
    (tmp_path / "state" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="is a link"):
        claim(tmp_path / "state")
    discard(tmp_path / "state", ".*")
    assert (tmp_path / "mine").read_text() == "mine"


def test_discarding_takes_only_what_was_written_here(tmp_path):
    folder = claim(tmp_path / "u.json.state")
    ours = ("nfe-4.pt", "nfe-10-gas.pt", "nfe-4.start.pt", "forwards-6.pt", ".nfe-4.pt.x1.tmp")
    theirs = ("nfe-notes.pt", "notes.txt", "nfe-4.pt.bak")
    for name in (*ours, *theirs):
        (folder / name).write_text("")
    (folder / "nfe-5.pt").mkdir()
    discard(folder, STATE)
    assert listing(folder) == sorted([MARKER, "nfe-5.pt", *theirs])
    for name in theirs:
        (folder / name).unlink()
    (folder / "nfe-5.pt").rmdir()
    discard(folder, STATE)
    assert not folder.exists()


def test_nothing_is_discarded_without_a_mark_or_behind_a_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nfe-4.pt").write_text("mine")
    discard(tmp_path / "mine", STATE)
    (tmp_path / "mine" / MARKER).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    discard(tmp_path / "link", STATE)
    assert (tmp_path / "mine" / "nfe-4.pt").read_text() == "mine"


def test_scratch_goes_after_success_and_stays_with_its_state_after_an_error(tmp_path):
    folder = tmp_path / "state"
    with pytest.raises(KeyError), scratch(folder, STATE):
        raise KeyError
    assert not folder.exists()
    running = scratch(folder, STATE)
    running.__enter__()
    (folder / "nfe-1.pt").write_text("")
    assert not running.__exit__(KeyError, KeyError(), None)
    assert (folder / "nfe-1.pt").exists()
    with scratch(folder, STATE):
        pass
    assert not folder.exists()


@pytest.mark.parametrize("name", [f"{folder}/mine" for folder in CELLS] + list(REPORTS))
def test_a_comparison_overwrites_nothing_of_a_users(tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match="was not written by gas-solver"):
        claim_folders(tmp_path / "out")
    assert listing(tmp_path / "out") == sorted({name, name.split("/")[0]})


@pytest.mark.parametrize("name", [*CELLS, *REPORTS, "unseen", "cells/gs-4.json", "solvers/gs-4.json"])
def test_a_comparison_writes_through_no_link(tmp_path, name):
    out = claim_folders(tmp_path / "out")
    mine = tmp_path / "mine"
    mine.mkdir()
    if name in CELLS:
        (out / name / MARKER).unlink()
        (out / name).rmdir()
    (out / name).symlink_to(mine)
    with pytest.raises(ValueError, match="is a link"):
        claim_folders(out)
    assert listing(mine) == []


def test_files_beside_those_of_a_comparison_are_no_matter(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    claim_folders(tmp_path / "link")  # as the user named it
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_a_mark_of_some_entries_is_of_no_others(tmp_path):
    names = ("ours.json", "ours")
    claim(tmp_path, names)
    (tmp_path / "ours.json").write_text("ours")
    for name in ("mine.json", "ours.json.bak"):
        (tmp_path / name).write_text("mine")
        for others in ([name], [*names, name], None):
            with pytest.raises(ValueError, match=rf"{name} was not written by gas-solver"):
                claim(tmp_path, others)
        (tmp_path / name).unlink()
    (tmp_path / "mine").mkdir()
    claim(tmp_path, names)
    claim(tmp_path, ["later"])
    (tmp_path / "later").write_text("ours")
    claim(tmp_path, [*names, "later"])
    discard(tmp_path, ".*")
    assert listing(tmp_path) == [MARKER, "later", "mine", "ours.json"]


def test_a_folder_marked_as_a_whole_takes_every_name(tmp_path):
    claim(tmp_path)
    (tmp_path / "x").write_text("ours")
    claim(tmp_path, ["x"])
    claim(tmp_path)


@pytest.mark.parametrize("name", ["samples.png", "digits-8.json", "pairs-digits"])
def test_a_second_demo_overwrites_nothing_of_a_users(tmp_path, name):
    claim(tmp_path, ["digits-2.json"])
    (tmp_path / name).write_text("mine")
    line = refused("demo", "--model", "digits", "--nfe", 8, "--out", tmp_path)
    assert f"{name} was not written by gas-solver" in line
    assert (tmp_path / name).read_text() == "mine"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "pairs"
    words = ["pairs", "--model", "digits", "--seeds", "64", "--nfe", "4", "--out", str(folder)]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


@pytest.mark.parametrize("linked", [False, True])
def test_training_deletes_no_folder_of_a_users(tmp_path, pairs, linked):
    mine = tmp_path / ("mine" if linked else "u.json.state")
    mine.mkdir()
    (mine / "nfe-2.pt").write_text("mine")
    if linked:
        (tmp_path / "u.json.state").symlink_to(mine)
    words = ["--model", "digits", "--pairs", pairs, "--validation", 16, "--nfe", 2, "--iterations", 1]
    line = refused("train", *words, "--out", tmp_path / "u.json")
    assert "u.json.state" in line
    assert listing(mine) == ["nfe-2.pt"] and (mine / "nfe-2.pt").read_text() == "mine"


@pytest.mark.slow
def test_a_training_leaves_its_file_alone(tmp_path, pairs):
    words = ["--model", "digits", "--pairs", pairs, "--validation", 16, "--nfe", 2, "--iterations", 1]
    words = ["train", *words, "--start", "ddim/log_snr", "--out", tmp_path / "runs" / "u.json"]
    run(*words)
    assert listing(tmp_path) == ["runs", "runs/u.json"]


# --- who is at work -------------------------------------------------------------------------------------


def _hold_until(path, folder, end):
    with hold(path, "gas test", folder=folder):
        end.send("ready")
        end.poll(60)


@pytest.fixture
def other():
    """Hold an output in another process; ends it, politely or not."""
    started = []

    def start(path, folder=False):
        end, theirs = multiprocessing.Pipe()
        process = fork(_hold_until, path, folder, theirs)
        started.append((process, end))
        assert end.poll(60) and end.recv() == "ready"
        return process, end

    yield start
    for process, end in started:
        if process.is_alive():
            end.send("end")
        process.join(60)


@pytest.mark.parametrize("folder", [False, True])
def test_a_second_process_is_told_who_is_at_work(tmp_path, other, folder):
    output = tmp_path / "out.json"
    process, end = other(output, folder)
    with pytest.raises(ValueError, match=rf"gas test \(process {process.pid}, since 20..-..-.. ..:..:..\)"):
        hold(output, "another", folder=folder).__enter__()
    end.send("end")
    process.join(60)
    with hold(output, "another", folder=folder):
        pass
    assert listing(tmp_path) == []  # neither locks nor empty folders are left


def test_a_kill_ends_the_hold(tmp_path, other):
    output = tmp_path / "out.json"
    process, _ = other(output)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert listing(tmp_path) == [".out.json.lock"]
    with hold(output, "another"):
        assert json.loads((tmp_path / ".out.json.lock").read_text())["process"] == os.getpid()
    assert listing(tmp_path) == []


def test_a_link_to_an_output_is_that_output(tmp_path, other):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    other(tmp_path / "a", True)
    with pytest.raises(ValueError, match="is at work on"):
        hold(tmp_path / "b", "another", folder=True).__enter__()


@pytest.mark.parametrize(
    "note",
    ["", "[1]", "[" * 4000, '{"a":' * 800, "9" * 4096, '{"work": 1}', '{"process": "x"', "\x1b[31m" * 2000],
)
def test_a_lock_that_says_nothing_is_one_all_the_same(tmp_path, other, note):
    other(tmp_path / "out.json")
    (tmp_path / ".out.json.lock").write_text(note)
    with pytest.raises(ValueError, match=r"^another process is at work on"):
        hold(tmp_path / "out.json", "another").__enter__()


@pytest.mark.parametrize("folder", [False, True])
def test_a_folder_has_one_lock_whatever_it_is_taken_for(tmp_path, other, folder):
    (tmp_path / "x").mkdir()
    other(tmp_path / "x", folder)
    with pytest.raises(ValueError, match="is at work on"):
        hold(tmp_path / "x", "another", folder=not folder).__enter__()


@pytest.mark.parametrize("name", ["pairs", "weights.safetensors", "student.json"])
def test_a_conversion_locks_a_folder_as_pairs_do_and_a_file_as_others_do(tmp_path, monkeypatch, name):
    held = []
    monkeypatch.setattr(
        "gas.paper.convert.recognize", lambda file: held.extend(listing(tmp_path)) or ("teachers", None)
    )
    monkeypatch.setattr("gas.cli.paper.convert._import_pairs", lambda *_: {})
    (tmp_path / "x.pkl").write_bytes(b"x")
    CliRunner().invoke(app, ["paper", "convert", str(tmp_path / "x.pkl"), str(tmp_path / name)])
    assert (f"{name}/{LOCK}" if name == "pairs" else f".{name}.lock") in held


def test_a_command_may_call_another_on_its_own_output(tmp_path):
    with hold(tmp_path / "x", "one", folder=True), hold(tmp_path / "x", "two", folder=True):
        assert (tmp_path / "x" / LOCK).exists()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".out.json.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"out\.json cannot be written"):
        hold(tmp_path / "out.json", "another").__enter__()
    assert (tmp_path / "mine").read_text() == "mine"


COMMANDS = {
    "pairs": ("pairs --model digits --out {}", "x"),
    "train": ("train --model digits --pairs {pairs} --out {}", "x.json"),
    "compare": ("compare --model digits --pairs {pairs} --out {}", "x"),
    "demo": ("demo --model digits --out {}", "x"),
    "sample": ("sample --model digits --solver {solver} --out {}", "x.png"),
    "statistics": ("statistics --model digits --pairs {pairs} --out {}", "x.npz"),
    "paper convert": ("paper convert {solver} {}", "x.safetensors"),
    "export": ("export --model digits --solver {solver} --onnx {}", "x.onnx"),
    "evaluate": ("evaluate --model digits --solver {solver} --picture {}", "x.png"),
    "inspect": ("inspect {solver} --picture {}", "x.png"),
    "paper reproduce": ("paper reproduce table2a --run --results {}", "x"),
}
FOLDERS = ("pairs", "compare", "demo", "paper reproduce")


@pytest.mark.parametrize("name", thinned(list(COMMANDS), 4))
def test_of_two_commands_on_one_output_the_second_is_refused(tmp_path, other, name, pairs):
    line, output = COMMANDS[name]
    solver, output = tmp_path / "s.json", tmp_path / output
    digits = gas.zoo.load("digits")
    gas.save(solver, gas.Classical("ipndm-2", "log_snr", 4, digits.t_end), model=digits)
    process, _ = other(output, name in FOLDERS)
    before = listing(tmp_path)
    message = refused(*line.format(output, pairs=pairs, folder=tmp_path, solver=solver).split())
    assert f"gas test (process {process.pid}, since" in message and "is at work on" in message
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_two_commands_at_once_make_one_set_of_pairs(tmp_path):
    words = ["pairs", "--model", "digits", "--seeds", "64", "--nfe", "4", "--out", str(tmp_path / "p")]
    first = ForkedCommand(*words)
    try:
        waited = time.monotonic() + 120
        lock = tmp_path / "p" / LOCK
        while not (lock.exists() and lock.read_bytes()) and time.monotonic() < waited:
            time.sleep(0.01)  # until it is held, and names its holder
        assert f"gas pairs (process {first.pid}, since" in refused(*words)
    finally:
        code, stderr = first.ended(300)
    assert code == 0, stderr
    assert listing(tmp_path / "p") == ["manifest.json", "shard-00000.safetensors"]
