"""Budgets: every evaluation is counted, none is exceeded, and what is planned is what a training takes."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch

import gas
from gas.errors import UserError
from gas.losses import l2
from gas.training.adam import Adam
from gas.training.distillation import BestSoFar, Distilled, distill, distill_family, plan_of
from gas.training.gauss_newton import GaussNewton
from gas.training.initialization import CandidateRound, StartChoice, StartSearch
from gas.training.loop import FitRecord
from gas.training.plan import FINISH, TrainingPlan
from gas.training.ranking import RankedSolver
from gas.training.validation import evaluate
from support.covering import thinned
from support.doubles import MIXTURE, Counting, taught

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")

NFE = 3
# Where the number of steps decides nothing.
SHORT = replace(FINISH, iterations=5)


@pytest.fixture
def model():
    Counting.rows = 0
    return Counting(MIXTURE)


@pytest.fixture(scope="module")
def pairs():
    return taught(range(128))


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1064))


@pytest.fixture(scope="module")
def reports(pairs, validation):
    """The reports of a training within a budget, each with the samples that had passed through the network."""

    @functools.cache
    def train(budget):
        Counting.rows = 0
        running = distill(Counting(MIXTURE), pairs, validation, NFE, budget=budget)
        return [(report, Counting.rows) for report in running]

    return train


@pytest.mark.parametrize("budget", thinned([700, 1777, 6000], 3))
def test_a_budget_is_kept_and_every_report_counts_what_has_passed_the_network(reports, budget):
    passed = trained = 0
    for report, rows in reports(budget):
        if isinstance(report, (RankedSolver, CandidateRound)):
            passed += report.evaluations
        elif isinstance(report, StartChoice):
            assert report.evaluations == passed == rows
        elif isinstance(report, FitRecord):
            trained = report.evaluations
            assert passed + trained == rows
    assert isinstance(report, Distilled)
    assert report.evaluations == passed + trained == rows <= budget
    assert report.loss <= report.best_classical_loss
    assert budget - report.evaluations < 0.35 * budget + 200  # nor is much of it left


@pytest.mark.slow
def test_a_larger_budget_teaches_more(reports):
    """Of the unseen loss: that on the pairs chosen by differs in their number."""
    losses, unseen = {}, taught(range(5000, 5128))
    for budget in (700, 6000):
        *_, (result, _) = reports(budget)
        losses[budget] = float(evaluate(MIXTURE, unseen, result.table(), l2).mean())
    assert losses[6000] < 0.7 * losses[700]


@pytest.mark.slow
def test_a_budget_below_one_step_is_refused_with_the_least(model, pairs, validation):
    with pytest.raises(
        UserError, match=r"budget must be at least (\d+) network evaluations at NFE 3"
    ) as caught:
        next(distill(model, pairs, validation, NFE, budget=50))
    assert Counting.rows == 0
    least = int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    *_, result = distill(model, pairs, validation, NFE, budget=least)
    assert result.evaluations <= least
    with pytest.raises(UserError, match="budget needs Gauss-Newton"):
        next(distill(model, pairs, validation, NFE, budget=5000, config=Adam()))


@pytest.mark.slow
def test_an_interrupted_training_with_a_budget_ends_with_the_same_bits(model, pairs, validation, tmp_path):
    *_, expected = distill(model, pairs, validation, NFE, budget=1200)
    for report in distill(model, pairs, validation, NFE, budget=1200, state=tmp_path):
        if isinstance(report, FitRecord) and report.iteration < report.iterations:
            break
    Counting.rows = 0
    *_, resumed = distill(model, pairs, validation, NFE, budget=1200, state=tmp_path)
    assert Counting.rows < expected.evaluations
    assert resumed.evaluations == expected.evaluations
    assert torch.equal(resumed.table().unrolled(), expected.table().unrolled())
    with pytest.raises(UserError, match="of another run"):
        list(distill(model, pairs, validation, NFE, budget=5000, state=tmp_path))


@pytest.mark.slow
def test_the_best_so_far_is_never_worse_than_the_best_classical_solver(model, pairs, validation):
    progress = BestSoFar(MIXTURE)
    for _ in progress.watch(distill(model, pairs, validation, NFE, budget=1200)):
        result = progress.results[NFE]
        assert result.loss <= result.best_classical_loss
        measured = evaluate(MIXTURE, validation.view(slice(0, len(result.losses))), result.table(), l2)
        assert float(measured.mean()) == pytest.approx(result.loss, rel=1e-4)


def test_every_setting_can_be_saved(model, pairs, validation):
    *_, result = distill(model, pairs, validation, 2, config=replace(SHORT, iterations=1, outlier=math.inf))
    assert gas.save(None, result, model=model).document.training["outlier"] is None


@pytest.mark.slow
def test_a_family_shares_its_budget(model, pairs, validation):
    reports = distill_family(model, pairs, validation, [2, 3], budget=2000)
    members = [report for report in reports if isinstance(report, Distilled)]
    assert sum(member.evaluations for member in members) == Counting.rows <= 2000
    assert members[0].evaluations < members[1].evaluations
    # Though each budget makes other settings of the training.
    saved = gas.save(None, members, model=model)
    assert saved.nfes == [2, 3]
    assert sum(saved.entry(nfe).measured["budget"] for nfe in saved.nfes) <= 2000


@pytest.mark.slow
@pytest.mark.parametrize("budget", thinned([1500, None], 2))
def test_a_plan_is_what_the_training_takes(model, pairs, validation, budget):
    plan = plan_of(model, len(pairs), len(validation), NFE, config=SHORT)
    if budget is not None:
        plan = plan.within(budget)
    phases, spent = plan.phases, dict.fromkeys(plan.phases, 0)
    for report in distill(model, pairs, validation, NFE, budget=budget, config=SHORT):
        if isinstance(report, RankedSolver):
            spent["ranking"] += report.evaluations
        elif isinstance(report, CandidateRound):
            spent["start"] += report.evaluations
    assert spent["ranking"] == phases["ranking"].evaluations
    assert spent["start"] == pytest.approx(phases["start"].evaluations, rel=0.25)
    assert Counting.rows == pytest.approx(plan.total.evaluations, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [1, 2, 4, 6, 10])
def test_plans_of_all_budgets_fit_them(nfe):
    full = TrainingPlan(nfe=nfe, solvers=75, pairs=1024, validation=256)
    least = full._scaled(0.0).total.evaluations
    sizes = []
    for budget in range(least, full.total.evaluations, max(1, full.total.evaluations // 50)):
        plan = full.within(budget)
        assert 0.5 * budget < plan.total.evaluations <= budget or budget < 2 * least
        sizes.append(plan.total.evaluations)
    assert all(later > 0.9 * earlier for earlier, later in itertools.pairwise(sizes))
    assert full.within(10**12).config == full.config
    start = TrainingPlan(
        nfe=nfe, solvers=75, pairs=1024, validation=256, search=StartSearch("uniform"), config=GaussNewton()
    )
    assert start.phases["start"].evaluations == 0
