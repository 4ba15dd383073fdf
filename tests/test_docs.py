"""The Python of README and docs runs as it stands, and every ``gas.`` path that text names exists.

A block runs after the earlier ones of its page, in an empty folder, with the names that its reader has already
(``READERS``). A block that needs what tests lack has ``<!-- not run: why -->`` on the line above it.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gas
from gas.training.initialization import StartSearch

os.environ["HF_HUB_OFFLINE"] = "1"

# Pairs that pages are given; of these pipelines.md holds 64 back.
PAIRS = 68
ROOT = Path(__file__).parents[1]
PAGES = [
    path for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]) if "```python" in path.read_text()
]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
# A path in text, not a file such as gas.png or mnist-gas.json.
NAMED = re.compile(r"(?<![\w/.-])gas(?:\.(?!png\b)[A-Za-z_]\w*)+")


def python_blocks(path):
    return [(found["code"], found["why"]) for found in BLOCK.finditer(path.read_text())]


def digits():
    """A small model, its teacher and pairs."""
    model = gas.zoo.load("digits")
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 6, model.t_end)
    table = teacher.table(model.schedule)
    return {"gas": gas, "model": model, "teacher": teacher, "table": table}


def pipeline():
    """A tiny pipeline of Stable Diffusion's classes with random weights, and a solver file for it."""
    pytest.importorskip("diffusers")
    from support import pipelines

    pipe, prompts = pipelines.build("sd1"), ["a cat", "dog on the mat"]
    pipe.set_progress_bar_config(disable=True)
    model = gas.pipelines.from_pipeline(pipe, prompts)
    save_classical("solver.json", model, 4)
    teacher = gas.Classical("unipc-2-bh2", "time_uniform", 6, model.t_end)
    return {"gas": gas, "pipe": pipe, "prompts": prompts, "prompt": "a cat", "teacher": teacher}


def save_classical(path, model, nfe, guidance=1.0):
    Path(path).parent.mkdir(exist_ok=True)
    table = gas.Classical("ipndm-2", "time_uniform", nfe, model.t_end).table(model.schedule)
    gas.save(path, table, model=model, guidance=guidance)


def readme():
    return {name: value for name, value in pipeline().items() if name != "gas"}


def baselines():
    names = digits()
    return {**names, "pairs": gas.pairs.teach(names["model"], names["table"], range(64))}


def diffusers_page():
    names = pipeline()
    return {**names, "unet": names["pipe"].unet, "model": lambda x, sigma: 0 * x, "noise": torch.randn(2, 4)}


def pipelines_page():
    names = pipeline()
    save_classical("runs/mnist-latent.json", gas.zoo.load("mnist-latent"), 4, guidance=2.0)
    model = gas.pipelines.from_pipeline(names["pipe"], names["prompts"])
    return {**names, "model": model}


def processes_page():
    return {**digits(), "spec": gas.PairsSpec(range(4), {"solver": "unipc-3-bh2"})}


READERS = {
    "README.md": readme,
    "baselines.md": baselines,
    "diffusers.md": diffusers_page,
    "pipelines.md": pipelines_page,
    "processes.md": processes_page,
}


def shorten(monkeypatch):
    """Pages teach hundreds of pairs and train for minutes: the first pairs and steps run the same code."""
    teach, distill, fit = gas.pairs.teach, gas.distill, gas.fit
    monkeypatch.setattr(
        gas.pairs,
        "teach",
        lambda model, table, seeds, **more: teach(model, table, seeds[:PAIRS], **more),
    )
    configs = {"l1": gas.Adam(iterations=2, batch=2), "l2": gas.GaussNewton(iterations=2, batch=8)}

    def short(*args, loss="l2", **more):
        return distill(*args, loss=loss, config=configs[loss], search=StartSearch("ddim/log_snr"), **more)

    monkeypatch.setattr(gas, "distill", short)
    few = gas.GaussNewton(iterations=6, batch=16)
    monkeypatch.setattr(gas, "fit", lambda *args, **more: fit(*args, config=few, **more))


@pytest.mark.filterwarnings("ignore")  # of diffusers and of random networks
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = READERS.get(page.name, dict)()
    shorten(monkeypatch)
    for code, why in python_blocks(page):
        compiled = compile(code, page.name, "exec")
        if why is None:
            exec(compiled, names)
    if page.name == "README.md":
        printed = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
        assert printed[-1] < 0.5 * printed[0]
        # N(0, 1) data: the exact flow is the identity, so the sampler must return its own noise.
        assert abs(float(names["x0"].std()) - 1) < 0.05


def texts():
    """Every page, and every string of the source: docstrings, messages, help texts."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/gas/zoo/weights/*.md")]:
        yield path, path.read_text()
    for path in ROOT.glob("src/gas/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


# Run where nothing of the library is loaded: a submodule that something else imported would be an attribute anyway.
RESOLVE = """
import json, sys
lost = []
for path in json.load(sys.stdin):
    for name in [name for name in sys.modules if name.partition(".")[0] == "gas"]:
        del sys.modules[name]
    import gas
    value = gas
    try:
        for part in path.split(".")[1:]:
            value = getattr(value, part)
    except AttributeError as error:
        lost.append(f"{path}: {error}")
print(json.dumps(lost))
"""


def test_every_path_that_text_names_works_after_import_gas():
    pytest.importorskip("diffusers")
    paths = {found for _, text in texts() for found in NAMED.findall(text)}
    assert len(paths) > 80
    script = [sys.executable, "-W", "ignore", "-c", RESOLVE]
    run = subprocess.run(script, input=json.dumps(sorted(paths)), capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []
