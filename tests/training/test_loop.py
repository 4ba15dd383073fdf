"""Learning: it gets better, never worse than it came, resumes to the same bits, and reports divergence."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from gas.classical.registry import SOLVERS, Classical, candidates
from gas.errors import Diverged
from gas.grids.analytic import GRIDS, as_grid
from gas.learned.generalized import GeneralizedSolver
from gas.losses import FeatureLoss, PseudoHuber, l2
from gas.models.runtime import WrappedModel
from gas.pairs.teacher import teach
from gas.schedule import Flow
from gas.table import Table
from gas.training.adam import PAPER, Adam, AdamSteps
from gas.training.adversarial.losses import Critic
from gas.training.distillation import Distilled, distill, distill_family, neighbor_grid
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.initialization import CandidateRound, StartChoice, StartSearch
from gas.training.loop import FitRecord, fit
from gas.training.ranking import RankedSolver, rank_classical
from gas.training.validation import evaluate, surely_positive
from support.covering import covering, thinned
from support.doubles import MIXTURE as MODEL, taught

pytestmark = pytest.mark.usefixtures("quick_gauss_newton", "few_classical_solvers")

NFE = 4


@pytest.fixture(scope="module")
def pairs():
    return taught(range(128))


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1064))


def new():
    table = Classical("unipc-2-bh2", "log_snr", NFE, MODEL.t_end).table(MODEL.schedule)
    return GeneralizedSolver.from_table(MODEL.schedule, table, MODEL.t_end)


def loss_of(solver, pairs):
    with torch.no_grad():
        return float(evaluate(MODEL, pairs, solver(), l2).mean())


@pytest.mark.parametrize(
    "loss",
    thinned(["l1", "l2", "pseudo_huber", FeatureLoss(lambda x: torch.cat([x, x**2], 1))], 4),
)
def test_it_learns_with_every_kind_of_loss(pairs, validation, loss):
    solver = new()
    config = Adam(iterations=60, validate_every=20)
    records = list(fit(solver, MODEL, pairs, validation=validation, loss=loss, config=config))
    assert [r.iteration for r in records] == [0, 20, 40, 60]
    assert records[-1].best_loss < 0.7 * records[0].validation_loss
    assert records[-1].evaluations == 60 * 24 * NFE * 3 + 24 + 4 * len(validation) * NFE


@pytest.mark.slow
def test_it_holds_the_best_numbers_seen_whenever_it_stops(pairs, validation):
    solver = new()
    config = Adam(iterations=200, validate_every=10, learning_rate=0.1, ema=0.0)
    running = fit(solver, MODEL, pairs, validation=validation, loss="l2", config=config)
    records = list(itertools.islice(running, 12))
    running.close()
    best = min(r.validation_loss for r in records)
    assert records[-1].best_loss == best
    assert loss_of(solver, validation) == pytest.approx(best, rel=1e-6)


class TorchEma:
    """What torch-ema 0.3's ExponentialMovingAverage does, which the authors' code trains with."""

    def __init__(self, parameters, decay, num_updates):
        self.decay, self.num_updates = decay, num_updates
        self.shadow = [p.detach().clone() for p in parameters]

    def update(self, parameters):
        decay = self.decay
        if self.num_updates is not None:
            self.num_updates += 1
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        for shadow, parameter in zip(self.shadow, parameters, strict=True):
            shadow.sub_((1 - decay) * (shadow - parameter.detach()))


@covering(ema=[0.3, 0.999], warmup=[False, True])
def test_the_average_is_that_of_torch_ema(pairs, ema, warmup):
    solver = new()
    steps = AdamSteps(solver, MODEL, pairs, l2, Adam(ema=ema, ema_warmup=warmup, batch=8))
    oracle = TorchEma(solver.parameters(), ema, 0 if warmup else None)
    for _ in range(24):
        steps.step()
        oracle.update(solver.parameters())
        for average, shadow in zip(steps.averaged().parameters(), oracle.shadow, strict=True):
            torch.testing.assert_close(average, shadow, rtol=1e-12, atol=1e-15)


def test_the_paper_s_average_warms_up():
    """Else a third of the start is still in it after 1,000 steps: 0.999**1000 = 0.37."""
    assert PAPER.ema_warmup and PAPER.ema == 0.999
    assert not Adam().ema_warmup


def test_it_can_hold_the_last_numbers_instead(pairs, validation):
    config = Adam(iterations=10, validate_every=5, learning_rate=0.3, ema=0.0)
    last = new()
    *_, end = fit(last, MODEL, pairs, validation=validation, loss="l2", config=config, keep="last")
    assert end.validation_loss > end.start_loss  # so that the two are told apart
    assert loss_of(last, validation) == pytest.approx(end.validation_loss, rel=1e-6)


def test_averages_of_gradients_decay_as_told(pairs, validation):
    fit_records = []
    for betas in ((0.9, 0.999), (0.0, 0.5)):
        config, solver = Adam(iterations=5, validate_every=5, betas=betas), new()
        steps = AdamSteps(solver, MODEL, pairs, l2, config)
        assert steps.optimizer.defaults["betas"] == betas
        assert steps.fingerprint()["Adam"]["betas"] == betas
        list(fit(solver, MODEL, pairs, validation=validation, loss="l2", config=config))
        fit_records.append(solver().detach().outputs)
    assert not torch.equal(*fit_records)
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\), got 1"):
        Adam(betas=(0.9, 1))


def test_divergence_is_reported_and_loses_nothing(pairs, validation):
    solver = new()
    before = loss_of(solver, validation)
    config = Adam(iterations=200, validate_every=50, learning_rate=1e3, ema=0.0)
    with pytest.raises(Diverged, match=r"iteration .*; lower learning_rate"):
        list(fit(solver, MODEL, pairs, validation=validation, loss="l2", config=config))
    assert loss_of(solver, validation) <= before


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(pairs, validation, tmp_path):
    config = Adam(iterations=30, validate_every=10)

    def run(solver, checkpoint=None, reports=None):
        running = fit(solver, MODEL, pairs, validation=validation, config=config, checkpoint=checkpoint)
        records = list(itertools.islice(running, reports))
        running.close()
        return records

    whole, broken, resumed = new(), new(), new()
    expected = run(whole, tmp_path / "whole.pt")
    run(broken, tmp_path / "broken.pt", reports=3)  # stops after the checkpoint of iteration 10
    rest = run(resumed, tmp_path / "broken.pt")
    assert rest[-1] == expected[-1]
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_other_settings_is_refused(pairs, validation, tmp_path):
    first = Adam(iterations=2, validate_every=1)
    list(fit(new(), MODEL, pairs, validation=validation, config=first, checkpoint=tmp_path / "c.pt"))
    other = Adam(iterations=2, validate_every=1, seed=1)
    with pytest.raises(ValueError, match="other settings, solver, model or pairs"):
        list(fit(new(), MODEL, pairs, validation=validation, config=other, checkpoint=tmp_path / "c.pt"))
    (tmp_path / "c.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        list(fit(new(), MODEL, pairs, validation=validation, config=first, checkpoint=tmp_path / "c.pt"))


@dataclass(frozen=True)
class _Weighed:
    """A criterion with a setting."""

    factor: float

    def __call__(self, table):
        return self.factor * float(table.outputs.sum())


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("loss", PseudoHuber(0.03), PseudoHuber(0.3)),
        ("loss", FeatureLoss(torch.nn.Linear(2, 3)), FeatureLoss(torch.nn.Linear(2, 3))),
        ("criterion", _Weighed(1.0), _Weighed(2.0)),
        ("keep", "best", "last"),
    ],
)
def test_a_checkpoint_of_another_objective_is_refused(pairs, validation, tmp_path, name, one, other):
    def train(value):
        options = {"config": Adam(iterations=2, validate_every=1), name: value}
        data = {"validation": validation, "checkpoint": tmp_path / "c.pt"}
        return list(fit(new(), MODEL, pairs, **data, **options))

    train(one)
    assert len(train(one)) == 1  # the same, and already at its end
    with pytest.raises(ValueError, match="other settings, solver, model or pairs"):
        train(other)


def kept(pairs, validation, losses, **options):
    """The iteration that is kept of a training whose iterates have these losses ``(I, S)``."""
    config = GaussNewton(iterations=len(losses) - 1, batch=8, growth=1.0, validate_every=1)
    rows = iter(losses)
    *_, end = fit(
        new(),
        MODEL,
        pairs,
        validation=validation,
        config=config,
        criterion=lambda table: next(rows),
        **options,
    )
    assert end.best_loss == pytest.approx(float(losses[end.best_iteration].mean()))
    return end.best_iteration


def test_the_newest_iterate_that_none_before_surely_beats_is_kept(pairs, validation):
    generator = torch.Generator().manual_seed(0)
    heavy = torch.randn(256, generator=generator, dtype=torch.float64).mul(1.5).exp()
    chance = 0.1 * heavy * torch.randn(256, generator=generator, dtype=torch.float64)
    half, nan = heavy / 2, torch.full_like(heavy, torch.nan)
    worse = half + chance.abs()
    close = half + chance * torch.sign(chance.mean())  # a larger mean, by chance
    losses = torch.stack([heavy, half, close, worse, nan])
    assert close.mean() > half.mean()
    assert kept(pairs, validation, losses) == 2
    assert kept(pairs, validation, losses, keep="best") == 1
    assert kept(pairs, validation, losses, keep="last") == 3
    # None is kept that validates worse than the start, sure or not.
    assert kept(pairs, validation, torch.stack([half, close, worse])) == 0
    # Slow drift is measured against the least of all, not against the one before.
    noise = torch.randn(20, 256, generator=generator, dtype=torch.float64)
    drift = torch.stack([heavy, *(half * (1 + 0.02 * n) * (0.2 * noise[n]).exp() for n in range(20))])
    least = drift[drift.mean(1).argmin()]
    assert surely_positive(drift[-1] - least) and not surely_positive(drift[-1] - drift[-2])
    assert kept(pairs, validation, drift) < 20
    # A start that is not finite is worse than anything.
    assert kept(pairs, validation, torch.stack([nan, half, close])) == 2


def test_a_resumed_training_knows_the_least_loss(pairs, validation, tmp_path):
    generator = torch.Generator().manual_seed(0)
    heavy = torch.randn(256, generator=generator, dtype=torch.float64).mul(1.5).exp()
    scatter = 0.5 * heavy * torch.randn(256, generator=generator, dtype=torch.float64)
    # The second is the least. The third may be as good, and is newer; the fourth has a smaller mean than the third, but
    # is surely worse than the second.
    losses = torch.stack(
        [2 * heavy, heavy, heavy + scatter - scatter.mean() + 0.06 * heavy.mean(), 1.03 * heavy]
    )
    assert kept(pairs, validation, losses) == 2
    config = GaussNewton(iterations=3, batch=8, growth=1.0, validate_every=1)
    rows = iter(losses)
    options = {"config": config, "checkpoint": tmp_path / "c.pt", "criterion": lambda table: next(rows)}
    interrupted = fit(new(), MODEL, pairs, validation=validation, **options)
    for _ in range(3):
        next(interrupted)
    interrupted.close()
    *_, end = fit(new(), MODEL, pairs, validation=validation, **options)
    assert end.iteration == 3 and end.best_iteration == 2


def test_seeds_may_not_be_shared_and_sets_may_not_be_empty(pairs, validation):
    with pytest.raises(ValueError, match="share seeds"):
        next(fit(new(), MODEL, pairs, validation=pairs.subset(slice(0, 3))))
    with pytest.raises(ValueError, match="got 0 and 64"):
        next(fit(new(), MODEL, pairs.subset(slice(0, 0)), validation=validation))
    with pytest.raises(ValueError, match="did you mean 'l1'"):
        next(fit(new(), MODEL, pairs, validation=validation, loss="L1"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch", 0),
        ("learning_rate", -1.0),
        ("clip", float("nan")),
        ("ema", 1.0),
        ("iterations", -1),
        ("decay", "x"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must"):
        Adam(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch", 0),
        ("largest", 0),
        ("damping", float("nan")),
        ("growth", 0.9),
        ("forgetting", 1.0),
        ("iterations", -1),
    ],
)
def test_settings_of_gauss_newton_out_of_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must"):
        GaussNewton(**{setting: value})


@pytest.mark.slow
def test_the_ranking_is_what_running_each_one_gives(validation, monkeypatch):
    monkeypatch.setattr("gas.training.ranking.candidates", candidates)  # all of them
    ranked = list(rank_classical(MODEL, validation, NFE, l2, rounds=((None, 16), (5, None)), batch=24))
    finalists = ranked[-5:]
    assert [m.loss for m in finalists] == sorted(m.loss for m in finalists)
    for m in finalists:
        assert m.pairs == len(validation)
        assert m.loss == pytest.approx(float(evaluate(MODEL, validation, m.table, l2).mean()), rel=1e-5)
    assert len(ranked) - 5 == len(list(candidates(MODEL.schedule, NFE, MODEL.t_end)))
    true = {
        c.label: float(evaluate(MODEL, validation, t, l2).mean())
        for c, t in candidates(MODEL.schedule, NFE, 1e-3)
    }
    assert finalists[0].loss == pytest.approx(min(true.values()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["best", "uniform", "ddim/karras"])
def test_distilling_never_ships_worse_than_the_best_classical(pairs, validation, start):
    reports = list(
        distill(
            MODEL,
            pairs,
            validation,
            NFE,
            search=StartSearch(start, validation_pairs=8, steps=1),
            config=Adam(iterations=3, validate_every=3),
        )
    )
    started = next(r for r in reports if isinstance(r, StartChoice))
    result = reports[-1]
    assert isinstance(result, Distilled)
    assert isinstance(reports[0], RankedSolver)
    assert result.loss <= started.best_loss * (1 + 1e-6)
    assert result.table().nfe == NFE
    finalists = [r.classical.label for r in reports if isinstance(r, RankedSolver)][
        -StartSearch().finalists :
    ]
    raced = [r for r in reports if isinstance(r, CandidateRound)]
    assert [r.run for r in raced] == list(range(1, 6 if start == "best" else 1))
    winner = min(raced[3:], key=lambda r: r.loss).classical.spec if raced else start
    best = [r.classical for r in sorted(raced[:3], key=lambda r: r.loss)[:2]]
    assert [r.classical for r in raced[3:]] == best
    assert started.start == winner
    assert started.best.label == finalists[0]


def test_where_a_classical_solver_is_the_teacher_there_is_nothing_to_learn():
    teacher = Classical("unipc-3-bh2", "log_snr", 3, MODEL.t_end)
    pairs_of_model = [
        teach(MODEL, teacher.table(MODEL.schedule), seeds) for seeds in (range(32), range(100, 132))
    ]
    reports = list(distill(MODEL, *pairs_of_model, 3))
    assert not any(isinstance(r, (CandidateRound, FitRecord)) for r in reports)
    expected = teacher.table(MODEL.schedule).unrolled()
    torch.testing.assert_close(reports[-1].table().unrolled(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_an_interrupted_distillation_goes_on_from_its_state(pairs, validation, tmp_path):
    search = StartSearch(validation_pairs=8, candidates=2, steps=1)
    config = {"config": Adam(iterations=20, validate_every=10), "search": search}
    expected = list(distill(MODEL, pairs, validation, NFE, **config))[-1]
    running = distill(MODEL, pairs, validation, NFE, **config, state=tmp_path)
    for report in running:
        if getattr(report, "iteration", 0) == 10:
            break
    next(running)  # the report of iteration 20: the checkpoint of iteration 10 is written by then
    running.close()
    rest = list(distill(MODEL, pairs, validation, NFE, **config, state=tmp_path))
    assert isinstance(rest[0], StartChoice)  # the ranking is not run again
    assert torch.equal(rest[-1].table().unrolled(), expected.table().unrolled())
    with pytest.raises(ValueError, match=r"cannot be continued .* delete"):
        list(
            distill(
                MODEL, pairs, validation, NFE, **{**config, "search": StartSearch("uniform")}, state=tmp_path
            )
        )
    again = list(distill(MODEL, pairs, validation, NFE, **config, state=tmp_path))
    assert again[-1].loss == rest[-1].loss  # a finished member of a family is not trained again, nor lost
    assert torch.equal(again[-1].table().unrolled(), expected.table().unrolled())


@pytest.mark.parametrize("schedule", [MODEL.schedule, Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("nfe", [1, 2, 4, 5, 9])
def test_a_neighbours_grid_has_the_neighbours_spacing(schedule, nfe):
    t_end = 1e-3
    for name in ("karras", "time_uniform"):
        t = GRIDS[name](schedule, 4, t_end)
        near = neighbor_grid(schedule, SOLVERS["ddim"](schedule, t), nfe, t_end)
        as_grid(near)
        assert near[0] == 1
        assert near[-1] == t_end
        if nfe == 4:
            middle = schedule.half_log_snr(near[1:-1]) - schedule.half_log_snr(t[1:-1])
            assert float(middle.abs().max()) < 0.02 * 20  # two parts in a hundred of the whole way


def test_a_neighbours_grid_mends_told_times_that_fall_back():
    table = Table([0.9, 0.95, 0.3, 0.3], torch.zeros(4, 4), torch.eye(4))
    as_grid(neighbor_grid(MODEL.schedule, table, 6, MODEL.t_end))


@pytest.mark.slow
def test_a_family_starts_each_member_at_its_neighbours_times(pairs, validation, tmp_path):
    options = {
        "config": GaussNewton(iterations=2),
        "search": StartSearch(validation_pairs=8, steps=2),
    }
    reports = list(distill_family(MODEL, pairs, validation, [3, 1, 2], **options, state=tmp_path))
    members = [r for r in reports if isinstance(r, Distilled)]
    assert [m.nfe for m in members] == [1, 2, 3]
    raced = [r for r in reports if isinstance(r, CandidateRound)]
    assert [r.runs for r in raced] == [5] * 15
    first_rounds = [*raced[:3], *raced[5:8], *raced[10:13]]
    assert [("," in r.classical.grid) for r in first_rounds] == [False] * 3 + [True, False, False] * 2
    for member in members:  # what counts as the best classical solver knows nothing of neighbours
        alone = next(
            r
            for r in distill(
                MODEL, pairs, validation, member.nfe, search=StartSearch("ddim", validation_pairs=8)
            )
            if isinstance(r, StartChoice)
        )
        assert member.best_classical == alone.best
    assert all(m.loss <= m.best_classical_loss for m in members)
    again = list(distill_family(MODEL, pairs, validation, [3, 1, 2], **options, state=tmp_path))
    ended = [r for r in again if isinstance(r, Distilled)]
    assert not any(isinstance(r, CandidateRound) for r in again)  # what was finished is not done again
    for member, other in zip(members, ended, strict=True):
        assert torch.equal(member.table().unrolled(), other.table().unrolled())
        assert member.evaluations == other.evaluations


def test_a_solver_of_another_schedule_is_refused(pairs, validation):
    solver = GeneralizedSolver(Flow(), NFE, MODEL.t_end)
    with pytest.raises(ValueError, match=r"of schedule Flow.*build the solver from model\.schedule"):
        next(fit(solver, MODEL, pairs, validation=validation))


@pytest.mark.slow
def test_a_choice_of_another_run_is_refused_with_what_differs(pairs, validation, tmp_path):
    search = StartSearch(validation_pairs=8, candidates=1, steps=1)
    options = {"search": search, "config": GaussNewton(iterations=1)}
    list(distill(MODEL, pairs, validation, 2, **options, state=tmp_path))
    with pytest.raises(ValueError, match=r"of another run: loss was 'l2', is 'l1'\): delete"):
        list(distill(MODEL, pairs, validation, 2, **options, loss="l1", state=tmp_path))


@pytest.mark.slow
def test_a_candidate_that_diverges_does_not_win(pairs, validation, monkeypatch):
    steps, calls = GaussNewtonSteps.step, []

    def fails_at_first(self, limit):
        calls.append(self)
        if len(calls) == 1:
            raise Diverged("as if the samples were not finite")
        return steps(self, limit)

    monkeypatch.setattr(GaussNewtonSteps, "step", fails_at_first)
    search = StartSearch(validation_pairs=8, candidates=2, steps=2)
    reports = list(distill(MODEL, pairs, validation, 2, search=search, config=GaussNewton(iterations=1)))
    raced = [r for r in reports if isinstance(r, CandidateRound)]
    assert raced[0].evaluations == 0 < raced[1].evaluations
    started = next(r for r in reports if isinstance(r, StartChoice))
    assert started.start == min(raced, key=lambda r: r.loss).classical.spec


class Counting(WrappedModel):
    """Counts samples that pass through the network; a gradient through a call as three."""

    rows = 0

    @staticmethod
    def count(rows):
        Counting.rows += rows

    def bind(self, labels, guidance=1.0):
        denoise = self.model.bind(labels, guidance)

        def counted(x, t):
            prediction = denoise(x, t)
            Counting.rows += len(x)
            if prediction.requires_grad:
                prediction.register_hook(lambda gradient: Counting.count(2 * len(x)))
            return prediction

        return counted


@pytest.mark.slow
@pytest.mark.parametrize("start", ["best", "ipndm-2/log_snr"])
@pytest.mark.parametrize(
    "config", [GaussNewton(iterations=2), Adam(iterations=5, validate_every=2)], ids=["gauss-newton", "adam"]
)
def test_every_network_evaluation_is_counted(pairs, validation, start, config):
    """Ranking, start search, training, trial steps and every validation: the count is of calls of the network."""
    Counting.rows = 0
    *_, end = distill(
        Counting(MODEL),
        pairs,
        validation,
        3,
        search=StartSearch(start, validation_pairs=16, screening_pairs=4, candidates=2, steps=1),
        config=config,
    )
    assert end.evaluations == Counting.rows


@pytest.mark.slow
def test_every_network_evaluation_of_a_family_is_counted(pairs, validation):
    Counting.rows = 0
    search = StartSearch(validation_pairs=16, screening_pairs=4, candidates=2, steps=1)
    config = GaussNewton(iterations=1)
    reports = distill_family(Counting(MODEL), pairs, validation, [2, 3], search=search, config=config)
    assert sum(r.evaluations for r in reports if isinstance(r, Distilled)) == Counting.rows


@pytest.mark.parametrize("change", ["loss", "criterion", "critic", "weights", "seed"])
def test_a_checkpoint_is_of_one_run_only(pairs, validation, tmp_path, change):
    def run(**other):
        settings_of_state = {"loss": "l2", "criterion": None, "rate": 1e-3, "init": 0, "seed": 0, **other}
        torch.manual_seed(settings_of_state["init"])
        network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        config = Adam(iterations=1, batch=8, validate_every=1, seed=settings_of_state["seed"])
        critic = Critic("plane", network, learning_rate=settings_of_state["rate"])
        solver = GeneralizedSolver(MODEL.schedule, 2, MODEL.t_end)
        shared = {"validation": validation, "checkpoint": tmp_path / "state.pt"}
        kind = {"loss": settings_of_state["loss"], "criterion": settings_of_state["criterion"]}
        return list(fit(solver, MODEL, pairs, config=config, discriminators=[critic], **shared, **kind))

    run()
    run()
    other = {
        "loss": {"loss": "l1"},
        "criterion": {"criterion": lambda table: float(table.times.sum())},
        "critic": {"rate": 2e-3},
        "weights": {"init": 1},
        "seed": {"seed": 1},
    }
    with pytest.raises(ValueError, match="of a run with other settings"):
        run(**other[change])
