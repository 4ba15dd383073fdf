"""What the page does, without gradio or a browser."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

import gas
from gas.errors import UserError
from gas.metrics.paired import mean_psnr, mse
from gas.studio import actions, drawing, learning
from gas.studio.actions import Choice, Networks
from gas.studio.learning import Snapshot, Training, TrainingChoice
from support import quick

pytestmark = pytest.mark.usefixtures("small_digits")

CLASSICAL = ("ipndm-3/time_uniform", "unipc-3-bh2/log_snr")


@pytest.fixture(scope="module")
def networks():
    return Networks()


def last(iterator):
    *_, result = iterator
    return result


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A solver file of digits: the table of a classical solver is as good as any."""
    path, model = tmp_path_factory.mktemp("files") / "digits.json", gas.zoo.load("digits")
    tables = [gas.Classical("ipndm-3", "time_uniform", n, model.t_end) for n in (3, 5)]
    measured = {3: {"validation_loss": 0.02, "best_classical_loss": 0.03}}
    gas.save(path, tables, model=model, measured=measured)
    return str(path)


def test_rows_are_the_samples_of_the_library(networks, digits):
    choice = Choice(model="digits", count=9, classical=CLASSICAL, files=[digits], calls=3)
    rows = last(actions.compare(networks, choice))
    model = gas.zoo.load("digits")
    labels = torch.tensor([seed % 10 for seed in choice.seeds])
    assert [row.name for row in rows] == ["Teacher", *(spec.replace("/", " / ") for spec in CLASSICAL), "GS"]
    assert [row.calls for row in rows] == [20, 3, 3, 3]
    table = gas.Classical("ipndm-3", "time_uniform", 3, model.t_end).table(model.schedule)
    with torch.no_grad():
        expected = gas.sample(model.bind(labels), model.noise(choice.seeds), table).clamp(-1, 1)
    for row in (rows[1], rows[3]):
        torch.testing.assert_close(row.images, expected, rtol=0, atol=1e-5)
    assert rows[1].psnr == pytest.approx(mean_psnr(mse(expected, rows[0].images), 2.0), abs=1e-3)
    assert all(row.done and row.seconds > 0 for row in rows)


def test_pictures_appear_as_they_are_sampled(networks):
    choice = Choice(model="digits", count=12, classical=CLASSICAL[:1], calls=2)
    counts = [
        [0 if row.images is None else len(row.images) for row in rows]
        for rows in actions.compare(networks, choice)
    ]
    assert counts == [[0, 0], [8, 0], [12, 0], [12, 8], [12, 12]]


def test_guidance_takes_two_passes_and_either_can_be_equal(networks):
    guided = {"model": "digits", "count": 1, "guidance": 2.0, "classical": CLASSICAL[:1]}
    by_calls = last(actions.compare(networks, Choice(calls=4, **guided)))
    by_passes = last(actions.compare(networks, Choice(calls=4, by_passes=True, **guided)))
    assert [(row.calls, row.passes) for row in by_calls] == [(20, 40), (4, 8)]
    assert [(row.calls, row.passes) for row in by_passes] == [(20, 40), (2, 4)]


def test_a_solver_that_does_not_fit_has_its_sentence_in_its_row(networks, digits):
    shipped = str(gas.zoo.solver_path("mnist"))
    choice = Choice(model="digits", count=1, classical=["heun/log_snr", "nosuch"], files=[digits, shipped])
    rows = last(actions.compare(networks, Choice(**{**choice.__dict__, "calls": 9})))
    assert [bool(row.problem) for row in rows] == [False, True, True, True, True]
    assert "must be even" in rows[1].problem and "nosuch" in rows[2].problem
    assert "no table for NFE 9" in rows[3].problem and "another model" in rows[4].problem
    four = last(actions.compare(networks, Choice(**{**choice.__dict__, "calls": 4})))
    assert four[3].detail == "digits.json, between its NFE 3 and 5" and not four[3].problem


def test_labels_are_chosen(networks):
    rows = last(
        actions.compare(networks, Choice(model="digits", label=7, count=2, classical=CLASSICAL, calls=4))
    )
    free = last(
        actions.compare(networks, Choice(model="digits", label=-1, count=2, classical=CLASSICAL, calls=4))
    )
    assert not torch.equal(rows[1].images, free[1].images)
    with pytest.raises(UserError, match="label"):
        last(actions.compare(networks, Choice(model="digits", label=10, count=1, classical=CLASSICAL)))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(model="digit"), "no model or folder"),
        (Choice(model="owner/name"), "no model or folder"),  # never from the hub
        (Choice(model=""), "no model or folder"),
        (Choice(model="digits"), "No solver is chosen"),
        (Choice(model="/sys"), "readable model_index.json"),
        (Choice(model="nowhere.safetensors"), "nowhere"),
    ],
)
def test_a_wrong_choice_is_one_sentence(networks, choice, message):
    with pytest.raises((UserError, OSError)) as caught:
        last(actions.compare(networks, choice))
    text = actions.sentence(caught.value)
    assert message in text and "\n" not in text and len(text) < 320


def test_an_empty_prompt_is_refused_and_words_are_drawn(tmp_path):
    pytest.importorskip("diffusers")
    networks, folder = Networks(), tmp_path / "pipe"
    gas.zoo.pipeline("mnist-latent").save_pretrained(folder)
    facts = networks.describe(str(folder))
    assert facts.takes_prompt and facts.guidance == 7.5  # of the pipeline's call
    assert networks.describe("mnist-latent").guidance == 2.0  # of its card
    assert networks.describe("digits").guidance == 1.0
    choice = {"model": str(folder), "count": 1, "classical": ["ddim/log_snr"], "calls": 1}
    with pytest.raises(UserError, match="prompt is empty"):
        last(actions.compare(networks, Choice(prompt=" ", **choice)))
    rows = last(actions.compare(networks, Choice(prompt="three", guidance=2.0, **choice)))
    assert rows[1].images.shape == (1, 1, 32, 32) and rows[1].passes == 2


def test_a_shipped_pipeline_draws_a_class_or_a_prompt(networks):
    pytest.importorskip("diffusers")
    assert networks.describe("mnist-latent").takes_prompt and not networks.describe("digits").takes_prompt
    choice = {"model": "mnist-latent", "count": 2, "classical": ["ddim/log_snr"], "calls": 1, "guidance": 2.0}
    (_, by_class), (_, by_prompt), (_, other) = (
        last(actions.compare(networks, Choice(**choice, **condition)))
        for condition in ({"label": 3}, {"label": -1, "prompt": " three"}, {"label": 7, "prompt": ""})
    )
    torch.testing.assert_close(by_class.images, by_prompt.images)
    assert float((by_class.images - other.images).abs().mean()) > 0.05


def test_weights_beyond_the_free_memory_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "unet").mkdir()
    with (tmp_path / "unet" / "x.safetensors").open("wb") as file:
        file.truncate(10**13)  # a hole: it takes no room
    with pytest.raises(UserError, match=r"10000\.0 GB and .* are free"):
        Networks().open(str(tmp_path))
    assert "memory is too small" in actions.sentence(MemoryError())
    assert "memory is too small" in actions.sentence(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_defect_says_so(capsys):
    assert "defect" in actions.sentence(KeyError("x"))
    assert "KeyError" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b"<script>", b"\x80\x04}.", b'{"format": "gas-solver"}'])
def test_foreign_files_are_refused_by_their_own_name(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.json") as caught:
        actions.check_file(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_recorded_and_measured_errors(networks, digits):
    assert actions.measured_errors(digits) == {"digits.json": {3: 0.02}, "best classical": {3: 0.03}}
    choice = Choice(model="digits", count=8, classical=CLASSICAL, files=[digits])
    _, curves = last(actions.measure_errors(networks, choice, range(2, 4)))
    assert {name: sorted(curve) for name, curve in curves.items()} == {
        "ipndm-3 / time_uniform": [2, 3],
        "unipc-3-bh2 / log_snr": [2, 3],
        "GS": [3],
    }
    assert curves["GS"][3] == curves["ipndm-3 / time_uniform"][3] < curves["ipndm-3 / time_uniform"][2]
    assert "img" in drawing.error_picture(curves, "note", "GS")


def test_each_of_two_files_has_its_own_curve(networks, digits):
    shutil.copy(digits, other := str(Path(digits).with_name("other.json")))
    choice = Choice(model="digits", count=4, classical=[], files=[digits, other])
    _, curves = last(actions.measure_errors(networks, choice, [3, 5]))
    assert {name: sorted(curve) for name, curve in curves.items()} == {
        "GS (digits)": [3, 5],
        "GS (other)": [3, 5],
    }


def test_lines_to_copy_name_the_file_and_its_nfe(digits):
    lines = actions.snippets(str(gas.zoo.solver_path("mnist")))
    assert "solver='mnist.json'" in lines["diffusers"] and "num_inference_steps=4" in lines["diffusers"]
    guided = actions.snippets(str(gas.zoo.solver_path("emoji")))
    assert "guidance_scale=3)" in guided["diffusers"] and "guidance=3)" in guided["Python"]
    for text in (*lines.values(), *guided.values()):
        compile(text, "lines", "exec")


def test_names_are_escaped(networks, digits, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.json"
    shutil.copyfile(digits, path)
    choice = Choice(model="digits", count=1, classical=["<b>/x"], files=[str(path)], calls=3)
    html = drawing.pictures(last(actions.compare(networks, choice)), choice)
    html += drawing.weights(actions.entries(networks.open("digits"), choice)) + drawing.notice("<b>")
    assert "<b>" not in html and "<img src=x" not in html and "&lt;img src=x" in html


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(learning, "VALIDATION", 16)
    with quick.quick_gauss_newton(), quick.few_classical_solvers(), quick.short_runs():
        yield


CHOICE = TrainingChoice(model="digits", nfe=2, pairs=16, iterations=2)


@pytest.mark.slow
def test_a_training_ends_with_a_file_of_its_result(quickly, networks, tmp_path):
    snapshots = list(Training(networks, CHOICE, tmp_path / "out").watch())
    end = snapshots[-1]
    assert end.ended and end.stage == "done" and not end.problem
    assert [s.share for s in snapshots] == sorted(s.share for s in snapshots)
    assert [row.name for row in end.rows] == ["Teacher", "Best classical", "GS"] and len(end.points) >= 2
    artefact = gas.load(end.file)
    artefact.check(gas.zoo.load("digits"))
    assert artefact.nfes == [2] and "unfinished" not in artefact.document.training
    assert "polyline" in drawing.training(end)
    again = list(Training(networks, CHOICE, tmp_path / "out").watch())[-1]
    assert again.file != end.file and gas.load(again.file).table(2).times.equal(artefact.table(2).times)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stopped_training_keeps_the_best_so_far_and_leaves_no_thread(quickly, networks, tmp_path, how):
    training = Training(networks, CHOICE, tmp_path)
    watched = training.watch()
    for snapshot in watched:
        if snapshot.stage == "ranking classical solvers":
            break
    with pytest.raises(UserError, match="another training runs"):
        next(Training(networks, CHOICE, tmp_path).watch())
    if how == "stop":
        training.stop()
        assert list(watched)[-1].ended
    else:
        watched.close()  # as gradio does when the tab is closed
    assert training.join(60) and training.snapshot.stage == "stopped"
    assert not [thread for thread in threading.enumerate() if thread.name == "training"]
    document = gas.load(training.snapshot.file).document
    assert document.training["unfinished"] is True and document.teacher["nfe"] == 20
    assert networks.training.acquire(blocking=False)
    networks.training.release()


def test_a_stop_before_any_solver_is_measured_keeps_nothing(networks, tmp_path):
    training = Training(networks, CHOICE, tmp_path / "out")
    next(training.watch())
    assert training.join(60) and training.snapshot.file is None and not (tmp_path / "out").exists()


def test_a_training_that_fails_says_why(networks, tmp_path):
    for choice in (TrainingChoice(model="nowhere"), TrainingChoice(model="digits", guidance=float("nan"))):
        end = list(Training(networks, choice, tmp_path).watch())[-1]
        assert end.ended and end.stage == "failed" and end.problem.endswith(".")
        assert not networks.training.locked()


def test_sampling_goes_on_beside_a_training(networks, tmp_path):
    training = Training(networks, TrainingChoice(model="digits", nfe=3), tmp_path)
    watched = training.watch()
    next(watched)
    began = time.monotonic()
    rows = last(actions.compare(networks, Choice(model="digits", count=1, classical=CLASSICAL, calls=3)))
    assert rows[-1].done and time.monotonic() - began < 60 and not training.snapshot.ended
    watched.close()
    assert training.join(60)


def test_an_empty_snapshot_is_drawn():
    assert "progressbar" in drawing.training(Snapshot())
