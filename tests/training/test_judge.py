"""Learning from a judge: derivatives, the trust region, the guard, and what a judge's failure leaves."""

import math
from dataclasses import replace

import pytest
import torch

import gas
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.features.judges import JudgeError, judge_by_name
from gas.pairs.dataset import Pairs
from gas.sampling import sample
from gas.training.initialization import StartChoice
from gas.training.inner_solve import MAX_DAMPING
from gas.training.judge import distill_judge, unseen_features
from gas.training.judge_steps import JudgeAscent, JudgeSteps, _Linear, _multiplier
from gas.training.loop import FitRecord
from support.doubles import MIXTURE, Mixture, taught

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")

FEW = JudgeAscent(iterations=4, batch=32, pool=64, samples=64, reference_nfe=10)


def near(samples, labels):
    """Minus the squared distance to the mode of the wanted class: as a good judge, largest near the data."""
    return -(samples - MIXTURE.modes()[labels]).square().sum(1)


def small(samples, labels):
    """A judge that can be exploited: it likes samples near the origin, where there are no data."""
    return -samples.square().sum(1)


def result_of(reports):
    *records, result = reports
    return [record for record in records if isinstance(record, FitRecord)], result


def steps_of(judge, nfe=3, **settings):
    table = Classical("ddim", "log_snr", nfe, MIXTURE.t_end).table(MIXTURE.schedule)
    solver = gas.GeneralizedSolver.from_table(MIXTURE.schedule, table, MIXTURE.t_end)
    return JudgeSteps(solver, MIXTURE, judge, taught(range(48), labelled=True), 1.0, replace(FEW, **settings))


def test_the_slope_is_that_of_the_mean_score():
    steps = steps_of(near)
    batch = steps.pairs.subset(slice(0, 16))
    p = torch.nn.utils.parameters_to_vector(steps.learned.values()).detach()
    slope = steps._linearized(p, batch).slope
    jacobian = torch.autograd.functional.jacobian(steps._numbers, p)

    def mean_score(p):
        table = steps._table(p, 1.0).detach().folded()
        return float(
            near(sample(MIXTURE.bind(batch.labels), batch.noise.double(), table), batch.labels).mean()
        )

    for i, ours in enumerate((slope @ jacobian).tolist()):
        move = torch.zeros_like(p)
        move[i] = 1e-5
        assert ours == pytest.approx((mean_score(p + move) - mean_score(p - move)) / 2e-5, rel=0.02, abs=2e-3)


def test_the_multiplier_spends_the_room_and_no_more():
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    curvature, slope, gradient = root @ root.T, torch.randn(5).double(), torch.randn(5).double()
    mean = _Linear(score=0.0, slope=slope, distance=0.0, gradient=gradient, curvature=curvature)
    least = -float(gradient @ torch.linalg.solve(curvature, gradient))
    for scale in (1e-6, 1.0, 1e6):  # of the score: its units do not matter
        scaled = replace(mean, slope=scale * slope)
        for room in (0.9 * least, 0.0, 3.0):
            m = _multiplier(scaled, gradient, curvature, room)
            step = torch.linalg.solve(curvature, scale * slope / (2 * m) - gradient)
            assert float(2 * gradient @ step + step @ curvature @ step) == pytest.approx(room, abs=1e-6)
            assert float(slope @ (step + torch.linalg.solve(curvature, gradient))) > 0


def test_a_good_judge_raises_its_score_within_the_region():
    records, result = result_of(distill_judge(MIXTURE, near, 3, settings=FEW))
    assert result.stopped == "" and result.loss < result.measures["start_loss"]
    assert result.measures["distance"] <= FEW.radius
    assert records[0].iteration == 0 and records[-1].iteration == records[-1].iterations == 4
    assert result.best_classical_loss == pytest.approx(records[0].start_loss)


@pytest.mark.slow
def test_a_judge_teaches_the_same_again():
    first, again = (result_of(distill_judge(MIXTURE, near, 3, settings=FEW))[1] for _ in range(2))
    assert torch.equal(again.table().outputs, first.table().outputs)


@pytest.mark.slow
def test_the_guard_stops_a_judge_that_is_exploited(tmp_path):
    """Without a trust region samples shrink to where there are no data; the solver before that is kept."""
    free = replace(FEW, radius=math.inf, step=50.0, iterations=12, validate_every=1)
    records, result = result_of(distill_judge(MIXTURE, small, 2, settings=free))
    assert "of the reference fell from" in result.stopped and "is exploited" in result.stopped
    assert records[-1].iteration < 12
    assert result.measures["recall"] >= records[0].logs["recall"] - 0.15
    within = result_of(distill_judge(MIXTURE, small, 2, settings=replace(free, radius=1.5, step=0.25)))[1]
    assert within.stopped == "" and within.measures["distance"] <= 1.5
    gas.save(tmp_path / "s.json", result, model=MIXTURE)
    assert gas.load(tmp_path / "s.json").document.training["radius"] is None


class Counting(Mixture):
    """Counts the samples of its network calls."""

    samples = 0

    def bind(self, labels, guidance=1.0):
        denoise = super().bind(labels, guidance)

        def counted(x, t):
            Counting.samples += len(x)
            return denoise(x, t)

        return counted


@pytest.mark.parametrize("given", [False, True])
def test_every_network_evaluation_and_judged_sample_counts(given):
    Counting.samples, sizes = 0, []

    def counted(samples, labels):
        sizes.append(len(samples))
        return near(samples, labels)

    pairs = taught(range(128), labelled=True) if given else None
    result = result_of(distill_judge(Counting(), counted, 2, settings=FEW, pairs=pairs))[1]
    assert result.evaluations == Counting.samples
    assert result.measures["judged"] == sum(sizes)
    assert sizes.count(2) == 1  # the trial before any work


def test_a_budget_that_ends_between_two_choices_ends_with_one():
    settings = replace(FEW, iterations=8, validate_every=4)
    ends = []
    for limit in range(2600, 3600, 200):
        *records, result = distill_judge(MIXTURE, near, 2, settings=replace(settings, budget=limit))
        assert result.evaluations <= limit and result.stopped  # by the guard, if not by the budget
        if "budget" in result.stopped:
            assert records[-1].iteration == records[-1].iterations
            ends.append(records[-1].iteration % 4)
    assert any(ends)


def test_damping_stays_within_its_bounds():
    steps = steps_of(
        lambda samples, labels: torch.zeros(len(samples))
    )  # no step rises: every trial is refused
    for _ in range(4):
        steps.step()
    assert steps.damping == MAX_DAMPING


def test_a_budget_holds():
    *_, full = distill_judge(MIXTURE, near, 2, settings=FEW)
    limit = full.evaluations - 200
    *_, result = distill_judge(MIXTURE, near, 2, settings=replace(FEW, budget=limit))
    assert result.evaluations <= limit and "budget" in result.stopped


class Failing:
    """Judges well for so many calls, then answers otherwise."""

    def __init__(self, calls, answer):
        self.calls, self.answer = calls, answer

    def __call__(self, samples, labels):
        self.calls -= 1
        return near(samples, labels) if self.calls >= 0 else self.answer(samples)


def nothing(samples):
    raise OSError("the server is gone")


ANSWERS = {
    "finite scores": lambda x: x[:, 0] * math.nan,
    "one score a sample": lambda x: x,
    "the server is gone": nothing,
}


@pytest.mark.parametrize("message", ANSWERS)
def test_a_judge_that_fails_leaves_the_solver_before(message):
    with pytest.raises(JudgeError, match=message):
        list(distill_judge(MIXTURE, Failing(0, ANSWERS[message]), 2, settings=FEW))
    records, result = result_of(distill_judge(MIXTURE, Failing(30, ANSWERS[message]), 2, settings=FEW))
    assert message in result.stopped and result.stopped.startswith("step ")
    assert torch.equal(result.table().outputs, records[0].best_table.outputs)


def test_a_solver_file_starts_and_is_never_made_worse(tmp_path):
    table = Classical("ddim", "time_uniform", 2, MIXTURE.t_end).table(MIXTURE.schedule)
    gas.save(tmp_path / "s.json", table, model=MIXTURE)
    start = gas.load(tmp_path / "s.json")
    reports = list(distill_judge(MIXTURE, lambda x, y: -near(x, y).square(), 2, settings=FEW, start=start))
    assert torch.equal(result_of(reports)[0][0].best_table.outputs, table.outputs)
    choice = next(r for r in reports if isinstance(r, StartChoice))
    assert choice.best.solver != "ddim"
    # What an interrupt writes until the start is surely beaten: the classical solver with its own score.
    assert choice.best_loss == pytest.approx(reports[-1].best_classical_loss)
    assert reports[-1].loss <= reports[-1].measures["start_loss"]
    with pytest.raises(UserError, match="has no table for NFE 5"):
        list(distill_judge(MIXTURE, near, 5, settings=FEW, start=start))


def test_diversity_is_measured_where_the_judge_does_not_look():
    model = gas.zoo.load("digits")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(unseen_features(model, near)(x), model.features(x))
    assert torch.equal(unseen_features(model, judge_by_name("classifier", model))(x), x.flatten(1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("radius", 0), ("radius", math.nan), ("step", -1), ("samples", 3), ("iterations", 1.5)],
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(UserError, match=setting):
        JudgeAscent(**{setting: value})


def test_pairs_of_another_model_are_refused():
    pairs = Pairs(torch.arange(40), torch.randn(40, 3), torch.randn(40, 3))
    with pytest.raises(UserError, match="have samples of shape"):
        list(distill_judge(MIXTURE, near, 2, settings=FEW, pairs=pairs))


def test_a_start_that_is_the_reference_is_refused_in_one_line():
    with pytest.raises(UserError, match="are those of the reference"):
        list(distill_judge(MIXTURE, near, FEW.reference_nfe, settings=replace(FEW, iterations=1)))


def test_a_budget_below_the_reference_is_refused():
    with pytest.raises(UserError, match="budget must be more than the 1,300 network evaluations"):
        next(distill_judge(MIXTURE, near, 3, settings=replace(FEW, budget=5)))


def test_a_judge_that_raises_a_user_error_late_leaves_the_best_before():
    calls = []

    def broken(samples, labels):
        calls.append(len(samples))
        labels.zero_()  # a copy
        if len(calls) > 8:
            raise UserError("out\nof paper")
        return -samples.square().sum(1)

    _, result = result_of(distill_judge(MIXTURE, broken, 3, settings=replace(FEW, iterations=2)))
    assert result.stopped.endswith("out of paper")


def test_the_key_of_an_address_is_not_in_the_file():
    settings = replace(FEW, iterations=0)
    *_, result = distill_judge(MIXTURE, near, 3, settings=settings, name="http://a/score?key=secret")
    assert result.provenance["training"]["judge"] == "http://a/score"


def interrupted(calls):
    """Return a judge that is interrupted after so many calls: no error that training answers."""

    def stop(samples):
        raise KeyboardInterrupt

    return Failing(calls, stop)


@pytest.mark.parametrize("given", [False, True])
def test_an_interrupted_training_resumes_to_the_same_bits(given, tmp_path):
    pairs = taught(range(128), labelled=True) if given else None
    settings = replace(FEW, iterations=2, batch=16, validate_every=1)

    def train(judge, state=None, model=MIXTURE, name="judge", **other):
        options = {"settings": replace(settings, **other), "pairs": pairs, "state": state, "name": name}
        return result_of(distill_judge(model, judge, 3, **options))

    sizes = []
    records, whole = train(lambda x, y: (sizes.append(len(x)), near(x, y))[1])
    assert whole.measures["judged"] == sum(sizes) and whole.stopped == ""
    for calls, left in (
        (2, 3),
        (len(sizes) - 2, 1),
    ):  # in the measure of the start, and in that of the last step
        state, Counting.samples = tmp_path / str(calls), 0
        with pytest.raises(KeyboardInterrupt):
            train(interrupted(calls), state)
        rest, resumed = train(interrupted(math.inf), state, Counting())
        assert [record.logs for record in rest] == [record.logs for record in records[-left:]]
        assert torch.equal(resumed.table().unrolled(), whole.table().unrolled())
        assert torch.equal(resumed.losses, whole.losses)
        assert (resumed.evaluations, resumed.measures) == (whole.evaluations, whole.measures)
        # The reference, 128 samples of 10 evaluations, is stored; of pairs, the ranking alone.
        assert Counting.samples < whole.evaluations - (0 if given else 1280)
    again, finished = train(interrupted(math.inf), state)  # killed before its file was written
    assert len(again) == 1 and torch.equal(finished.losses, whole.losses)
    with pytest.raises(UserError, match="is of a run with other settings"):
        train(interrupted(math.inf), state, name="another")
    with pytest.raises(UserError, match="settings was"):
        train(interrupted(math.inf), state, pool=32)
