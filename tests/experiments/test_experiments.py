"""Experiments: every result is made once, stored, made again when its fingerprint changes, and reported truly."""

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from gas import grids
from gas.classical.registry import Classical, candidates, format_times
from gas.evaluation.evaluator import Evaluator, SolverMetrics
from gas.evaluation.sampler import sample_pairs
from gas.evaluation.spaces import FeatureSpace
from gas.experiments import runner
from gas.experiments.experiment import Budget, Experiment
from gas.experiments.methods import ClassicalMethod, SolverResult, method_by_name
from gas.experiments.pictures import draw
from gas.experiments.report import Report, ReportedResults
from gas.experiments.runner import TrainingReport, run_experiment, run_method
from gas.experiments.store import MethodResult, Store
from gas.experiments.tables import MEASURES, difference_table, pivot_table
from gas.learned.registry import SOLVERS as KINDS
from gas.metrics import paired
from gas.metrics.distances import distribution
from gas.metrics.intervals import mean_interval
from gas.schedule import VPLinear
from gas.solver_file import load
from gas.training.gauss_newton import GaussNewton
from gas.training.ranking import best_classical
from gas.training.trajectory_grid import gits
from support.covering import covering
from support.doubles import MIXTURE as MODEL, taught

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "short_runs")

BUDGET = Budget(GaussNewton(iterations=4, batch=16, growth=1.0), rank=16, guides=16)


@pytest.fixture(scope="module")
def pairs():
    return taught(range(64)), taught(range(1000, 1032)), taught(range(5000, 5064))


def experiment_of(pairs, folder=None, budget=BUDGET):
    return Experiment(MODEL, pairs[0], pairs[1], budget, folder)


def evaluator_of(pairs, fingerprint=None):
    return Evaluator(pairs[2], FeatureSpace(fingerprint=fingerprint or {}))


def run_all(experiment, evaluator, specs, nfes, folder):
    methods = [method_by_name(spec) for spec in specs]
    running = run_experiment(
        experiment, evaluator, methods, nfes, Store(folder), lambda s, n: f"make {s} {n}"
    )
    reports = list(running)
    return [report for report in reports if isinstance(report, MethodResult)], reports


@pytest.mark.slow
def test_a_grid_has_every_cell_and_each_is_what_its_table_makes(pairs, tmp_path):
    specs = ["ddim", "unipc-2-bh2/log_snr", "gits", "ipndm-2/gits", "dmn", "ld3", "gs", "gs@uniform"]
    cells, _ = run_all(experiment_of(pairs, tmp_path), evaluator_of(pairs), specs, [2, 3], tmp_path)
    assert [(c.spec, c.nfe) for c in cells] == [("teacher", 0), *((s, n) for n in (2, 3) for s in specs)]
    for cell in cells[1:]:
        samples = sample_pairs(MODEL, pairs[2], cell.table)
        errors = paired.mse(samples, pairs[2].target)
        torch.testing.assert_close(cell.errors.double(), errors, rtol=1e-5, atol=1e-10)
        assert cell.metrics.mse == pytest.approx(float(errors.mean()))
        assert cell.command == f"make {cell.spec} {cell.nfe}"
        file = load(Store(tmp_path).solver(cell.spec, cell.nfe))
        assert torch.equal(file.table(cell.nfe).outputs, cell.table.outputs)
        file.check(MODEL)
    by_name = {(c.spec, c.nfe): c for c in cells}
    named = Classical("unipc-2-bh2", "log_snr", 3, MODEL.t_end).table(MODEL.schedule)
    assert torch.equal(by_name["unipc-2-bh2/log_snr", 3].table.outputs, named.outputs)
    t = gits(MODEL, pairs[0].subset(slice(0, 16)), 3)
    on_gits = Classical("ipndm-2", format_times(t), 3, MODEL.t_end).table(MODEL.schedule)
    assert torch.equal(by_name["ipndm-2/gits", 3].table.times, on_gits.times)
    assert by_name["gs@uniform", 3].origin == "dpmpp-3m / time_uniform"
    assert by_name["gs", 3].origin == by_name["ld3", 3].origin  # one start for all
    assert by_name["gs", 3].metrics.mse < by_name["ddim", 3].metrics.mse


def test_the_best_grid_is_the_best_on_the_pairs_that_choose(pairs, tmp_path):
    (_, cell), _ = run_all(experiment_of(pairs, tmp_path), evaluator_of(pairs), ["ddim"], [3], tmp_path)
    some = pairs[1].subset(slice(0, 16))
    losses = {}
    for grid in grids.GRIDS:
        if grid != "flow_shifted":
            table = Classical("ddim", grid, 3, MODEL.t_end).table(MODEL.schedule)
            losses[grid] = float(paired.mse(sample_pairs(MODEL, some, table), some.target).mean())
    assert cell.origin == f"ddim / {min(losses, key=losses.get)}"


def test_a_baseline_runs_on_the_grid_that_is_best_on_all_pairs():
    # The seeds come in an order that lets the second best of all look best on the first 64.
    entries = list(candidates(MODEL.schedule, 6, MODEL.t_end, solvers=["ipndm-2"]))
    pairs = taught(range(700, 956))
    errors = {c.label: paired.mse(sample_pairs(MODEL, pairs, table), pairs.target) for c, table in entries}
    first, second = sorted(errors, key=lambda label: float(errors[label].mean()))[:2]
    order = (errors[second] - errors[first]).argsort()
    assert errors[second][order[:64]].mean() < errors[first][order[:64]].mean()
    best = best_classical(MODEL, taught((700 + order).tolist()), 6, ["ipndm-2"])
    assert best.classical.label == first


def counted(monkeypatch):
    """The methods that are made, and those that are measured, from now on."""
    trained, measured = [], []
    make, measure = runner._Runner._make, Evaluator.measure

    def making(self, method, nfe, base):
        trained.append((method.spec, nfe))
        return make(self, method, nfe, base)

    def measuring(self, name, samples, nfe):
        measured.append((name, nfe))
        return measure(self, name, samples, nfe)

    monkeypatch.setattr(runner._Runner, "_make", making)
    monkeypatch.setattr(Evaluator, "measure", measuring)
    return trained, measured


@pytest.mark.slow
def test_a_cell_is_made_anew_only_when_what_decides_it_changes(pairs, tmp_path, monkeypatch):
    experiment, evaluator, specs = experiment_of(pairs, tmp_path), evaluator_of(pairs), ["ddim", "gs"]
    clock = itertools.count()
    monkeypatch.setattr(runner.time, "perf_counter", lambda: float(next(clock)))
    first, _ = run_all(experiment, evaluator, specs, [2], tmp_path)
    trained, measured = counted(monkeypatch)
    again, _ = run_all(experiment, evaluator, specs, [2], tmp_path)
    assert (trained, measured) == ([], [])
    for a, b in zip(first, again, strict=True):
        assert a.row() == b.row()
        assert torch.equal(a.errors.float(), b.errors)
    # Whatever is measured now took no time.
    monkeypatch.setattr(runner.time, "perf_counter", lambda: 0.0)
    others, _ = run_all(experiment, evaluator_of(pairs, {"features": "others"}), specs, [2], tmp_path)
    assert trained == []
    assert [c.seconds for c in others[1:]] == [c.seconds for c in first[1:]]  # of making them
    assert min(c.seconds for c in first[1:]) > 0
    assert [name for name, _ in measured] == ["teacher", "DDIM = DPM-Solver++(1M)", "GS"]
    longer = replace(BUDGET, config=replace(BUDGET.config, iterations=5))
    run_all(experiment_of(pairs, tmp_path, longer), evaluator, specs, [2], tmp_path)
    assert trained == [("gs", 2)]  # classical solvers cost no training
    run_all(experiment_of(pairs, tmp_path, longer), evaluator, [*specs, "dmn"], [2], tmp_path)
    assert trained == [("gs", 2), ("dmn", 2)]


@covering(
    broken=["cells/ddim+karras-2.json", "cells/ddim+karras-2.safetensors", "solvers/ddim+karras-2.json"],
    how=["gone", "cut", "foreign"],
)
def test_a_damaged_cell_is_made_anew(pairs, tmp_path, monkeypatch, broken, how):
    experiment, evaluator = experiment_of(pairs, tmp_path), evaluator_of(pairs)
    first, _ = run_all(experiment, evaluator, ["ddim/karras"], [2], tmp_path)
    path = tmp_path / broken.format("ddim+karras-2")
    data = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(data[:-9] if how == "cut" else b"[1, 2]")
    trained, _ = counted(monkeypatch)
    again, _ = run_all(experiment, evaluator, ["ddim/karras"], [2], tmp_path)
    assert trained == [("ddim/karras", 2)]
    assert again[1].metrics == first[1].metrics


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(pairs, tmp_path, monkeypatch):
    whole, _ = run_all(
        experiment_of(pairs, tmp_path / "a"), evaluator_of(pairs), ["ddim", "gs"], [2], tmp_path / "a"
    )
    rows = [method_by_name(spec) for spec in ("ddim", "gs")]
    folder = tmp_path / "b"
    experiment, evaluator = experiment_of(pairs, folder), evaluator_of(pairs)
    running = run_experiment(experiment, evaluator, rows, [2], Store(folder))
    for report in running:
        if isinstance(report, TrainingReport) and report.record.iteration == 2:
            break
    running.close()
    assert len(list((folder / "state").glob("*.pt"))) == 1
    trained, _ = counted(monkeypatch)
    cells, reports = run_all(experiment, evaluator, ["ddim", "gs"], [2], folder)
    assert trained == [("gs", 2)]
    assert (
        min(r.record.iteration for r in reports if isinstance(r, TrainingReport)) == 4
    )  # not from the start
    assert torch.equal(cells[2].table.outputs, whole[2].table.outputs)
    assert list((folder / "state").glob("*.pt")) == []


class After(ClassicalMethod):
    """A method that continues from GS, as GAS does, without the cost of a discriminator."""

    def make(self, experiment, nfe, base):
        yield SolverResult(base.solver, base.origin, base.evaluations + 1)


@pytest.mark.slow
def test_the_base_of_a_method_is_stored_but_not_reported(pairs, tmp_path, monkeypatch):
    experiment, evaluator, store = experiment_of(pairs, tmp_path), evaluator_of(pairs), Store(tmp_path)
    gs = method_by_name("gs")
    after = After("after", "After", ("ddim",), "", gs)
    trained, _ = counted(monkeypatch)
    results = [
        c for c in run_experiment(experiment, evaluator, [after], [2], store) if isinstance(c, MethodResult)
    ]
    assert [c.spec for c in results] == ["teacher", "after"]
    assert trained == [("gs", 2), ("after", 2)]
    stored = store.read("gs", 2)
    assert results[1].evaluations == stored.evaluations + 1
    again = run_experiment(experiment, evaluator, [gs, after], [2], store)
    assert [c for c in again if isinstance(c, TrainingReport)] == []
    assert run_method(experiment, evaluator, after, 2, store).row() == results[1].row()


def test_what_blows_up_says_so_and_spoils_nothing_else(pairs, tmp_path):
    evaluator = evaluator_of(pairs)
    running = runner._Runner(experiment_of(pairs), evaluator, Store(tmp_path), lambda spec, nfe: "")
    broken = running._measurements("x", torch.full((64, 2), torch.nan), 2)
    assert broken["metrics"] is None
    assert "pictures" not in broken
    good, _ = run_all(experiment_of(pairs, tmp_path), evaluator, ["ddim"], [2], tmp_path)
    bad = replace(good[1], spec="x", label="X", **broken)
    table = pivot_table([*good, bad], MEASURES["mse"])
    assert [entries[0].mark for _, entries in table.rows] == ["", ""]  # there is nothing to be better than
    assert table.rows[1][1][0].text == "diverged"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("unipcc", "unknown solver 'unipcc': did you mean 'unipc'"),
        ("ddim/log-snr", "unknown grid 'log-snr': did you mean 'log_snr'"),
        ("ddim@uniform", "only learned solvers have a start"),
        ("LD3", "did you mean"),
    ],
)
def test_unknown_names_are_refused(spec, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        method_by_name(spec)


def test_every_name_is_someone():
    for spec in ("classical", "dpmpp", "unipc", "ipndm", "deis", "gits", "dmn", "oss-wan", *KINDS, "gas"):
        method = method_by_name(spec)
        assert method.spec == spec
        category = "learned" if spec in (*KINDS, "gas") else None
        assert category in (None, method.category)
    assert method_by_name("gas@uniform").base == method_by_name("gs@uniform")
    assert method_by_name("gs", "uniform").start == "uniform"


def test_what_exists_at_no_nfe_is_refused_and_at_some_is_left_out(pairs, tmp_path):
    experiment, evaluator = experiment_of(pairs, tmp_path), evaluator_of(pairs)
    cells, _ = run_all(experiment, evaluator, ["ddim", "heun"], [2, 3], tmp_path)
    assert [(c.spec, c.nfe) for c in cells[1:]] == [("ddim", 2), ("heun", 2), ("ddim", 3)]
    for specs, text in ((["heun"], "nfe must be even"), (["gits-sd15"], "needs noise from sigma/alpha")):
        with pytest.raises(ValueError, match=text):
            run_all(experiment, evaluator, specs, [3], tmp_path)
    for specs, nfe, text in (
        (["gs@heun/log_snr"], 3, "must be even"),
        (["s4s@heun/log_snr"], 2, "takes one step"),
    ):
        with pytest.raises(ValueError, match=text):
            run_all(experiment, evaluator, specs, [nfe], tmp_path)
    with pytest.raises(ValueError, match="share 8 seeds with those learned or chosen from, the first 0"):
        run_all(experiment, Evaluator(pairs[0].subset(slice(0, 8))), ["ddim"], [3], tmp_path)
    with pytest.raises(ValueError, match="needs solvers and NFE"):
        run_all(experiment, evaluator, [], [3], tmp_path)


# Reports


def metrics(mse, half=0.1, **fields):
    return SolverMetrics("x", 4, mse, half, mse, 10.0, None, None, None, 16, **fields)


def cell(label, nfe, errors):
    errors = torch.as_tensor(errors, dtype=torch.float64)
    mse, half = mean_interval(errors)
    return MethodResult(
        spec=label,
        label=label,
        category="learned",
        nfe=nfe,
        origin="origin",
        metrics=metrics(mse, half),
        errors=errors,
        evaluations=7,
        seconds=1.0,
        command=f"make {label} <{nfe}>",
    )


NEAR = torch.linspace(0, 1, 50)
CELLS = [
    cell("best", 4, NEAR),
    cell("near", 4, NEAR + torch.tensor([0.4, -0.3]).repeat(25)),
    cell("worse", 4, NEAR + 0.01),  # its own interval overlaps, its difference does not
    cell("best", 6, NEAR + 0.5),
]


def marks_of(table):
    return {label: [entry.mark for entry in entries] for label, entries in table.rows}


def test_what_cannot_be_told_from_the_best_sample_by_sample_is_marked_like_it():
    table = pivot_table(CELLS, MEASURES["mse"])
    # At NFE 6 there is one solver, which is better than none.
    assert marks_of(table) == {"best": ["near", ""], "near": ["near", ""], "worse": ["", ""]}
    assert "Italic: the best" in table.notes[0] and "seed by seed" in table.notes[0]
    assert table.rows[0][1][0].text == "500 ± 82"
    assert pivot_table(CELLS, MEASURES["frechet"]) is None
    larger = replace(MEASURES["mse"], better="larger", losses=torch.neg)
    assert marks_of(pivot_table(CELLS, larger)) == {
        "best": ["near", ""],
        "near": ["near", ""],
        "worse": ["near", ""],
    }


def test_only_what_is_surely_better_than_every_other_is_the_best():
    assert marks_of(pivot_table([CELLS[0], CELLS[2]], MEASURES["mse"])) == {"best": ["best"], "worse": [""]}
    twins = [CELLS[0], cell("twin", 4, NEAR), CELLS[2]]  # two names of one solver: neither is better
    assert marks_of(pivot_table(twins, MEASURES["mse"])) == {
        "best": ["near"],
        "twin": ["near"],
        "worse": [""],
    }


@pytest.mark.parametrize("name", ["frechet-data", "frechet-data-corrected"])
@pytest.mark.parametrize(("far", "marks"), [(1.7, ["near", "near"]), (2.4, ["best", ""])])
def test_distances_are_told_apart_by_their_intervals(name, far, marks):
    def known(corrected):
        ends = (corrected - 0.3, corrected + 0.3)
        metrics_row = metrics(1.0, frechet_data_corrected=corrected)
        return replace(metrics_row, frechet_data=corrected + 1.0, frechet_data_interval=ends)

    cells = [replace(cell(n, 4, NEAR), metrics=known(x)) for n, x in (("a", 1.6), ("b", far))]
    table = pivot_table(cells, MEASURES[name])
    assert [entries[0].mark for _, entries in table.rows] == marks
    assert ("±" in table.rows[0][1][0].text) == (name == "frechet-data-corrected")


def test_every_measure_with_a_better_end_can_tell_solvers_apart():
    """A measure that marked the best without a test would crown it by chance."""
    measures = distribution(torch.randn(40, 3), torch.randn(40, 3))
    both = {
        "to_teacher": measures,
        "to_data": measures,
        "more": {"lpips": (0.1, 0.01), "clip-score": (0.3, 0.01)},
    }
    metrics_row = replace(metrics(1.0), frechet_data=1.0, frechet_data_interval=(0.5, 1.5), **both)
    metrics_row = replace(metrics_row, frechet_data_corrected=0.9, mse_median=0.7)
    for name, measure in MEASURES.items():
        value = measure.read(metrics_row)
        assert value is not None, name
        ends = [measure.interval(metrics_row), measure.chance(metrics_row)]
        assert all(low <= value <= high for low, high in filter(None, ends)), name
        if measure.better:
            assert measure.losses is not None or measure.chance(metrics_row) is not None, name


def test_people_get_the_median_and_the_psnr_beside_the_mean():
    cells = [replace(c, metrics=replace(c.metrics, mse_median=0.4)) for c in CELLS]
    titles = [table.title for table in Report("t", [], "c", cells).headline()]
    assert titles == [MEASURES[name].title for name in ("mse", "mse-median", "psnr")]
    assert [t.title for t in Report("t", [], "c", cells, ("l1",)).headline()] == [MEASURES["l1"].title]


def test_differences_are_sample_by_sample():
    table = difference_table(CELLS, "best", MEASURES["mse"])
    assert table.nfes == [4]
    assert {label: entries[0].text for label, entries in table.rows} == {
        "near": "+50 ± 98",
        "worse": "+10.00 ± 1.5e-06",
    }
    assert difference_table(CELLS, "gs", MEASURES["mse"]) is None


class Outside(HTMLParser):
    """Whatever a page would fetch or run."""

    def __init__(self):
        super().__init__()
        self.fetched = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.fetched.append(tag)
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            if value and not value.startswith(("data:", "#")):
                self.fetched.append(value)


@pytest.mark.slow
def test_reports_say_the_same_and_the_page_needs_nothing_beside_itself(tmp_path):
    shown = [
        replace(c, table=Classical("ddim", "log_snr", c.nfe, 1e-3).table(VPLinear()), label=f"<{c.label}>")
        for c in CELLS
    ]
    shown = [replace(c, pictures=torch.zeros(3, 1, 8, 8)) for c in shown]
    pictures = draw(shown, VPLinear(), "model", tmp_path)
    paper = ReportedResults("Table 2", {("<best>", 4): 0.25, ("other", 4): 1.0}, "mse")
    report = Report("A & B", ["first"], "gas compare --all", shown, ("mse",), paper, pictures)
    paths = report.write(tmp_path)
    flat, markdown, page = (path.read_text() for path in paths)
    rows = list(csv.DictReader(io.StringIO(flat)))
    assert [float(row["mse"]) for row in rows] == [c.metrics.mse for c in shown]
    assert rows[0]["command"] == "make best <4>"
    assert "| &lt;near&gt; | *550 ±" in markdown
    assert "**" not in markdown  # the best is not surely better than the one beside it
    assert "0.25 / 500.0 / +250.000" not in markdown  # the paper's figure is in the measure's own scale
    assert "0.25 / 500.0 / +499.750" in markdown
    assert "make best &lt;4&gt;" in page
    assert "<near>" not in page
    assert page.count("data:image/png;base64,") == 5  # errors, and samples and times at two NFE
    outside = Outside()
    outside.feed(page)
    assert outside.fetched == []
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_a_cell_comes_back_from_its_row():
    row = json.loads(json.dumps(CELLS[0].row()))
    assert MethodResult.from_row(row, errors=CELLS[0].errors).row() == CELLS[0].row()
