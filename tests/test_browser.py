"""The page "In your browser", clicked through in a headless Chromium: samples are those of gas.sample.

Needs ``pip install 'gas-solver[browser]'``, Chromium, and onnxruntime-web in ``build`` or npm to fetch it.
"""

import functools
import http.server
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import gas

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page as ``make docs`` puts it beside what it fetches, without the rest of the site."""
    pytest.importorskip("sphinx")
    pytest.importorskip("onnxruntime", exc_type=Exception)
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        import browser
    finally:
        sys.path.pop(0)
    runtime = browser.runtime()
    if runtime is None:
        pytest.skip("onnxruntime-web is not in build/onnxruntime-web, and npm cannot fetch it")
    folder = tmp_path_factory.mktemp("site")
    assets = folder / "_static" / "browser"
    shutil.copytree(ROOT / "docs" / "_static" / "browser", assets)
    browser.write(assets, runtime)
    (block,) = re.findall(r"```\{raw\} html\n(.*?)```", (ROOT / "docs" / "browser.md").read_text(), re.DOTALL)
    (folder / "index.html").write_text(f"<!doctype html><meta charset=utf-8><title>page</title>{block}")
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")  # tests take files away
        super().end_headers()


@pytest.fixture(scope="module")
def page(folder):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.address = f"http://127.0.0.1:{server.server_port}/"
        page.goto(page.address)
        finished(page)
        yield page
        browser.close()
    server.shutdown()
    server.server_close()


def status(page):
    return page.inner_text("#sampler [role=status]")


def finished(page):
    page.wait_for_selector("#sampler .controls:enabled")
    page.wait_for_function(
        "() => document.querySelector('#sampler [role=status]').textContent.startsWith('The same')"
    )


def samples(page):
    rows = page.evaluate(
        "() => [...document.getElementById('sampler').samples].map(([n, x]) => [n, Array.from(x)])"
    )
    shape = (8, 6, 16, 16) if page.input_value("#sampler [name=model]") == "emoji" else (10, 1, 32, 32)
    return {name: np.float32(values).reshape(shape) for name, values in rows}


def expected(table):
    model, labels = gas.zoo.load("mnist"), torch.arange(10)
    with torch.no_grad():
        return gas.sample(model.bind(labels), model.noise(range(50000, 50010)), table).numpy()


def upload(page, name, content):
    page.set_input_files(
        "#sampler input[type=file]", {"name": name, "mimeType": "application/json", "buffer": content}
    )


def test_samples_are_those_of_the_library(page):
    model, in_page = gas.zoo.load("mnist"), samples(page)
    learned = gas.load(gas.zoo.solver_path("mnist"))
    tables = {
        "GS": learned.table(nfe=4),
        "iPNDM-3": gas.Classical("ipndm-3", "time_uniform", 4, model.t_end).table(model.schedule),
        "Teacher": gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end).table(model.schedule),
    }
    assert set(tables) < set(in_page)
    for name, table in tables.items():
        np.testing.assert_allclose(in_page[name], expected(table), rtol=0, atol=1e-4, err_msg=name)


def test_everything_comes_from_the_same_place(page):
    assert page.requested
    assert all(url.startswith((page.address, "blob:", "data:")) for url in page.requested)


def test_choices_are_followed(page):
    for name in ("UniPC-3", "iPNDM-3"):
        page.uncheck(f"#sampler input[value='{name}']")
    page.fill("#sampler input[name=nfe]", "6")
    assert page.inner_text("#sampler output") == "6"
    page.click("#sampler button[name=run]")
    finished(page)
    names = page.eval_on_selector_all("#sampler tr", "rows => rows.map((row) => row.dataset.solver)")
    assert names == ["DPM-Solver++(3M)", "GS", "Teacher"]
    table = gas.load(gas.zoo.solver_path("mnist")).table(nfe=6)
    np.testing.assert_allclose(samples(page)["GS"], expected(table), rtol=0, atol=1e-4)
    assert re.search(r"[\d.]+ ms a sample", page.inner_text("#sampler .facts"))
    before = samples(page)["Teacher"]
    page.click("#sampler button[name=noise]")
    finished(page)
    after = samples(page)["Teacher"]
    assert np.abs(after - before).mean() > 0.1 and np.abs(after).max() < 1.5


def says(page, text):
    page.wait_for_function(
        "text => document.querySelector('#sampler [role=status]').textContent.includes(text)", arg=text
    )


def test_a_solver_file_of_a_visitor(page, tmp_path):
    model, digits = gas.zoo.load("mnist"), gas.zoo.load("digits")

    def content(nfe, model=model, **options):
        gas.save(
            tmp_path / "s.json",
            gas.Classical("ddim", "time_uniform", nfe, model.t_end),
            model=model,
            **options,
        )
        return (tmp_path / "s.json").read_bytes()

    page.fill("#sampler input[name=nfe]", "6")
    for name, refused, message in [
        ("hostile.json", b"<script>document.title = 'owned'</script>", "hostile.json: "),
        ("list.json", b"[]", "not a solver file of version 1"),
        ("digits.json", content(6, digits), "of model digits, not mnist"),
        ("guided.json", content(6, guidance=2.0), "for guidance 2; the page samples at 1"),
        ("nine.json", content(9), "no table for NFE 6; it has NFE 9"),
    ]:
        upload(page, name, refused)
        says(page, message)
    assert page.title() == "page"
    for name in ("<b>mine</b>.json", "__proto__", "GS"):
        upload(page, name, content(6))
        page.wait_for_selector(f"#sampler tr[data-solver='your {name}']")
        finished(page)
        assert page.inner_text("#sampler .solvers").count(f"your {name}") == 1
    # At an NFE that the files lack the other rows are sampled all the same.
    page.fill("#sampler input[name=nfe]", "5")
    page.click("#sampler button[name=run]")
    finished(page)
    assert "no table for NFE 5; it has NFE 6" in page.inner_text("#sampler tr[data-solver='your GS'] small")
    assert {"GS", "Teacher"} <= samples(page).keys()


def test_nothing_starts_while_the_page_samples(page):
    waits = """() => {
        document.querySelector('#sampler [name=noise]').click();
        return [...document.querySelectorAll('#sampler button, #sampler input')].every((e) => e.matches(':disabled'));
    }"""
    assert page.evaluate(waits)
    finished(page)
    names = page.eval_on_selector_all("#sampler tr", "rows => rows.map((row) => row.dataset.solver)")
    assert len(set(names)) == len(names)


def test_prompts_are_drawn_in_color(page):
    """``emoji``: words of any spelling, one of no name, and fewer prompts than pictures."""
    page.fill("#sampler input[name=nfe]", "4")
    page.select_option("#sampler [name=model]", "emoji")
    page.wait_for_selector("#sampler .prompts:visible")
    finished(page)
    page.fill("#sampler [name=prompts]", "Red HEART, the cat's-face, , owl " + "of zebras " * 20)
    page.click("#sampler button[name=run]")
    finished(page)
    prompts = ["red heart", "the cats face", "owl " + "of zebras " * 20]
    model = gas.pipelines.from_pipeline(gas.zoo.pipeline("emoji"), prompts)
    guidance = gas.zoo.guidance("emoji")
    denoise = model.bind(torch.arange(8) % 3, guidance)
    table = gas.load(gas.zoo.solver_path("emoji")).table(nfe=4)
    with torch.no_grad():
        expected = gas.sample(denoise, model.noise(range(50000, 50008)), table)
        decoded = model.decode(expected)
    np.testing.assert_allclose(samples(page)["GS"], expected.numpy(), rtol=0, atol=1e-4)
    row = "#sampler tr[data-solver='GS'] canvas"
    pixels = "c => [...c.getContext('2d').getImageData(66, 0, 64, 64).data].filter((_, i) => i % 4 < 3)"
    drawn = np.float32(page.eval_on_selector(row, pixels)).reshape(64, 64, 3)
    np.testing.assert_allclose(drawn, 127.5 * (1 + decoded[1].permute(1, 2, 0)), rtol=0, atol=1.5)
    assert f"at guidance {guidance:g}" in page.inner_text("#sampler .facts")
    assert int(re.search(r"(\d+) MB of memory", page.inner_text("#sampler .facts"))[1]) > 20
    page.select_option("#sampler [name=model]", "mnist")
    finished(page)
    assert page.is_hidden("#sampler .prompts") and set(samples(page)) >= {"GS", "Teacher"}


@pytest.mark.parametrize("name", ["mnist/network.onnx", "ort.wasm.min.mjs"])
def test_a_missing_part_is_named(page, folder, name):
    part = folder / "_static" / "browser" / name
    part.rename(part.with_suffix(".away"))
    try:
        page.goto(page.address)
        says(page, "This page cannot compute")
        assert name in status(page)
    finally:
        part.with_suffix(".away").rename(part)


@pytest.mark.parametrize("name", ["emoji", "mnist"])
def test_the_files_of_the_page_are_whole(name):
    learned = gas.load(gas.zoo.solver_path(name))
    assert learned.nfes == [3, 4, 5, 6]
    assert learned.document.model["name"] == name
