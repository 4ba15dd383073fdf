"""Text of files and numbers, shown: nothing in a name moves a terminal, runs in a page or is computed in a sheet."""

import contextlib
import csv
import io
import json
import re
import unicodedata
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from typer.testing import CliRunner

import gas
from gas.cli import screen
from gas.cli.app import app, main
from gas.display import csv_cell, markdown, markdown_table, plain, quoted_string, significant, with_interval
from gas.evaluation.evaluator import SolverMetrics
from gas.experiments.report import Report
from gas.experiments.store import MethodResult
from gas.integrations.diffusers.model_card import model_card
from gas.plotting.errors import error_plot
from gas.plotting.samples import sample_grid
from gas.plotting.times import times_plot
from gas.training.initialization import start_label
from support.commands import numbers_in
from support.covering import thinned

pytestmark = pytest.mark.usefixtures(
    "quick_gauss_newton", "few_classical_solvers", "short_runs", "small_digits"
)

HOSTILE = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "opens a link": "\x1b]8;;https://evil.example\x1b\\gs\x1b]8;;\x1b\\",
    "one character of control": "\x9b31m",
    "goes back": "gs\r\x08\x08bad",
    "turns the direction": "gs\u202etxt.exe\u2066",
    "has no width": "g\u200bs\ufeff",
    "breaks lines": "gs\n\n# Heading\n---\nlicense: evil\x0b\x0c\x85\u2028\u2029",
    "markup": "[bold red]x[/bold red] [/x] [link=https://evil.example]y[/link]",
    "emoji": ":warning:",
    "script": "<script>alert(1)</script><img src=x onerror='alert(1)'>\"'>",
    "markdown": "**a** _b_ `c` | d | [e](javascript:alert(1)) ![f](x) ~~g~~ &lt;",
    "yaml": "x: y\n- 'a\": #",
    "mathtext": r"$\frac{$ \$ ^_{",
    "formula": '=HYPERLINK("https://evil.example")',
    "lone surrogate": "a\ud800b",
    "braces": "{task.fields} {0} %s",
}
names = pytest.mark.parametrize("name", HOSTILE)
some_names = pytest.mark.parametrize("name", thinned(list(HOSTILE), 4))


def unseen(text):
    """Characters that a terminal or a reader would not see as themselves."""
    return [each for each in text if unicodedata.category(each)[0] in "CZ" and each != " "]


@given(st.text(st.characters(codec=None)))
def test_plain_text_is_one_line_of_characters_that_are_seen(text):
    shown = plain(text)
    assert unseen(shown) == []
    assert plain(shown) == shown


@given(st.text("abcXYZ019 -+._/@(),:é中"))
def test_plain_text_leaves_ordinary_names_alone(text):
    assert plain(text) == text


@names
def test_a_name_is_text_in_markdown(name):
    shown = markdown(HOSTILE[name])
    assert unseen(shown) == [] and not re.search(r"(?<!\\)([<>`*|~$]|\][(\[])", shown)
    (head, rule, row) = markdown_table(["a", "b"], [[HOSTILE[name], (HOSTILE[name], "**")]]).splitlines()
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"\|", head)) == len(re.findall(r"\|", rule))


@names
def test_a_name_is_a_string_in_yaml(name):
    yaml = pytest.importorskip("yaml")
    text = f"base_model: {quoted_string(HOSTILE[name])}\ntags:\n- a\n"
    assert yaml.safe_load(text) == {"base_model": plain(HOSTILE[name]), "tags": ["a"]}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_is_a_formula(text):
    assert str(csv_cell(text)).startswith("'")
    assert [csv_cell(value) for value in (-1.5, 3, None, "gs")] == [-1.5, 3, None, "gs"]


# --- on the screen --------------------------------------------------------------------------------------


@names
def test_a_name_is_text_on_the_screen(name, monkeypatch, capfd):
    from rich.console import Console

    console = Console(stderr=True, highlight=False, force_terminal=True, width=400)
    monkeypatch.setattr(screen, "_console", console)
    text = HOSTILE[name]
    screen.note(text, label=text)
    with screen.bar(text, 1) as running:
        running.at(1, text)
    screen.print_table(text, [{text: text, "b": text}], strong=text)
    printed = capfd.readouterr()
    for shown, times in ((printed.out, 4), (printed.err, 4)):
        # Colours and the bar's own movements; no title, link, or other sequence.
        rest = re.sub(r"\x1b\[[0-9;]*[mAK]|\x1b\[\?25[hl]|\r", "", shown)
        assert set(unseen(rest)) <= {"\n"}
        assert re.sub(r"\s+", "", rest).count(re.sub(r"\s+", "", plain(text))) >= min(times, 3)


@some_names
def test_a_name_is_text_in_an_error(name):
    text = HOSTILE[name].encode("utf-8", "replace").decode()
    for words in (["pairs", "--model", text], ["inspect", text], ["sample", f"--{text}"]):
        result = CliRunner().invoke(app, [*words, *(["--out", "x"] if words[0] == "pairs" else [])])
        assert result.exit_code == 2, repr(result.exception)
        assert set(unseen(result.stderr)) <= {"\n"}


@some_names
@pytest.mark.filterwarnings("ignore:.*no checksum")
def test_a_name_in_a_file_is_text_wherever_it_is_told(name, tmp_path):
    text = HOSTILE[name].encode("utf-8", "replace").decode()
    model = gas.zoo.load("digits")
    table = gas.Classical("ddim", "log_snr", 2, model.t_end).table(model.schedule)
    gas.save(tmp_path / "s.json", table, model=model, training={"solver": text}, loss=text, starts={2: text})
    document = json.loads((tmp_path / "s.json").read_text())
    document["model"]["name"] = text
    document.pop("checksum", None)
    document["teacher"] = {"solver": text, text: text}
    document["versions"] = {text: text}
    (tmp_path / "s.json").write_text(json.dumps(document))
    for words in (["inspect"], ["sample", "--model", "digits", "--out", str(tmp_path / "x.npz"), "--solver"]):
        result = CliRunner().invoke(app, [*words, str(tmp_path / "s.json")])
        assert result.exit_code in (0, 2), repr(result.exception)
        assert set(unseen(result.output)) <= {"\n"}


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_table_cuts_no_number_and_no_name(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    row = {
        "NFE": "2",
        "best classical": "ipndm-2 / time_quadratic",
        "its loss": "0.02537",
        "started from": "unipc-2-bh1 / time_cubic",
        "GS": "0.009732",
        "better by": "2.6x",
        "network evaluations": "5,620",
    }
    screen.print_table("l2 to the teacher on 32 validation pairs", [row], strong="2")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= width
    words = printed.split()
    assert all(word in words for cell in row.items() for text in cell for word in text.split())


@pytest.mark.slow
def test_every_answer_to_which_start_won_is_one(tmp_path, monkeypatch):
    """The start search's bar, the table, the JSON, the file and what inspect says of it."""
    bars = {}

    class Recorded(screen.Bar):
        def at(self, done, detail=""):
            bars[self.name] = detail

    @contextlib.contextmanager
    def recorded(name, total):
        running = Recorded(None, None)
        running.name = name
        yield running

    monkeypatch.setattr("gas.cli.follow.bar", recorded)

    def run(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.stdout

    folder, file = tmp_path / "pairs", tmp_path / "s.json"
    run("pairs", "--model", "digits", "--seeds", 24, "--nfe", 4, "--out", folder)
    words = ["train", "--model", "digits", "--pairs", folder, "--validation", 8, "--nfe", 2]
    words += ["--iterations", 1, "--overwrite", "--out", file]
    (row,) = json.loads(run(*words, "--json"))
    start = start_label(row["start"])
    assert bars["NFE 2: start"].startswith(f"winner {start} ")
    best = f"best {row['best_classical']} {significant(row['best_classical_loss'])}"
    assert bars["NFE 2: classical"] == best
    assert gas.load(file).document.solvers[0].start == row["start"]
    assert start in run("inspect", file)
    assert start in run(*words)


# --- in reports, cards and pictures ---------------------------------------------------------------------


def reported(text):
    result = MethodResult(
        spec=text,
        label=text,
        category="learned",
        nfe=4,
        origin=text,
        metrics=SolverMetrics(text, 4, 1e-7, 1e-8, 0.1, 30.0, None, None, None, 8),
        errors=torch.rand(8),
        evaluations=10,
        stopped=text,
        seconds=1.0,
        command=f"gas compare {text}",
    )
    results = [result, replace(result, spec="gs", label="GS")]
    return Report(text, [text], f"gas compare --out {text}", results)


@names
def test_a_name_is_text_in_every_report(name, tmp_path):
    text = HOSTILE[name].encode("utf-8", "replace").decode()
    table, page, sheet = (
        path.read_text("utf-8")
        for path in sorted(
            reported(text).write(tmp_path), key=lambda path: ["md", "html", "csv"].index(path.suffix[1:])
        )
    )
    # The command, as code.
    table = "\n".join(line for line in table.splitlines() if not line.startswith("    "))
    for shown in (table, page, sheet):
        assert set(unseen(shown)) <= {"\n"}
        assert shown is sheet or ("<script>alert" not in shown and "<img src=x" not in shown)
    assert table.count("\n# ") == 0 and not re.search(r"(?<!\\)\]\(", table)
    assert page.count("<h1>") == 1 and page.count("<h2>") == page.count("</h2>") == table.count("\n## ")
    for row in csv.DictReader(io.StringIO(sheet)):
        assert not row["label"].startswith(("=", "+", "-", "@"))


@some_names
def test_a_name_is_text_in_a_model_card(name, tmp_path):
    yaml = pytest.importorskip("yaml")
    text = HOSTILE[name].encode("utf-8", "replace").decode()
    model = gas.zoo.load("digits")
    table = gas.Classical("ddim", "log_snr", 2, model.t_end).table(model.schedule)
    gas.save(tmp_path / "s.json", table, model=model, training={"solver": text, text: text}, starts={2: text})
    artefact = gas.load(tmp_path / "s.json")
    scheduler = gas.GASScheduler(num_train_timesteps=1000)
    card = model_card(scheduler.process, artefact, base_model=text, picture=text, name=text)
    _, front, body = card.split("---\n", 2)
    body = re.sub(r"(?s)\n```python\n.*?\n```\n", "\n", body)
    assert set(yaml.safe_load(front)) == {"base_model", "library_name", "tags"}
    assert set(unseen(card)) <= {"\n"} and "<script>" not in card and not re.search(r"(?<!\\)\]\(j", body)
    assert len([line for line in body.splitlines() if line.startswith("# ")]) == 1


@some_names
def test_a_name_is_text_in_every_picture(name, tmp_path):
    text = HOSTILE[name].encode("utf-8", "replace").decode()
    schedule = gas.VPLinear()
    pictures = [(text, torch.zeros(2, 1, 8, 8))]
    error_plot(tmp_path / "e.png", {text: {2: 0.1, 4: 0.01}}, note=text, highlight=text)
    times_plot(tmp_path / "t.png", [(text, [1.0, 0.5], [])], schedule, note=text)
    sample_grid(tmp_path / "s.png", pictures, title=text, note=text)
    assert all((tmp_path / f"{each}.png").stat().st_size > 1000 for each in "ets")


# --- numbers --------------------------------------------------------------------------------------------


@given(st.floats(1e-30, 1e30), st.integers(2, 6))
def test_a_number_keeps_its_significant_digits(value, digits):
    for signed in (value, -value):
        shown = significant(signed, digits)
        assert float(shown) == pytest.approx(signed, rel=0.51 * 10.0 ** (1 - digits))
        mantissa = shown.lstrip("-").partition("e")[0].replace(".", "").lstrip("0")
        assert len(mantissa) >= digits


@pytest.mark.parametrize("value", [1e-5, 4e-9, 0.00012, 0.5, 31.0])
def test_no_loss_is_shown_as_zero(value):
    from gas.cli.evaluate import _cells

    row = SolverMetrics("gs", 4, value, value / 10, value, 30.0, value, None, None, 8)
    row = replace(row, mse_median=value, mse_median_interval=(value / 2, value * 2))
    cells = [_cells(row)[column] for column in ("MSE to teacher", "median")]
    shown = [float(part) for cell in cells for part in numbers_in(cell)]
    np.testing.assert_allclose(shown, [value, value / 10, value, value / 2, value * 2], rtol=0.05)


def test_a_median_of_few_samples_is_shown_without_an_interval():
    from gas.cli.evaluate import _cells

    row = SolverMetrics("gs", 4, 0.5, 0.1, None, None, 0.5, None, None, 5, mse_median=0.25)
    assert _cells(row)["median"] == significant(0.25)
    assert not _cells(replace(row, mse_median=None))["median"]


@given(st.floats(-1e9, 1e9), st.floats(1e-12, 1e9), st.floats(1e-12, 1e9))
def test_a_number_and_its_interval_keep_two_digits_of_the_interval(value, below, above):
    low, high = value - below, value + above
    numbers = numbers_in(with_interval(value, low, high))
    half_width = (high - low) / 2
    fine = (
        5.1e-4 * abs(value) if half_width < 1e-3 * abs(value) else 0
    )  # four digits of the number are enough
    shown = [value] if len(numbers) == 1 else [value, half_width] if len(numbers) == 2 else [value, low, high]
    assert numbers == pytest.approx(shown, abs=max(fine, 0.0501 * half_width) + 1e-15, rel=5.1e-4)


def test_a_command_warns_in_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gas", "--version"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        main()
    assert warnings.formatwarning("a\n\x1b[31mb", UserWarning, "f.py", 3) == "warning: a \\x1b[31mb\n"


@pytest.mark.parametrize("value", [1e-5, 4e-9, 0.00012])
def test_no_measure_of_a_report_is_shown_as_zero(value):
    from gas.experiments.tables import MEASURES

    for measure in MEASURES.values():
        numbers = numbers_in(replace(measure, read=lambda _: value, interval=lambda _: None).text(None))
        assert numbers == pytest.approx([measure.scale * value], rel=0.01)
