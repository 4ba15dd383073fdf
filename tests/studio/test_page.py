"""``gas studio``, clicked through in a headless Chromium: choose, compare, measure, learn, stop, download, mistakes.

Needs ``pip install 'gas-solver[studio,browser]'`` and Chromium. Screenshots go to a temporary folder, or to that of
``GAS_SCREENSHOTS``.
"""

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import gas
from gas.io import CHECKSUM

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The studio, whose trainings rank few solvers on few pairs.
QUICK = """
from gas.cli import main
from gas.studio import learning
from support import quick
learning.VALIDATION = 16
with quick.quick_gauss_newton(), quick.few_classical_solvers(), quick.short_runs():
    main()
"""


def command(*options, program=("-m", "gas"), **kwargs):
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"
    environ = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, "studio", *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        **kwargs,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running studio: its process, address and folder."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("studio")
    options = ["--port", free_port(), "--out", folder / "out"]
    process = command(*options, program=("-c", QUICK), cwd=folder)
    line = process.stderr.readline()
    process.address, process.folder = re.search(r"http://127\.0\.0\.1:\d+/", line)[0], folder
    yield process
    process.terminate()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("GAS_SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def opened(chromium, server, **context):
    page = chromium.new_context(**{"viewport": {"width": 1360, "height": 940}, **context}).new_page()
    page.set_default_timeout(90_000)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(server.address)
    page.wait_for_selector("text=mnist.json (shipped)")
    return page


@pytest.fixture(scope="module")
def page(chromium, server):
    page = opened(chromium, server)
    yield page
    page.context.close()


@pytest.fixture
def shot(shots):
    def take(page, name, **options):
        page.screenshot(path=shots / f"{name}.png", animations="disabled", **options)

    return take


def compare(page, rows):
    page.click("#run")
    page.wait_for_function(
        "n => document.querySelectorAll('#results .gas-row').length === n"
        " && !document.querySelector('#results .gas-waiting')",
        arg=rows,
    )


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def choose_model(page, name):
    box = page.get_by_label("Model", exact=False).first
    box.fill(name)
    box.press("Enter")
    box.blur()


def message(page, text):
    page.wait_for_function(
        "text => (document.querySelector('#message [role=alert]')?.textContent ?? '').includes(text)",
        arg=text,
    )
    alert = page.inner_text("#message [role=alert] p")
    assert "\n" not in alert and len(alert) < 330
    return alert


def test_the_first_click_shows_solvers_side_by_side(page, shot):
    shot(page, "empty")
    compare(page, 5)
    names = page.locator("#results .gas-row strong").all_inner_texts()
    assert names[0] == "Teacher" and names[-1] == "GS"
    ratios = {
        name: float(re.search(r"([\d.]+) dB", row.inner_text())[1])
        for name, row in zip(names[1:], page.locator("#results .gas-row").all()[1:], strict=True)
    }
    assert max(ratios, key=ratios.get) == "GS" and ratios["GS"] > 30
    assert page.locator("#results img").count() == 40
    assert page.get_by_alt_text("GS, seed 50007").count() == 1
    shot(page, "compare")


def test_everything_comes_from_the_same_place(page, server):
    assert len(page.requested) > 20
    assert all(url.startswith((server.address, "data:", "blob:")) for url in page.requested), page.requested


def test_the_table_and_the_times_are_drawn(page, shot):
    tab(page, "Times and weights")
    page.wait_for_selector("#weights table")
    page.wait_for_selector("#times img")
    table = gas.load(gas.zoo.solver_path("mnist")).table(4)
    assert f"{float(table.outputs[3, 3]):.3f}" in page.inner_text("#weights figure.gas-learned")
    assert page.locator("#weights figure").count() == 4
    shot(page, "tables", full_page=True)


def test_errors_are_shown_from_the_file_and_measured(page, shot):
    tab(page, "Error over NFE")
    page.click("#stored")
    page.wait_for_selector("#errors img")
    recorded = page.get_attribute("#errors img", "src")
    for name, value in (("From NFE", "3"), ("To NFE", "4")):
        box = page.get_by_label(f"number input for {name}")
        box.fill(value)
        box.press("Enter")
    page.click("#measure")
    page.wait_for_function("() => document.querySelector('#measuring').textContent.includes('Measuring')")
    page.wait_for_function("() => !document.querySelector('#measuring').textContent.includes('Measuring')")
    page.wait_for_selector("#errors img")
    assert page.get_attribute("#errors img", "src") != recorded
    shot(page, "errors")


def test_nothing_of_the_folder_is_served(server):
    (server.folder / "out").mkdir(exist_ok=True)
    secret = server.folder / "out" / "secret.json"
    secret.write_text("{}")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{server.address}gradio_api/file={secret}")
    secret.unlink()


def test_the_file_is_downloaded_and_its_lines_are_there(page, shot, tmp_path):
    tab(page, "Use")
    page.wait_for_function("() => document.body.innerText.includes(\"solver='mnist.json'\")")
    with page.expect_download() as started:
        page.click("#download")
    started.value.save_as(tmp_path / "mnist.json")
    assert gas.load(tmp_path / "mnist.json").nfes == [3, 4, 5, 6]
    shot(page, "use")


def upload(page, name, content):
    page.set_input_files(
        "input[type=file]", {"name": name, "mimeType": "application/json", "buffer": content}
    )


def test_wrong_files_end_in_a_sentence(page, shot, tmp_path):
    for name, content, text in (
        ("hostile.json", b"<script>document.title = 'owned'</script>", "hostile.json is not valid JSON"),
        ("pickle.json", b"\x80\x04cos\nsystem\n.", "pickle.json"),
        ("list.json", b"[]", "list.json is not a solver file"),
        ("deep.json", b"[" * 100_000, "deep.json"),
    ):
        upload(page, name, content)
        message(page, text)
    shot(page, "error")
    assert page.title() == "gas studio"
    # A file of another model is taken, says so in its row, and the others are sampled all the same.
    model = gas.zoo.load("digits")
    gas.save(tmp_path / "s.json", gas.Classical("ddim", "log_snr", 4, model.t_end), model=model)
    other = json.loads((tmp_path / "s.json").read_text())
    del other[CHECKSUM]
    other["model"]["name"] = "someone's"
    upload(page, "someone.json", json.dumps(other).encode())
    page.wait_for_selector("text=someone.json")
    compare(page, 6)
    row = page.locator("#results .gas-row").last.inner_text()
    assert "someone.json" in row and "another model" in row
    page.get_by_role("checkbox", name="someone.json").uncheck()


def test_a_large_upload_is_refused(server):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.json"\r\n\r\n' + b" " * (
        3 << 20
    )
    request = urllib.request.Request(f"{server.address}gradio_api/upload", body + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413


def test_a_folder_that_is_no_pipeline_and_an_empty_prompt(page, server, tmp_path):
    choose_model(page, str(tmp_path))
    assert "model_index.json" in message(page, "is incomplete or damaged")
    choose_model(page, "nowhere")
    message(page, "no model or folder")
    pytest.importorskip("diffusers")
    gas.zoo.pipeline("mnist-latent").save_pretrained(tmp_path / "pipe")
    choose_model(page, str(tmp_path / "pipe"))
    page.wait_for_selector("label:has-text('Prompt')")
    page.click("#run")
    message(page, "prompt is empty")
    page.get_by_label("Prompt").fill("three")
    for name in ("mnist.json (shipped)",):
        if page.get_by_label(name).count():
            page.get_by_label(name).uncheck()
    page.click("#run")
    page.wait_for_function(
        "() => document.querySelectorAll('#results .gas-row:not(:has(.gas-waiting))').length === 4"
    )
    assert page.inner_text("#message") == ""


def test_guidance_follows_the_model_then_the_file(chromium, server, tmp_path):
    pytest.importorskip("diffusers")
    page = opened(chromium, server)
    model = gas.zoo.load("mnist-latent")
    gas.save(
        tmp_path / "four.json", gas.Classical("ddim", "log_snr", 4, model.t_end), model=model, guidance=4.0
    )

    def guidance_is(scale):
        page.wait_for_function(
            "scale => document.querySelector('#guidance input').value === scale", arg=str(scale)
        )

    choose_model(page, "mnist-latent")
    guidance_is(2)
    choose_model(page, "digits")
    guidance_is(1)
    upload(page, "four.json", (tmp_path / "four.json").read_bytes())
    guidance_is(4)
    page.context.close()


def start_training(page):
    choose_model(page, "digits")
    page.wait_for_function("() => !document.body.innerText.includes('mnist.json (shipped)')")
    tab(page, "Learn")
    box = page.get_by_label("number input for Teacher pairs")
    box.fill("32")
    box.press("Enter")
    page.click("#learn")
    page.wait_for_selector("#course [role=progressbar]")


def test_a_training_is_stopped_and_kept(page, server, shot):
    start_training(page)
    page.wait_for_selector("#course polyline", timeout=300_000)
    shot(page, "training")
    page.click("#stop")
    page.wait_for_selector("#course >> text=Kept in")
    (file,) = (server.folder / "out").glob("*.json")
    assert gas.load(file).nfes == [4]
    assert page.get_by_label(file.name).is_checked()
    compare(page, 5)


def test_a_closed_tab_stops_its_training(chromium, server):
    other = opened(chromium, server)
    start_training(other)
    other.wait_for_selector("#course >> text=/ranking|choosing|learning/i")
    other.context.close()
    deadline = time.monotonic() + 120
    while len(files := list((server.folder / "out").glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [gas.load(file).document.training.get("unfinished") for file in sorted(files)][-1] is True
    again = opened(chromium, server)  # and another may start
    start_training(again)
    again.wait_for_selector("#course >> text=Teacher pairs")
    again.context.close()


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}),
    ],
)
def test_dark_mode_and_a_phone(chromium, server, shot, name, context):
    page = opened(chromium, server, **context)
    compare(page, 5)
    shot(page, name, full_page=name == "phone")
    tab(page, "Times and weights") if name == "dark" else None
    if name == "dark":
        page.wait_for_selector("#weights table")
        shot(page, "dark-tables")
    # A phone shows a page that is too wide from farther away.
    wide = context.get("viewport", {"width": 1360})["width"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= wide
    page.context.close()


def test_the_keyboard_is_enough(chromium, server):
    page = opened(chromium, server)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.id") == "run":
            break
    assert page.evaluate("() => document.activeElement.id") == "run"
    page.keyboard.press("Enter")
    page.wait_for_selector("#results .gas-row")
    page.context.close()


@functools.cache
def refusal(*options):
    process = command(*options)
    return process.communicate(timeout=120)[1], process.returncode


def test_a_port_in_use_is_one_line(server):
    line, code = refusal("--port", server.address.rstrip("/").rpartition(":")[2])
    assert code == 2 and line.count("\n") == 1 and "name another --port" in line


def test_without_gradio_it_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('no gradio')\n")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    line = [sys.executable, "-m", "gas", "studio", "--port", str(free_port())]
    run = subprocess.run(line, env=environ, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert "pip install 'gas-solver[studio]'" in run.stderr
