"""Forward passes that a guided solver leaves out: the laws of what is left, and that it is the better buy."""

from dataclasses import replace

import pytest
import torch

import gas
from gas.classical.registry import SOLVERS, Classical
from gas.denoise import ClassifierFreeGuidance
from gas.learned.bns import BNS
from gas.losses import l2
from gas.pairs.teacher import teach
from gas.sampling import sample
from gas.schedule import VPLinear
from gas.solver_file import load, save
from gas.table import table_of
from gas.training.distillation import Distilled
from gas.training.elimination import (
    Removal,
    _no_worse,
    distill_forwards,
    eliminate,
    guided_calls,
    guided_starts,
    without_row,
)
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import StartSearch
from gas.training.validation import evaluate
from support.doubles import MIXTURE, guided_mixture
from support.solvers import GRIDS, NAMES

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")

GUIDANCE = 3.0
MODEL = guided_mixture()
TEACHER = Classical("unipc-3-bh2", "log_snr", 20, MODEL.t_end)
FEW = GaussNewton(iterations=4, batch=16, validate_every=2)


@pytest.fixture(scope="module")
def pairs():
    return teach(MODEL, TEACHER, range(96), guidance=GUIDANCE)


@pytest.fixture(scope="module")
def validation():
    return teach(MODEL, TEACHER, range(1000, 1064), guidance=GUIDANCE)


@pytest.fixture(scope="module")
def learned(pairs, validation):
    options = {"config": FEW, "search": StartSearch("unipc-3-bh2/log_snr")}
    return list(distill_forwards(MODEL, pairs, validation, [2, 3], **options))


def guided(name="unipc-2-bh2", calls=3):
    return SOLVERS[name](VPLinear(), GRIDS["log_snr"](VPLinear(), calls, 1e-3)).guided(GUIDANCE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_row_takes_nothing_from_the_moments_of_the_others(name, row):
    """Pure noise stays noise and pure signal stays signal in every state that is left."""
    table, schedule = guided(name).folded(), VPLinear()
    rest = without_row(table, row)
    alpha, sigma = (float(part) for part in schedule(torch.tensor(1.0, dtype=torch.float64)))
    left = [n for n in range(table.nfe) if n != max(row - 1, 0)]
    noise, signal = table.states[:, 0] * sigma, table.states[:, 0] * alpha + table.outputs.sum(1)
    assert torch.equal(rest.states[:, 0] * sigma, noise[left])
    torch.testing.assert_close(
        rest.states[:, 0] * alpha + rest.outputs.sum(1), signal[left], rtol=0, atol=1e-12
    )
    assert torch.equal(rest.times, table.times[[n for n in range(table.nfe) if n != row]])
    assert rest.branches == tuple(name for n, name in enumerate(table.branches) if n != row)


def test_of_branches_that_agree_every_one_may_go():
    """Where both branches predict the same, so does the later of them in place of the first."""

    def denoise(x, t, labels):
        return torch.tanh(x + t)

    bound = ClassifierFreeGuidance(denoise, torch.zeros(4).long(), torch.ones(1).long(), 1.0)
    x, table = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None], guided()
    expected = sample(bound, x, table)
    torch.testing.assert_close(sample(bound, x, without_row(table, 0)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", [-1, 5])
def test_the_last_row_stays(row):
    with pytest.raises(gas.UserError, match=r"row must lie in 0 .. 4, as the last row forms the sample"):
        without_row(guided(), row)


@pytest.mark.slow
def test_the_row_goes_without_which_the_rest_is_best(pairs, validation):
    reports, removals = [], eliminate(MODEL, pairs, validation, guided(), 4)
    while True:
        try:
            reports.append(next(removals))
        except StopIteration as end:
            table, spent = end.value
            break
    assert all(isinstance(report, Removal) for report in reports)
    assert [report.forwards for report in reports] == [5] * 5 + [4] * 5  # three rows, two of them again
    ranking = 64 * (5 * 5 + 4 * 4)
    assert spent == ranking + sum(report.evaluations for report in reports)
    losses = [float(evaluate(MODEL, validation, without_row(guided(), row), l2).mean()) for row in range(5)]
    best = sorted(range(5), key=losses.__getitem__)[:3]
    assert [report.row for report in reports[:3]] == best
    assert table.nfe == 4
    last = [report for report in reports if report.forwards == 4]
    best = min(report.loss for report in last)
    loss = float(evaluate(MODEL, validation, table, l2).mean())
    assert loss == pytest.approx(best, rel=1e-6)


@pytest.mark.slow
def test_a_budget_buys_more_than_guided_calls(learned, validation):
    results = [each for each in learned if isinstance(each, Distilled) and each.branched]
    assert [result.nfe for result in results] == [3, 2]
    for result in results:
        table = table_of(result.solver)
        assert isinstance(result.solver, BNS)
        assert table.forward_passes(GUIDANCE) == table.nfe == result.nfe
        assert result.loss == pytest.approx(float(evaluate(MODEL, validation, table, l2).mean()), rel=1e-6)
        assert result.loss < result.best_classical_loss
    # Two and three forward passes share the start and its removals.
    assert [report.forwards for report in learned if isinstance(report, Removal)] == [3] * 5 + [
        2
    ] * 4  # of two rows both


@pytest.mark.slow
def test_one_file_holds_both(learned, tmp_path):
    results = [each for each in learned if isinstance(each, Distilled) and each.branched]
    save(tmp_path / "s.json", [*results, Classical("ddim", "log_snr", 6, 1e-3)], model=MODEL)
    artefact = load(tmp_path / "s.json")
    assert (artefact.nfes, artefact.forwards) == ([6], [2, 3])
    assert artefact.document.guidance == GUIDANCE
    assert artefact.entry(forwards=2).measured["validation_loss"] == results[1].loss
    labels = torch.arange(4)
    x = MODEL.noise(range(4))
    expected = sample(MODEL.bind(labels, GUIDANCE), x, table_of(results[0].solver))
    assert torch.equal(sample(MODEL.bind(labels, GUIDANCE), x, artefact.table(forwards=3)), expected)


@pytest.mark.parametrize(("forwards", "calls"), [(1, 1), (2, 2), (3, 2), (5, 4), (6, 4), (8, 6), (12, 8)])
def test_a_budget_starts_at_a_guided_solver_that_can_reach_it(forwards, calls):
    assert guided_calls(forwards) == calls
    assert calls <= forwards <= 2 * calls


def test_an_even_budget_also_needs_the_guided_solver_of_as_many_passes():
    assert guided_starts([5, 6]) == [3, 4]
    assert guided_starts([3]) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [1.0, 0.0])
def test_no_result_is_worse_than_the_guided_solver_of_as_many_passes(learned, validation, loss):
    """A result whose training failed, and one that is perfect."""
    calls = next(r for r in learned if isinstance(r, Distilled) and not r.branched and r.nfe == 1)
    passes = next(r for r in learned if isinstance(r, Distilled) and r.branched and r.nfe == 2)
    result = _no_worse(replace(passes, loss=loss), calls, MODEL, validation, "l2")
    assert result.evaluations == passes.evaluations + 2 * len(validation)
    if not loss:
        assert result.solver is passes.solver
        return
    assert result.branched
    assert result.table().branches == ("unconditional", "conditional")
    expected = evaluate(MODEL, validation, calls.table(), l2)
    torch.testing.assert_close(
        evaluate(MODEL, validation, result.table(), l2), expected, rtol=1e-3, atol=1e-8
    )
    assert result.loss == pytest.approx(float(expected.mean()))


def test_what_has_no_branches_is_refused(pairs, validation):
    plain = replace(pairs, manifest={"recipe": {"guidance": 1.0}})
    with pytest.raises(
        gas.UserError, match=r"forward passes are learned with guidance, and the pairs have none"
    ):
        list(distill_forwards(MODEL, plain, validation, [4]))
    with pytest.raises(gas.UserError, match=r"mixture gives guided predictions only, not their branches"):
        list(distill_forwards(MIXTURE, pairs, validation, [4]))
