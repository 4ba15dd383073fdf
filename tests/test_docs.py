"""The Python of README and docs runs as it stands, and every ``gas.`` path that text names exists.

A block runs after the earlier ones of its page, in an empty folder, with the names that its reader has already
(``READERS``). A block that needs what tests lack has ``<!-- not run: why -->`` on the line above it.
"""

import ast
import importlib
import os
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gas
from gas.training.initialization import StartSearch

pytestmark = pytest.mark.usefixtures(
    "quick_gauss_newton", "few_classical_solvers", "short_runs", "small_digits"
)

os.environ["HF_HUB_OFFLINE"] = "1"

# Pairs that pages are given, and fewer of a pipeline, whose predictions cost fifty times those of the digits' network.
PAIRS, OF_A_PIPELINE = 40, 6
ROOT = Path(__file__).parents[1]
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PAGES = [path for path in sorted(TEXTS) if "```python" in path.read_text()]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
# A path in text, not a file such as gas.png or mnist-gas.json.
NAMED = re.compile(r"(?<![\w/.-])gas(?:\.(?!png\b)[A-Za-z_]\w*)+")


def python_blocks(path):
    return [(match["code"], match["why"]) for match in BLOCK.finditer(path.read_text())]


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


class Gaussian(torch.nn.Module):
    """Predicts the noise of N(0, 1) data at integer steps, exactly."""

    def __init__(self, alphas_cumprod):
        super().__init__()
        self.register_buffer("sigma", (1 - alphas_cumprod).sqrt().float())

    def forward(self, x, step):
        return self.sigma[step.round().long()].view(-1, 1, 1, 1) * x


def readme():
    """A pipeline, and the network of a DDPM."""
    alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    names = {name: value for name, value in pipeline().items() if name in ("pipe", "prompts")}
    return {**names, "network": Gaussian(alphas_cumprod), "alphas_cumprod": alphas_cumprod}


def solvers_page():
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
    "docs/howto/large-pipelines.md": pipeline,
    "docs/howto/other-runtimes.md": diffusers_page,
    "docs/howto/processes.md": processes_page,
    "docs/reference/diffusers-scheduler.md": diffusers_page,
    "docs/reference/pipelines.md": pipelines_page,
    "docs/reference/solvers.md": solvers_page,
}


def shorten(monkeypatch):
    """Pages teach hundreds of pairs and train for minutes: the first pairs, solvers and steps run the same code."""
    teach, split, distill, fit = gas.pairs.teach, gas.Pairs.split, gas.distill, gas.fit

    def few_pairs(model, table, seeds, **more):
        network = model.model if isinstance(model, gas.models.WrappedModel) else model
        count = OF_A_PIPELINE if isinstance(network, gas.pipelines.PipelineModel) else PAIRS
        return teach(model, table, seeds[:count], **more)

    monkeypatch.setattr(gas.pairs, "teach", few_pairs)
    monkeypatch.setattr(gas.Pairs, "split", lambda pairs, last: split(pairs, min(last, len(pairs) // 2)))
    configs = {"l1": gas.Adam(iterations=2, batch=2), "l2": gas.GaussNewton(iterations=2, batch=8)}

    search = StartSearch("ddim/log_snr", screening_pairs=4, validation_pairs=8)

    def short(*args, loss="l2", **more):
        return distill(*args, loss=loss, config=configs[loss], search=search, **more)

    monkeypatch.setattr(gas, "distill", short)
    quick = gas.GaussNewton(iterations=6, batch=16)
    monkeypatch.setattr(gas, "fit", lambda *args, **more: fit(*args, config=quick, **more))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers and of random networks
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = READERS.get(str(page.relative_to(ROOT)), dict)()
    shorten(monkeypatch)
    for code, why in python_blocks(page):
        compiled = compile(code, page.name, "exec")
        if why is None:
            exec(compiled, names)
    if page.name == "README.md":
        printed = capsys.readouterr().out.splitlines()
        losses = [float(line.split()[1]) for line in printed[:-1]]
        assert losses[-1] < 0.5 * losses[0]
        assert printed[-1] == "[]"
        # N(0, 1) data: the exact flow is the identity, so the sampler must return its own noise.
        noise, table = names["model"].noise(range(8)), gas.load("mine-4.json").table(nfe=4)
        samples = gas.sample(names["model"].bind(None), noise, table)
        assert float((samples - noise).abs().max()) < 0.05


def texts():
    """Every page, and every string of the source: docstrings, messages, help texts."""
    for path in [*TEXTS, *ROOT.glob("src/gas/zoo/weights/*.md")]:
        yield path, path.read_text()
    for path in ROOT.glob("src/gas/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def published(path):
    """Whether every part of a path is a name that its package gives by itself.

    A submodule that something else imported is an attribute too, so a package's own list of names counts.
    """
    value = gas
    for part in path.split(".")[1:]:
        is_package = isinstance(value, ModuleType) and hasattr(value, "__path__")
        if not hasattr(value, part) or (is_package and part not in (*value.__all__, "__version__")):
            return False
        value = getattr(value, part)
    return True


@pytest.mark.slow
def test_every_path_that_text_names_works_after_import_gas():
    pytest.importorskip("diffusers")
    paths = {match for _, text in texts() for match in NAMED.findall(text)}
    assert len(paths) > 80
    assert [path for path in sorted(paths) if not published(path)] == []
    assert not published("gas.classical.dpmpp.dpmpp")


# An import in a program that a string holds.
IMPORT = re.compile(r"^from (gas[\w.]*) import (\w+(?:, \w+)*)$", re.MULTILINE)


def imported():
    """Every name of the library that a script of the repository imports, also in programs that its strings hold."""
    for path in [
        p for folder in ("benchmarks", "docs", "examples", "tools") for p in ROOT.glob(f"{folder}/**/*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gas":
                yield from ((path, node.module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                for module, names in IMPORT.findall(node.value):
                    yield from ((path, module, name) for name in names.split(", "))


def test_what_scripts_import_exists():
    pytest.importorskip("diffusers")
    names = list(imported())
    assert len(names) > 50
    for path, module, name in names:
        assert hasattr(importlib.import_module(module), name), f"{path.name}: no {name} in {module}"


def command_lines():
    """Every line that a page shows for a shell to run, with its page; a backslash joins lines."""
    for path in TEXTS:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield path.relative_to(ROOT), words


def test_the_commands_of_a_page_exist_with_their_options():
    from typer.main import get_command

    from gas.cli import app

    checked, program = 0, get_command(app)
    for page, words in command_lines():
        if "gas" in words[:6]:
            command, words = program, words[words.index("gas") + 1 :]
            while hasattr(command, "commands") and words and not words[0].startswith("-"):
                command, words = command.commands[words[0]], words[1:]
            options = {name for parameter in command.params for name in parameter.opts}
            unknown = {word for word in words if word.startswith("--")} - options - {"--help"}
            assert not unknown, f"{page}: {command.name} has no {unknown}"
            checked += 1
        elif words[0] == "python" and not words[1].startswith("-"):
            assert (ROOT / words[1]).exists(), f"{page}: no file {words[1]}"
    assert checked > 40
