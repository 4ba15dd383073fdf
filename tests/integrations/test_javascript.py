"""The reference run in JavaScript samples what torch samples."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gas.classical.registry import SOLVERS
from gas.grids.analytic import log_snr
from gas.learned.generalized import GeneralizedSolver
from gas.residual import Residual
from gas.sampling import sample
from gas.schedule import VPLinear
from gas.solver_file import load, save
from gas.table import Table

SAMPLER = Path(__file__).parents[2] / "examples" / "sampler.mjs"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed: no 'node' on the path")

# Prints, for every NFE, the sample of a nonlinear denoiser that is written the same way in torch below.
DRIVER = """
const { entry, sample } = await import(process.argv[1]);
const [path, array, nfes, start] = process.argv.slice(2);
const file = JSON.parse((await import("node:fs")).readFileSync(path, "utf8"));
const kind = globalThis[array], first = kind.from(JSON.parse(start));
const denoise = (x, t) => x.map((value) => Math.sin(2 * value + t));
const results = [];
for (const nfe of JSON.parse(nfes)) results.push(Array.from(await sample(denoise, first, entry(file, nfe))));
console.log(JSON.stringify(results));
"""


@pytest.fixture
def path(tmp_path):
    schedule, path = VPLinear(), tmp_path / "solver.json"
    learned, generator = GeneralizedSolver(schedule, 4, 1e-3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    unipc = SOLVERS["unipc-3-bh2"](schedule, log_snr(schedule, 6, 1e-3))
    save(path, [learned, unipc, SOLVERS["heun"](schedule, log_snr(schedule, 1, 1e-3))])
    return path


def node(*words):
    return subprocess.run([NODE, *map(str, words)], capture_output=True, text=True, timeout=60)


# Prints the sample of a lifted solver whose residuals are sums of all that they read, times the row plus 2.
LIFTED = """
const { entry, sample } = await import(process.argv[1]);
const [path, start] = process.argv.slice(2);
const file = JSON.parse((await import("node:fs")).readFileSync(path, "utf8"));
const denoise = (x, t) => x.map((value) => Math.sin(2 * value + t));
const first = Float64Array.from(JSON.parse(start)), reads = {};
const correct = (row, history) => {
  reads[row] = history.length;
  return history[0].map((_, i) => (row + 2) * history.reduce((sum, array) => sum + array[i], 0));
};
const result = Array.from(await sample(denoise, first, entry(file, 3), correct));
const refused = await sample(denoise, first, entry(file, 3)).catch((error) => error.message);
console.log(JSON.stringify([result, Array.from(first), reads, refused]));
"""


class Sum(Residual):
    """A residual that is known in closed form."""

    def forward(self, states, outputs):
        read = [*states[: self.states], *outputs[len(outputs) - self.outputs :]]
        return torch.stack(read).sum(0) * self.factor


@needs_node
def test_javascript_adds_residuals_of_the_states_and_predictions_that_they_read(tmp_path):
    table = SOLVERS["unipc-3-bh2"](VPLinear(), log_snr(VPLinear(), 3, 1e-3))
    residuals = {row: Sum("token", 1, *reads, 4) for row, reads in {-1: (1, 0), 1: (1, 2), 2: (3, 1)}.items()}
    lifted = Table(table.times, table.states, table.outputs, residuals=residuals)
    save(tmp_path / "s.json", lifted)
    for row, residual in residuals.items():
        residual.factor = row + 2
    start = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    result = node(
        "--input-type=module", "-e", LIFTED, SAMPLER.as_uri(), tmp_path / "s.json", start[:, 0].tolist()
    )
    assert result.returncode == 0, result.stderr
    found, first, reads, refused = json.loads(result.stdout)
    expected = sample(lambda x, t: torch.sin(2 * x + t), start, lifted)[:, 0]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12)
    assert first == start[:, 0].tolist()
    assert reads == {"-1": 1, "1": 3, "2": 4}
    assert refused == "this solver has residuals: pass correct(row, history)"


# Prints, for every NFE, the sample of one denoiser in three ways: with answers of their own, in place, in one buffer.
ALIASING = """
const { entry, sample } = await import(process.argv[1]);
const [path, nfes] = process.argv.slice(2);
const file = JSON.parse((await import("node:fs")).readFileSync(path, "utf8"));
const answer = (value, t) => Math.sin(2 * value + t), first = Float64Array.of(-1.5, 0.2, 1.1), buffer = first.slice();
const ways = [
  (x, t) => x.map((value) => answer(value, t)),
  (x, t) => { x.forEach((value, i) => (x[i] = answer(value, t))); return x; },
  (x, t) => { x.forEach((value, i) => (buffer[i] = answer(value, t))); return buffer; },
];
const results = [];
for (const nfe of JSON.parse(nfes)) {
  const each = [];
  for (const denoise of ways) each.push(Array.from(await sample(denoise, first, entry(file, nfe))));
  results.push(each);
}
console.log(JSON.stringify(results));
"""


@needs_node
def test_javascript_with_denoisers_that_write_in_place(path):
    words = [path, json.dumps(load(path).nfes)]
    result = node("--input-type=module", "-e", ALIASING, SAMPLER.as_uri(), *words)
    assert result.returncode == 0, result.stderr
    for plain, in_place, buffered in json.loads(result.stdout):
        assert plain == in_place == buffered


@needs_node
@pytest.mark.parametrize(
    ("array", "dtype"), [("Float64Array", torch.float64), ("Float32Array", torch.float32)]
)
def test_javascript_samples_the_same(path, array, dtype):
    artefact, start = load(path), torch.linspace(-1.5, 1.5, 9, dtype=dtype)
    words = [path, array, json.dumps(artefact.nfes), json.dumps(start.tolist())]
    result = node("--input-type=module", "-e", DRIVER, SAMPLER.as_uri(), *words)
    assert result.returncode == 0, result.stderr
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for nfe, results in zip(artefact.nfes, json.loads(result.stdout), strict=True):
        expected = sample(lambda x, t: torch.sin(2 * x + t), start, artefact.table(nfe))
        results = torch.tensor(results, dtype=dtype)
        torch.testing.assert_close(results, expected, rtol=tolerance, atol=tolerance)


BRANCHES = """
const { entry, sample } = await import(process.argv[1]);
const file = JSON.parse((await import("node:fs")).readFileSync(process.argv[2], "utf8"));
const shifts = { conditional: 0.5, unconditional: -0.2 };
const denoise = (x, t, branch) => x.map((value) => Math.sin(2 * value + t + shifts[branch]));
const x = await sample(denoise, Float64Array.of(-1.5, 0.2, 1.1), entry(file, 4, true));
console.log(JSON.stringify(Array.from(x)));
"""


@needs_node
def test_javascript_samples_branches(tmp_path):
    schedule, path = VPLinear(), tmp_path / "solver.json"
    table = SOLVERS["unipc-3-bh2"](schedule, log_snr(schedule, 2, 1e-3))
    save(path, [table.guided(3.0), SOLVERS["ddim"](schedule, log_snr(schedule, 4, 1e-3))])
    result = node("--input-type=module", "-e", BRANCHES, SAMPLER.as_uri(), path)
    assert result.returncode == 0, result.stderr

    def guided(x, t):
        return 3 * torch.sin(2 * x + t + 0.5) - 2 * torch.sin(2 * x + t - 0.2)

    expected = sample(guided, torch.tensor([-1.5, 0.2, 1.1], dtype=torch.float64), table)
    samples = torch.tensor(json.loads(result.stdout), dtype=torch.float64)
    torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)
    assert node(SAMPLER, path).stdout.count("NFE 4") == 2


@needs_node
def test_run_as_a_program_it_samples_every_solver_of_a_file(path):
    result = node(SAMPLER, path)
    assert result.returncode == 0, result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["NFE 2", "NFE 4", "NFE 6"]


@needs_node
def test_javascript_refuses_what_is_not_there(path, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    code = (
        'const { entry } = await import(process.argv[1]); const { readFileSync } = await import("node:fs");'
        "entry(JSON.parse(readFileSync(process.argv[2])), +process.argv[3])"
    )
    for file, message in [
        (path, "has no table for NFE 9; it has NFE 2, NFE 4, NFE 6"),
        (other, "not a solver file"),
    ]:
        result = node("--input-type=module", "-e", code, SAMPLER.as_uri(), file, 9)
        assert result.returncode == 1
        assert message in result.stderr


@needs_node
def test_javascript_tells_forward_passes_from_nfe_and_refuses_short_predictions(tmp_path):
    table = SOLVERS["ddim"](VPLinear(), log_snr(VPLinear(), 2, 1e-3))
    save(tmp_path / "solver.json", [table, table.guided(3.0)])
    code = (
        'const { entry, sample } = await import(process.argv[1]); const { readFileSync } = await import("node:fs");'
        "const file = JSON.parse(readFileSync(process.argv[2]));"
        "try { entry(file, 2, true); } catch (error) { console.log(error.message); }"
        "const short = sample(() => [1, 2], Float64Array.of(1, 2, 3), entry(file, 2));"
        "console.log(await short.catch((error) => error.message));"
    )
    result = node("--input-type=module", "-e", code, SAMPLER.as_uri(), tmp_path / "solver.json")
    assert result.stdout.splitlines() == [
        "the solver file has no table for 2 forward passes; it has NFE 2, 4 forward passes",
        "denoise must return 3 numbers, got 2",
    ]


def test_it_is_short_and_needs_no_package():
    lines = SAMPLER.read_text().splitlines()
    assert len(lines) < 66
    # Node's own modules are imported by the program alone: browsers have none.
    assert not [line for line in lines if line.startswith("import ")]
    assert {name for line in lines for name in re.findall(r'import\("(.*?)"\)', line)} == {
        "node:fs",
        "node:url",
    }
