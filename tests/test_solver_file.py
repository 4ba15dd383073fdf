"""The solver file: the same bits back, small, readable without us, and one clear line for anything else."""

import ast
import contextlib
import errno
import functools
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

import gas
from gas.classical.registry import SOLVERS, Classical
from gas.evaluation.solver_files import load_solver_files
from gas.io import JSON_DEPTH, add_checksum
from gas.learned.generalized import GeneralizedSolver
from gas.learned.guidance import GuidanceBNS
from gas.learned.s4s import S4S
from gas.paper.environment import environment
from gas.sampling import sample
from gas.schedule import EDMasVP, Flow, VPLinear
from gas.solver_file import load, save
from gas.table import Table, table_of
from gas.training.plan import steps_after
from support.covering import covering
from support.doubles import Mixture
from support.solvers import GRIDS, NAMES, SCHEDULES

EXAMPLE = Path(__file__).parents[1] / "examples" / "numpy_sampler.py"
FIELDS = ("times", "states", "outputs")
METADATA = {
    "guidance": 1.5,
    "teacher": {"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 40, "guidance": 1.5, "seed": None},
    "loss": "pseudo_huber",
    "training": {"iterations": 1000, "learning_rate": 2e-3, "ema": 0.99, "pairs": [512, 64]},
}


@dataclass(frozen=True)
class Other(Mixture):
    """A mixture that says something else about itself."""

    changed: dict = field(default_factory=dict)

    def fingerprint(self):
        return super().fingerprint() | self.changed


def learned(schedule, nfe=4, seed=0, size=0.1):
    """A Generalized Solver with all its numbers moved: times and corrections by ``size``, shifts by a fifth."""
    solver, generator = GeneralizedSolver(schedule, nfe, 1e-3), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in solver.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (size / 5 if name == "xi" else size) * noise
    return solver


def bits(table):
    return [getattr(table, name).detach().numpy().tobytes() for name in FIELDS]


def by_nfe(*nfes):
    return {
        "starts": dict.fromkeys(nfes, "unipc-2-bh2/log_snr"),
        "measured": {nfe: {"validation": 0.1 + 0.2, "mse": 1e-9 / nfe} for nfe in nfes},
    }


@functools.cache
def text():
    """A small file with something in every field."""
    schedule = EDMasVP(1e-3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.json"
        save(
            path,
            [learned(schedule, 1), learned(schedule, 2)],
            model=Mixture(schedule),
            **METADATA,
            **by_nfe(1, 2),
        )
        return path.read_text()


def edited(path, change):
    """A file that is right, its checksum too, but for one change made by hand, which may be too wrong for one."""
    content = json.loads(text())
    change(content)
    with contextlib.suppress(ValueError):
        content = add_checksum(content)
    path.write_text(json.dumps(content))
    return path


def refused(path, message, error=ValueError):
    """The file is refused in one line that names it."""
    with pytest.raises(error, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def read_or_refusal(path):
    """Return the artefact, or what the ValueError said; nothing else may happen."""
    try:
        return load(path)
    except ValueError as error:
        return str(error)


# --- what comes back ------------------------------------------------------------------------------------


@covering(nfe=[1, 2, 5, 10], schedule=SCHEDULES)
def test_a_learned_solver_comes_back(tmp_path, nfe, schedule):
    """The table to the bit; the solver, whose parameters are not in the file, to rounding."""
    for seed in range(3):
        solver = learned(schedule, nfe, seed)
        save(tmp_path / "s.json", solver)
        artefact = load(tmp_path / "s.json")
        assert bits(artefact.table(nfe)) == bits(solver())
        again = artefact.solver(nfe)
        for name in FIELDS:
            rebuilt, saved = getattr(again(), name), getattr(artefact.table(nfe), name)
            torch.testing.assert_close(rebuilt, saved, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again.t, solver.t, rtol=0, atol=1e-14)
        assert artefact.schedule == schedule
        assert artefact.entry(nfe).kind == "GeneralizedSolver"


@pytest.mark.parametrize("name", NAMES)
def test_a_table_comes_back_to_the_bit(tmp_path, name):
    table = SOLVERS[name](VPLinear(), GRIDS["karras"](VPLinear(), 5, 1e-3))
    save(tmp_path / "t.json", table)
    assert bits(load(tmp_path / "t.json").table(table.nfe)) == bits(table)


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3).flatmap(lambda n: st.lists(finite, min_size=n * (n + 2), max_size=n * (n + 2))))
@example([5e-324, -0.0, 1.7976931348623157e308])
def test_every_finite_number_comes_back_to_the_bit(numbers):
    n = math.isqrt(len(numbers) + 1) - 1
    values = torch.tensor(numbers, dtype=torch.float64)
    below = torch.ones(n, n, dtype=torch.bool).tril()
    matrices = [
        torch.where(below, m, torch.zeros(())) for m in values[n:].repeat(2)[: 2 * n * n].reshape(2, n, n)
    ]
    table = Table(values[:n].abs(), *matrices)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        save(path, table)
        assert bits(load(path).table(n)) == bits(table)


@pytest.mark.parametrize("folded", [False, True])
def test_one_file_holds_tables_with_and_without_branches(tmp_path, folded):
    path, plain = tmp_path / "t.json", [learned(VPLinear(), nfe) for nfe in (4, 2)]
    guided = plain[1]().detach().guided(7.5)
    guided = guided.folded() if folded else guided
    save(path, [guided, *plain], measured={2: {"mse": 1.0}, 4: {"mse": 2.0}})
    artefact = load(path)
    assert (artefact.nfes, artefact.forwards) == ([2, 4], [4])
    assert bits(artefact.table(nfe=4)) == bits(plain[0]())
    assert artefact.table(4).branches is None
    again = artefact.table(forwards=4)
    assert bits(again) == bits(guided)
    assert again.branches == guided.branches
    artefact.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"has no table for NFE 3; it has NFE 2, 4 and forward passes 4$"):
        artefact.table(3)
    with pytest.raises(
        ValueError, match=r"no table for 2 forward passes; it has NFE 2, 4 and forward passes 4$"
    ):
        artefact.table(forwards=2)
    for both in ({}, {"nfe": 4, "forwards": 4}):
        with pytest.raises(ValueError, match=r"name a table by nfe or by forwards, one of them"):
            artefact.table(**both)
    with pytest.raises(ValueError, match=r"one table for each NFE, got NFE \[4, 4\]"):
        save(path, [guided, guided])


def test_a_file_without_branches_has_the_bytes_of_a_library_without_them():
    """The fields of an entry, in order, as files had them before tables had branches."""
    names = ["nfe", "kind", "times", "states", "outputs", "theory", "nominal", "start", "measured"]
    for entry in json.loads(text())["solvers"]:
        assert list(entry) == [name for name in names if name in entry]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_family_with_all_it_can_say_is_small(tmp_path, schedule):
    path, model = tmp_path / "family.json", Mixture(schedule, name="Gemälde")
    family = {nfe: learned(schedule, nfe) for nfe in range(3, 11)}
    told = by_nfe(*family)
    written = save(path, family, model=model, **METADATA, **told)
    assert path.stat().st_size < 40_000
    artefact = load(path)
    assert artefact.document == written.document
    assert artefact.nfes == list(range(3, 11))
    for nfe, solver in family.items():
        assert bits(artefact.table(nfe)) == bits(solver())
        entry = artefact.entry(nfe)
        assert (entry.start, entry.measured) == (told["starts"][nfe], told["measured"][nfe])
        assert entry.nominal == solver.t.tolist()
    fields = artefact.document
    assert fields.model == model.fingerprint()
    assert (fields.t_end, fields.guidance, fields.loss) == (1e-3, 1.5, "pseudo_huber")
    assert (fields.teacher, fields.training) == (METADATA["teacher"], METADATA["training"])
    assert set(fields.versions) == {"gas-solver", "torch"}


def test_a_family_is_a_mapping_a_list_or_one(tmp_path):
    first_solver, two = learned(VPLinear(), 3), S4S(VPLinear(), 2, 1e-3)
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    for path, family in zip(
        paths, [[first_solver, two], {3: first_solver, 2: two}, first_solver], strict=True
    ):
        save(path, family)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [e.kind for e in load(paths[0]).document.solvers] == ["S4S", "GeneralizedSolver"]
    assert load(paths[2]).nfes == [3]


def test_a_solver_by_name_is_saved_as_its_table_on_the_schedule_of_the_model(tmp_path):
    model = Mixture()
    named = {n: Classical("ddim", "log_snr", n, model.t_end) for n in (2, 3)}
    for solvers in (named[2], list(named.values()), named, [named[2], named[3].table(model.schedule)]):
        save(tmp_path / "x.json", solvers, model=model)
        loaded = load(tmp_path / "x.json")
        for nfe in loaded.nfes:
            table, expected = loaded.table(nfe), named[nfe].table(model.schedule)
            for part in ("times", "states", "outputs"):
                assert torch.equal(getattr(table, part), getattr(expected, part))
            assert table.branches == expected.branches
    for solvers in (named[2], [named[2]], named):
        with pytest.raises(ValueError, match=r"Classical depends on a schedule: give model="):
            save(tmp_path / "none.json", solvers)
    for wrong in (None, 3, "ddim", Path("ddim"), loaded, [None], {2: "ddim"}):
        with pytest.raises(ValueError, match=r"solvers must be a gas\.Table, gas\.Classical.* got \w+$"):
            save(tmp_path / "none.json", wrong, model=model)
    assert not (tmp_path / "none.json").exists()


def test_a_file_says_the_version_of_this_library(monkeypatch):
    monkeypatch.setattr(gas, "__version__", "12.3")
    solver = GeneralizedSolver(VPLinear(), 2, 1e-3)
    assert save(None, solver).document.versions["gas-solver"] == environment()["gas-solver"] == "12.3"


def test_what_the_file_does_not_have_is_said(tmp_path):
    path = tmp_path / "f.json"
    save(path, [learned(Flow(), 3), learned(Flow(), 5)])
    for ask in (load(path).table, load(path).solver, load(path).entry):
        with pytest.raises(
            ValueError, match=rf"{re.escape(str(path))} has no table for NFE 4; it has NFE 3, 5$"
        ):
            ask(4)
    save(path, learned(Flow(), 3)().detach())
    assert load(path).schedule is None
    with pytest.raises(
        ValueError, match=r"f\.json does not say its schedule and t_end: it has tables, not solvers"
    ):
        load(path).solver(3)


# --- the ten lines of numpy -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numpy_sampler():
    spec = importlib.util.spec_from_file_location("numpy_sampler", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("schedule", [VPLinear(), Flow()], ids=["vp", "flow"])
def test_numpy_lines_sample_the_same(tmp_path, numpy_sampler, schedule):
    path, model = tmp_path / "f.json", Mixture(schedule)
    t = GRIDS["log_snr"](schedule, 3, 1e-3)
    save(
        path,
        [learned(schedule, 1), learned(schedule, 4), S4S(schedule, 2, 1e-3), SOLVERS["heun"](schedule, t)],
    )
    start = model.noise(range(16)).double()

    def denoise(x, t):
        return model.denoise(torch.from_numpy(x), torch.tensor(t, dtype=torch.float64)).numpy()

    for solver in json.loads(path.read_text())["solvers"]:
        expected = sample(model.denoise, start, load(path).table(solver["nfe"]))
        samples = torch.from_numpy(numpy_sampler.sample(denoise, start.numpy(), solver))
        torch.testing.assert_close(samples, expected, rtol=1e-12, atol=1e-12)


def test_numpy_lines_sample_branches(tmp_path, numpy_sampler):
    schedule, path = VPLinear(), tmp_path / "f.json"
    save(path, [learned(schedule, 3), learned(schedule, 3)().detach().guided(2.0)])
    start = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)
    shifts = {"conditional": 0.5, "unconditional": -0.2}
    solvers = {len(each["times"]): each for each in json.loads(path.read_text())["solvers"]}
    samples = numpy_sampler.sample(
        lambda x, t, branch: np.tanh(x + t + shifts[branch]), start.numpy(), solvers[6]
    )

    def guided(x, t):
        c, u = (torch.tanh(x + t + shifts[name]) for name in ("conditional", "unconditional"))
        return 2 * c - u

    expected = sample(guided, start, load(path).table(3))
    torch.testing.assert_close(torch.from_numpy(samples), expected, rtol=1e-12, atol=1e-12)


def test_numpy_lines_with_denoisers_that_write_in_place(numpy_sampler):
    solver = json.loads(save(None, learned(VPLinear(), 4)).document.model_dump_json())["solvers"][0]
    start, buffer = np.linspace(-1, 1, 5), np.empty(5)

    def written_to(memory):
        def denoise(x, t):
            return np.tanh(x + t, out=x if memory is None else memory)

        return denoise

    expected = numpy_sampler.sample(lambda x, t: np.tanh(x + t), start.copy(), solver)
    for memory in (None, buffer):
        assert np.array_equal(numpy_sampler.sample(written_to(memory), start.copy(), solver), expected)


def test_numpy_lines_leave_out_what_is_weighed_by_zero(numpy_sampler):
    solver = {"times": [1.0, 0.5], "states": [[1.0], [0.0, 0.5]], "outputs": [[1.0], [0.0, 0.0]]}
    solver["states"][0] = [0.0]
    predictions = iter([np.ones(3), np.full(3, np.inf)])
    x = numpy_sampler.sample(lambda x, t: next(predictions), np.full(3, np.inf), solver)
    assert np.array_equal(x, np.full(3, 0.5))


def test_numpy_lines_name_the_residuals_that_they_lack(tmp_path, numpy_sampler):
    solver = {"times": [1.0], "states": [[1.0]], "outputs": [[1.0]], "nfe": 1}
    solver["residuals"] = [{"row": 0, "config": {"states": 1, "outputs": 1}}]
    with pytest.raises(ValueError, match=r"has residuals: pass correct\(row, history\)"):
        numpy_sampler.sample(lambda x, t: x, np.zeros(3), solver)
    (tmp_path / "f.json").write_text(json.dumps({"solvers": [solver]}))
    result = subprocess.run([sys.executable, EXAMPLE, tmp_path / "f.json"], capture_output=True, text=True)
    assert (
        result.returncode == 1 and result.stderr == "this solver has residuals: pass correct(row, history)\n"
    )


def test_the_numpy_sampler_stands_alone(tmp_path, numpy_sampler, capsys):
    tree = ast.parse(EXAMPLE.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"json", "sys", "numpy"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "sample")
    assert function.end_lineno - function.lineno < 21
    save(tmp_path / "f.json", [learned(VPLinear(), 3), learned(VPLinear(), 5)])
    numpy_sampler.main(tmp_path / "f.json")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["NFE 3", "NFE 5"]


# --- what is refused ------------------------------------------------------------------------------------


def put(value, *keys):
    """Return a change that sets one value deep inside."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


WRONG = {
    "version 2": (put(2, "version"), "has version 2, this library reads version 1: upgrade gas-solver"),
    "version text": (put("1", "version"), "has version '1', this library reads version 1"),
    "no version": (lambda c: c.pop("version"), "has version None, this library"),
    "other format": (put("csv", "format"), 'is not a solver file: it lacks "format": "gas-solver"'),
    "no format": (lambda c: c.pop("format"), "is not a solver file"),
    "no solvers": (lambda c: c.pop("solvers"), "solvers: Field required"),
    "empty solvers": (put([], "solvers"), "solvers: List should have at least 1 item"),
    "no times": (lambda c: c["solvers"][1].pop("times"), r"solvers\.1\.times: Field required"),
    "unknown at the top": (put(1, "noise_scale"), "noise_scale: Extra inputs are not permitted"),
    "unknown in a solver": (put([], "solvers", 1, "noise"), r"solvers\.1\.noise: Extra inputs"),
    "unknown in the schedule": (
        put(1, "schedule", "beta"),
        "'edm_vp' does not take these parameters.*'beta'",
    ),
    "unknown on two lines": (put(1, "a\nb"), "a b: Extra inputs"),
    "schedule kind": (
        put("cosine", "schedule", "kind"),
        r"schedule kind must be one of \[.*\], got 'cosine'",
    ),
    "schedule kind is a list": (put(["flow"], "schedule", "kind"), r"schedule kind must .* got \['flow'\]"),
    "no schedule kind": (lambda c: c["schedule"].pop("kind"), "schedule kind must .* got None"),
    "schedule number": (put(-1.0, "schedule", "sigma_min"), "needs .* 0 < sigma_min < sigma_max, got"),
    "schedule text": (put("a", "schedule", "sigma_min"), "does not take these parameters"),
    "schedule too large": (put(10**400, "schedule", "sigma_max"), "10{23}... is not a finite number"),
    "t_end above": (put(1.0, "t_end"), "t_end: Input should be less than 1"),
    "t_end below": (put(-0.1, "t_end"), "t_end: Input should be greater than or equal to 0"),
    "nfe": (put(0, "solvers", 0, "nfe"), r"solvers\.0\.nfe: Input should be greater"),
    "nfe and rows": (put(3, "solvers", 1, "nfe"), r"solvers\.1: .*times of NFE 3 must be 3 numbers, got 2"),
    "too few times": (put([1.0], "solvers", 1, "times"), "times of NFE 2 must be 2 numbers, got 1"),
    "a times row": (
        put([[1.0], [0.5]], "solvers", 1, "times"),
        r"solvers\.1\.times\.0: Input should be a valid",
    ),
    "long row": (put([1.0, 2.0], "solvers", 1, "states", 0), r"states of NFE 2 .* got rows of \[2, 2\]"),
    "short row": (
        put([1.0], "solvers", 1, "outputs", 1),
        r"outputs of NFE 2 .* 1 to 2 numbers, got rows of \[1, 1\]",
    ),
    "a row too few": (put([[1.0]], "solvers", 1, "outputs"), r"outputs of NFE 2 must .* got rows of \[1\]"),
    "a flat matrix": (
        put([1.0, 1.0], "solvers", 1, "states"),
        r"solvers\.1\.states\.0: Input should be a valid list",
    ),
    "text weight": (
        put(["x"], "solvers", 0, "states", 0),
        r"solvers\.0\.states\.0\.0: Input should be a valid number",
    ),
    "null weight": (
        put([None], "solvers", 0, "states", 0),
        r"solvers\.0\.states\.0\.0: Input should be a valid",
    ),
    "negative time": (
        put([1.0, -0.5], "solvers", 1, "times"),
        r"times of NFE 2 must not be negative, got -0\.5",
    ),
    "nominal length": (
        put([1.0, 0.1], "solvers", 1, "nominal"),
        "nominal times of NFE 2 must be 3 numbers, got 2",
    ),
    "nominal order": (
        put([1.0, 0.1, 0.2], "solvers", 1, "nominal"),
        "must decrease strictly, but time 2 is 0.2",
    ),
    "twice one NFE": (
        lambda c: c["solvers"].append(c["solvers"][0]),
        r"each NFE may have one table, got NFE \[1, 1, 2\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_named(tmp_path, case):
    change, message = WRONG[case]
    refused(edited(tmp_path / "f.json", change), message)


def ranged(nfe=3, degree=2, branched=False):
    """A solver of guidance 1 to 8 with all its numbers moved."""
    table = learned(VPLinear(), nfe)().detach()
    table = table.guided(2.0) if branched else table
    solver = GuidanceBNS.from_table(VPLinear(), table, 1e-3, scales=(1.0, 8.0), reference=2.0, degree=degree)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += 0.05 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    return solver


@pytest.mark.parametrize("degree", [1, 2])
def test_a_solver_of_a_range_of_guidance_comes_back_at_every_scale(tmp_path, degree):
    solvers, path = [ranged(3, degree), ranged(2, degree, branched=True)], tmp_path / "t.json"
    save(path, solvers, model=Mixture())
    artefact = load(path)
    assert artefact.document.scales == (1.0, 8.0)
    for scale in (1.0, 2.0, 3.7, 8.0):
        single = artefact.at(scale)
        assert single.document.guidance == scale
        assert bits(single.table(3)) == bits(table_of(solvers[0], scale))
        assert bits(single.table(forwards=4)) == bits(table_of(solvers[1], scale))
        assert single.table(forwards=4).branches == solvers[1].branches
    assert bits(artefact.table(3)) == bits(table_of(solvers[0]))
    artefact.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    # A file of one scale is a file like any other.
    artefact.at(3.7).write(tmp_path / "single.json")
    assert load(tmp_path / "single.json").document.guidance_range is None
    assert bits(load(tmp_path / "single.json").table(3)) == bits(table_of(solvers[0], 3.7))


@pytest.mark.parametrize("schedule", [VPLinear(), Flow()], ids=["vp", "flow"])
def test_a_range_whose_reference_lies_beyond_the_times_comes_back_at_every_scale(schedule):
    table = SOLVERS["ddim"](schedule, GRIDS["time_uniform"](schedule, 3, 1e-3))
    solver = GuidanceBNS.from_table(schedule, table, 1e-3, scales=(1.0, 8.0), reference=2.0)
    with torch.no_grad():
        solver.times[0, 0], solver.times[1, 0] = 1.03, -0.1
        solver.times[0, 2], solver.times[1, 2] = -0.2, 0.3
    artefact = save(None, solver)
    for scale in (1.0, 2.0, 3.7, 8.0):
        assert bits(artefact.at(scale).table(3)) == bits(table_of(solver, scale))


def test_a_scale_that_a_file_does_not_serve_is_refused(tmp_path):
    path = tmp_path / "t.json"
    save(path, ranged(), model=Mixture())
    with pytest.raises(gas.UserError, match=r"t\.json serves guidance 1 to 8, got 9: train it for that$"):
        load(path).at(9)
    load(path).check(Mixture(), 7.5)
    with pytest.raises(gas.UserError, match=r"guidance 1 to 8 \(this model: 0\.5\)$"):
        load(path).check(Mixture(), 0.5)
    with pytest.raises(gas.UserError, match=r"the solvers of one file serve the same guidance scales"):
        save(path, [ranged(), learned(VPLinear(), 4)])
    with pytest.raises(gas.UserError, match=r"reference scale, 2, got 5: leave it out"):
        save(path, ranged(), guidance=5.0)
    save(path, ranged(), guidance=2.0)
    assert load(path).document.guidance == 2.0
    save(path, learned(VPLinear()), guidance=2.0)
    assert load(path).at(2.0) == load(path)
    with pytest.raises(gas.UserError, match=r"t\.json serves guidance 2, got 3"):
        load(path).at(3)


def test_the_file_of_a_start_is_read_once(tmp_path):
    from gas.cli.options import OptimizerOptions

    path = tmp_path / "start.json"
    save(path, learned(VPLinear()))
    optimizer = OptimizerOptions(start=str(path))
    search = optimizer.search
    path.unlink()
    assert optimizer.config() == steps_after(search)


def test_files_are_compared_at_one_guidance(tmp_path):
    paths = wide, single = tmp_path / "range.json", tmp_path / "single.json"
    save(wide, ranged(), model=Mixture())
    save(single, learned(VPLinear(), 3), model=Mixture(), guidance=4.0)
    for files, guidance in (((single, wide), None), (paths, 4.0)):
        files_loaded = load_solver_files(files, Mixture(), guidance=guidance)
        tables = [artefact.table(3) for artefact in files_loaded.values()]
        expected = {wide: table_of(ranged(), 4.0), single: load(single).table(3)}
        assert [bits(table) for table in tables] == [bits(expected[file]) for file in files]
        assert {artefact.document.guidance for artefact in files_loaded.values()} == {4.0}
    message = r"single\.json serves guidance 4, and .*range\.json is measured at 2: measure files of other"
    for transfer in (False, True):
        with pytest.raises(gas.UserError, match=message):
            load_solver_files(paths, Mixture(), transfer=transfer)


PAIRED = "guidance_range and the terms of every table need each other"
RANGES = {
    "no terms": (lambda c: c["solvers"][0].pop("terms"), PAIRED),
    "no range": (lambda c: c.pop("guidance_range"), PAIRED),
    "one end": (put([1.0], "guidance_range"), "guidance_range: List should have at least 2 items"),
    "downwards": (put([8.0, 1.0], "guidance_range"), "guidance must lie in a range, got 2 in 8 to 1"),
    "outside": (put(9.0, "guidance"), "guidance must lie in a range, got 9 in 1 to 8"),
    "no schedule": (lambda c: c.pop("schedule"), "guidance_range needs the schedule and t_end"),
    "no t_end": (lambda c: c.pop("t_end"), "guidance_range needs the schedule and t_end"),
    "no term": (put([], "solvers", 0, "terms"), r"terms: List should have at least 1 item"),
    "many terms": (
        lambda c: c["solvers"][0].update(terms=9 * c["solvers"][0]["terms"][:1]),
        r"terms: List should have at most 8 items",
    ),
    "short term": (
        put([1.0, 0.5], "solvers", 0, "terms", 1, "times"),
        "times of NFE 3 must be 3 numbers, got 2",
    ),
    "square term": (
        put([1.0, 1.0], "solvers", 0, "terms", 0, "outputs", 0),
        r"outputs of NFE 3 must have rows of 1 to 3 numbers, got rows of \[2, 2, 3\]",
    ),
    "unknown": (put(1, "solvers", 0, "terms", 0, "u"), r"terms\.0\.u: Extra inputs"),
}


@pytest.mark.parametrize("case", RANGES)
def test_a_damaged_range_is_named(tmp_path, case):
    change, message = RANGES[case]
    save(tmp_path / "f.json", ranged(), model=Mixture())
    content = json.loads((tmp_path / "f.json").read_text())
    change(content)
    (tmp_path / "f.json").write_text(json.dumps(add_checksum(content)))
    refused(tmp_path / "f.json", message)


PLACES = [
    ("t_end",),
    ("guidance",),
    ("schedule", "sigma_max"),
    ("teacher", "nfe"),
    ("training", "ema"),
    ("model", "sample_shape"),
    ("solvers", 0, "times", 0),
    ("solvers", 1, "states", 1, 0),
    ("solvers", 1, "outputs", 1, 1),
    ("solvers", 1, "nominal", 1),
    ("solvers", 1, "measured", "mse"),
]


@pytest.mark.parametrize("shift", ["three", [3], 0, -1, True])
def test_a_shift_that_is_no_number_is_refused(tmp_path, shift):
    refused(edited(tmp_path / "f.json", put(shift, "model", "shift")), "model.shift")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_not_a_finite_number_is_refused_anywhere(tmp_path, place, literal):
    path = edited(tmp_path / "f.json", put("HERE", *place))
    path.write_text(path.read_text().replace('"HERE"', literal))
    # 1e999 is well-formed JSON that Python reads as infinity.
    refused(
        path, "finite|compliant|needs" if literal == "1e999" else f"not valid JSON: {literal} is not a number"
    )


def test_depth_is_bounded(tmp_path):
    path = edited(tmp_path / "f.json", put("HERE", "training", "deep"))
    with_hole = path.read_text()
    for depth in (100_000, 1000, JSON_DEPTH - 1):  # two levels are around it
        path.write_text(with_hole.replace('"HERE"', "[" * depth + "]" * depth))
        refused(path, f"nested {depth + 2:,} levels deep, more than {JSON_DEPTH}")
    edited(path, put(json.loads("[" * (JSON_DEPTH - 2) + "]" * (JSON_DEPTH - 2)), "training", "deep"))
    assert load(path).nfes == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not valid JSON: Expecting value: line 1 column 1"),
        (b"import os", "is not valid JSON"),
        (b"PK\x03\x04\x00\xff\xfe", "is not valid JSON"),
        (bytes(range(256)), "is not valid JSON"),
        (b"\xef\xbb\xbf{}", "is not a solver file"),
        (b"[]", "is not a solver file"),
        (b"{}", "is not a solver file"),
        (b"null", "is not a solver file"),
        (b'"gas-solver"', "is not a solver file"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, data, message):
    path = tmp_path / "f.json"
    path.write_bytes(data)
    refused(path, message)


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path):
    path, whole = tmp_path / "f.json", text().encode()
    for end in range(0, len(whole), 13):
        path.write_bytes(whole[:end])
        refused(path, "is not valid JSON")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "none.json", "no such file", FileNotFoundError)


INTERESTING = b'0123456789eE.+-,:[]{}"\\ntfuN \n\x00\x7f\xc3\xff'


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    where=st.integers(0, 10_000),
    how=st.sampled_from(["replace", "insert", "delete"]),
    byte=st.sampled_from(INTERESTING) | st.integers(0, 255),
)
def test_one_damaged_character_is_refused_or_leaves_a_well_formed_file(where, how, byte):
    data = bytearray(text().encode())
    where %= len(data)
    data[where : where + (how != "insert")] = b"" if how == "delete" else bytes([byte])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.json"
        path.write_bytes(data)
        artefact = read_or_refusal(path)
        if isinstance(artefact, str):
            assert str(path) in artefact
            assert "\n" not in artefact
            return
        assert len(set(artefact.nfes)) == len(artefact.document.solvers) == 2
        alpha, sigma = artefact.schedule(0.5)
        assert math.isfinite(alpha) and math.isfinite(sigma)
        for nfe in artefact.nfes:
            table = artefact.table(nfe)
            assert table.nfe == nfe
            assert all(bool(torch.isfinite(getattr(table, name)).all()) for name in FIELDS)
        assert type(artefact.document).model_validate(artefact.document.model_dump()) == artefact.document


# --- for whom -------------------------------------------------------------------------------------------


def test_the_model_it_was_made_for_passes(tmp_path):
    model = Mixture(EDMasVP(1e-3))
    save(tmp_path / "f.json", learned(model.schedule), model=model, guidance=1.5)
    load(tmp_path / "f.json").check(model, 1.5)
    save(tmp_path / "f.json", learned(model.schedule)().detach())
    load(tmp_path / "f.json").check(Other(Flow(), name="any"))


MODEL_OF_FILE = Other()
OTHERS = {
    "model": (replace(MODEL_OF_FILE, name="rings"), 1.0, r"name mixture \(this model: rings\)"),
    "weights": (
        replace(MODEL_OF_FILE, changed={"sha256": "1" * 64}),
        1.0,
        r"sha256 000000000000\.\.\. \(this model: 111111111111\.\.\.\)",
    ),
    "shape": (
        replace(MODEL_OF_FILE, sample_shape=(3, 4)),
        1.0,
        r"sample shape \(2,\) \(this model: \(3, 4\)\)",
    ),
    "prediction": (
        replace(MODEL_OF_FILE, changed={"prediction": "v"}),
        1.0,
        r"prediction x0 \(this model: v\)",
    ),
    "schedule": (
        replace(MODEL_OF_FILE, schedule=VPLinear(0.2, 20.0)),
        1.0,
        "schedule vp_linear with other noise levels",
    ),
    "schedule kind": (replace(MODEL_OF_FILE, schedule=Flow()), 1.0, "schedule vp_linear"),
    "guidance": (MODEL_OF_FILE, 2.5, r"guidance 1 \(this model: 2\.5\)"),
}


@pytest.fixture
def artefact_of_model(tmp_path):
    save(tmp_path / "f.json", learned(VPLinear()), model=MODEL_OF_FILE)
    return load(tmp_path / "f.json")


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_or_use_is_refused(artefact_of_model, other):
    model, guidance, message = OTHERS[other]
    artefact_of_model.check(MODEL_OF_FILE)
    with pytest.raises(ValueError, match=f"f.json was made for another model or use: {message}") as caught:
        artefact_of_model.check(model, guidance)
    assert "; " not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_differs_is_named_at_once(artefact_of_model):
    other = Other(Flow(), name="rings", sample_shape=(3,), changed={"sha256": "1" * 64})
    with pytest.raises(ValueError, match=r"name .*; sha256 .*; sample shape .*; schedule .*; guidance "):
        artefact_of_model.check(other, 3.0)


# --- writing --------------------------------------------------------------------------------------------


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(path, data):
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
    full_disk()


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [(Path, "write_bytes", half_written), (os, "fsync", full_disk), (Path, "replace", full_disk)],
    ids=["write", "fsync", "rename"],
)
@pytest.mark.parametrize("old", [True, False])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, owner, name, failure, old):
    path = tmp_path / "f.json"
    if old:
        save(path, learned(VPLinear(), 2))
    before = [(p, p.read_bytes()) for p in tmp_path.iterdir()]
    monkeypatch.setattr(owner, name, failure)
    with pytest.raises(OSError, match="No space left"):
        save(path, learned(VPLinear(), 3))
    monkeypatch.undo()
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == before


@pytest.mark.parametrize(
    ("solvers", "settings", "message"),
    [
        ([learned(VPLinear(), 2), learned(Flow(), 2)], {}, r"one table for each NFE, got NFE \[2, 2\]"),
        ([], {}, r"one table for each NFE, got NFE \[\]"),
        (learned(VPLinear(), 2), {"measured": {2: {"mse": math.nan}}}, "measured mse of NFE 2 must lie in"),
        (learned(VPLinear(), 2), {"training": {"rates": [1.0, math.inf]}}, "not JSON compliant"),
        (learned(VPLinear(), 2), {"teacher": {"guidance": math.nan}}, "not JSON compliant"),
        (learned(VPLinear(), 2), {"guidance": math.inf}, "guidance must lie in"),
        (learned(VPLinear(), 2), {"guidance": "2"}, "guidance must be a number in .*, got '2'"),
        (learned(VPLinear(), 2), {"teacher": {"nfe": "x"}}, "teacher.nfe must be an integer, got 'x'"),
        (learned(VPLinear(), 2), {"teacher": [1]}, "teacher must be an object of plain JSON, got a list"),
        (
            learned(VPLinear(), 2),
            {"training": {"x": object()}},
            "training must be plain JSON: Unable to serialize",
        ),
        (learned(VPLinear(), 2), {"loss": 5}, "this solver file: loss: Input should be a valid string"),
        (learned(VPLinear(), 2), {"starts": {2: 5}}, "a start must be the name of a solver, got 5"),
        (
            learned(VPLinear(), 2),
            {"starts": {4: "ddim/edm"}},
            r"starts must be by NFE of the tables, \[2\], got 4",
        ),
        (
            learned(VPLinear(), 2),
            {"measured": {"2": {}}},
            r"measured must be by NFE of the tables, \[2\], got '2'",
        ),
        (learned(VPLinear(), 2), {"measured": {2: 5}}, "what was measured must be numbers by name, got 5"),
        (torch.nn.ModuleList([learned(VPLinear(), 2)]), {}, "a ModuleList has no forward"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path, solvers, settings, message):
    with pytest.raises(gas.UserError, match=message) as refusal:
        save(tmp_path / "f.json", solvers, **settings)
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


def test_the_file_is_readable_in_a_diff():
    """Each list of numbers is one line, so that a learned number that moved is a line that moved."""
    lines = [line.strip() for line in text().splitlines()]
    assert sum(line.startswith('"times": [') for line in lines) == 2
    numbers = [line for line in lines if re.fullmatch(r"\[[-0-9e., ]+\],?", line)]
    assert len(numbers) == 2 * (1 + 2)  # the rows of two matrices of NFE 1 and 2
    assert not any(a == "[" and b == "[" for a, b in itertools.pairwise(lines))


def test_an_artefact_is_shown_in_a_line_however_long_its_schedule(tmp_path):
    model = gas.OwnModel(lambda x, t: 0 * x, SCHEDULES["vp_discrete"], sample_shape=(2,))
    path = tmp_path / "solver.json"
    artefact = save(path, Classical("ddim", "log_snr", 3, 1e-3).table(model.schedule), model=model)
    assert repr(artefact) == f"Artefact({str(path)!r}, NFE 3, model 'own')"


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ({}, "GS"),
        ({"solver": None}, "GS"),
        ({"solver": "ld3"}, "LD3"),
        ({"solver": "LD3"}, "LD3"),  # as gas compare records its methods
        ({"solver": "gs", "objective": "gas"}, "GAS"),
    ],
)
def test_a_file_is_shown_by_the_name_of_its_method(training, name):
    artefact = save(None, learned(SCHEDULES["vp_linear"]), model=Mixture(), training=training)
    assert gas.evaluation.solver_files.display_name(artefact, Mixture()) == name
