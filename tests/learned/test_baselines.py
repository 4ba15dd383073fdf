"""The learned baselines: each starts at its base, takes its paper's step, learns, and comes back from its file."""

import itertools
from dataclasses import replace

import pytest
import torch

from gas import classical, grids, solver_file
from gas.classical.registry import Classical
from gas.learned.bns import BNS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.ld3 import LD3
from gas.learned.registry import SOLVERS, kind_by_name
from gas.learned.s4s import S4S
from gas.losses import l2
from gas.sampling import sample
from gas.schedule import Flow, VPLinear
from gas.table import Table
from gas.training.adam import Adam, AdamSteps, RelaxedStarts
from gas.training.distillation import Distilled, distill
from gas.training.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.training.initialization import CandidateRound, StartChoice, StartSearch, _best_starts
from gas.training.loop import fit
from gas.training.ranking import RankedSolver
from gas.training.validation import evaluate
from support.covering import covering, gradcheck_modes
from support.doubles import MIXTURE as MODEL, Gaussian, taught
from support.solvers import GRIDS, MULTISTEP, NAMES, SCHEDULES

pytestmark = pytest.mark.usefixtures("quick_gauss_newton")

START = Classical("ipndm-2", "time_quadratic", 4, MODEL.t_end)


@pytest.fixture(scope="module")
def pairs():
    return taught(range(128))


@pytest.fixture(scope="module")
def validation():
    return taught(range(1000, 1064))


def randomised(solver, size=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return solver


# Heun repeats times, which S4S does not, and on a flow its NFE is odd.
STARTS = {
    f"{family.__name__}-{name}": (family, name)
    for family in (LD3, BNS, S4S)
    for name in (NAMES if family is not S4S else MULTISTEP)
}


@covering(
    start=STARTS,
    schedule={"flow": Flow(), "vp": VPLinear()},
    grid=GRIDS.keys(),
    where=lambda start, schedule, grid: start[1] != "heun" or schedule == VPLinear(),
)
def test_each_starts_exactly_at_its_base(start, schedule, grid):
    family, start = start[0], Classical(start[1], grid, 6, 1e-3)
    table = start.table(schedule)
    if family is LD3:
        again = LD3(schedule, 6, 1e-3, base=start.solver, grid=start.grid)()
        torch.testing.assert_close(again.states, table.states, rtol=1e-9, atol=1e-10)
    else:
        again = family.from_table(schedule, table, 1e-3)()
    torch.testing.assert_close(again.detach().times, table.times, rtol=0, atol=1e-14)
    torch.testing.assert_close(again.detach().unrolled(), table.unrolled(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", [LD3, BNS, S4S])
@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_a_new_one_is_dpmpp_on_the_uniform_grid(family, nfe):
    t = grids.time_uniform(VPLinear(), nfe, 1e-3)
    table = classical.dpmpp(VPLinear(), t, order=3)
    torch.testing.assert_close(family(VPLinear(), nfe, 1e-3)().detach().unrolled(), table.unrolled())


@pytest.mark.parametrize("name", MULTISTEP)
def test_with_corrector_s4s_starts_with_the_bases_weights_of_answers(name):
    """The noise of x_T is passed on twice as often as any classical solver does, which no weight can mend."""
    table = Classical(name, "log_snr", 5, 1e-3).table(VPLinear())
    weights = S4S.from_table(VPLinear(), table, 1e-3, corrector=True)().detach().unrolled()
    torch.testing.assert_close(weights[:, 1:], table.unrolled()[:, 1:], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(weights[:, 0], table.unrolled()[:, 0] ** 2, rtol=1e-9, atol=1e-12)


def shifted_estimate(schedule, model, x, t, tau):
    """The method's words: ask at tau, read a noise estimate, turn it into one of x_0 at t."""
    (alpha, sigma), (alpha_tau, sigma_tau) = schedule(t), schedule(tau)
    noise = (x - alpha_tau * model.denoise(x, tau)) / sigma_tau
    return (x - sigma * noise) / alpha if alpha > 0 else model.denoise(x, tau)


def step_of(base, schedule, t, n, x, m, e):
    """One step of a classical solver as its paper writes it, from estimates m of x_0 and e of the noise."""
    (a, s), (a_next, s_next) = schedule(t[n]), schedule(t[n + 1])
    lam = schedule.half_log_snr(t)
    h = lam[n + 1] - lam[n]
    if base == "ddim" or (n == 0 and base == "dpmpp-2m"):
        return s_next / s * x - a_next * torch.expm1(-h) * m[n]
    if base == "dpmpp-2m":
        r = (lam[n] - lam[n - 1]) / h
        return s_next / s * x - a_next * torch.expm1(-h) * ((1 + 1 / (2 * r)) * m[n] - 1 / (2 * r) * m[n - 1])
    combined = e[n] if n == 0 else 1.5 * e[n] - 0.5 * e[n - 1]
    return a_next / a * x + (s_next - s * a_next / a) * combined


@pytest.mark.parametrize("base", ["ddim", "dpmpp-2m", "ipndm-2"])
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES.values() if not isinstance(s, Flow)])
def test_ld3_takes_its_bases_step_on_its_own_times(schedule, base):
    solver = randomised(LD3(schedule, 5, 1e-2, base=base))
    model, t, table = Gaussian(schedule), solver.t.detach(), solver().detach()
    x = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    actual, m, e = sample(model.denoise, x, table), [], []
    for n in range(5):
        alpha, sigma = schedule(t[n])
        m.append(shifted_estimate(schedule, model, x, t[n], table.times[n]))
        e.append((x - alpha * m[-1]) / sigma)
        x = step_of(base, schedule, t, n, x, m, e)
    torch.testing.assert_close(actual, x, rtol=1e-9, atol=1e-9)
    expected_times = (t[:-1] + solver.xi.detach())[1:]
    torch.testing.assert_close(table.times[1:], expected_times.clamp(min=5e-3, max=schedule.t_max))


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_s4s_takes_its_papers_step(schedule, corrector):
    solver = randomised(S4S(schedule, 5, 1e-2, corrector=corrector))
    model, t, table = Gaussian(schedule), solver.t.detach(), solver().detach()
    x = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    actual, m = sample(model.denoise, x, table), []
    for n in range(5):
        m.append(shifted_estimate(schedule, model, x, t[n], table.times[n]))
        sigma, (alpha_next, sigma_next) = schedule(t[n])[1], schedule(t[n + 1])
        gain = -alpha_next * torch.expm1(schedule.half_log_snr(t[n]) - schedule.half_log_snr(t[n + 1]))
        for weights in [solver.predictor, solver.correction] if corrector else [solver.predictor]:
            x = sigma_next / sigma * x + gain * sum(weights[n - j, n].detach() * m[j] for j in range(n + 1))
    torch.testing.assert_close(actual, x, rtol=1e-9, atol=1e-9)


def test_bns_is_its_numbers():
    solver, model = randomised(BNS(VPLinear(), 5, 1e-2)), Gaussian()
    noise = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x, answers = noise, []
    for n in range(5):
        answers.append(model.denoise(x, solver.times[n].detach().clamp(min=5e-3)))
        x = solver.alpha[n] * noise + sum(solver.beta[n, j] * answers[j] for j in range(n + 1))
    torch.testing.assert_close(sample(model.denoise, noise, solver()), x, rtol=1e-12, atol=1e-12)


def test_gs_without_theory_keeps_its_coefficients_wherever_the_times_go():
    base = Classical("dpmpp-3m", "log_snr", 4, 1e-3).table(VPLinear())
    solver = kind_by_name("gs-free").build(VPLinear(), Classical("dpmpp-3m", "log_snr", 4, 1e-3))
    with torch.no_grad():
        solver.theta += 0.4
        solver.outputs[1, 2] += 0.25
    nominal = solver.nominal().detach()
    assert float((nominal.times - base.times).abs().max()) > 0.01
    expected = base.outputs.clone()
    expected[2, 1] += 0.25
    torch.testing.assert_close(nominal.outputs, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(nominal.states, base.states, rtol=1e-9, atol=1e-10)


@gradcheck_modes
@pytest.mark.parametrize("schedule", [VPLinear(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize(
    "build",
    [
        *(lambda s, base=base: LD3(s, 4, 1e-2, base=base) for base in ("dpmpp-3m", "unipc-3-bh2", "deis-3")),
        lambda s: BNS(s, 4, 1e-2),
        lambda s: S4S(s, 4, 1e-2, corrector=True),
    ],
    ids=["LD3 dpmpp", "LD3 unipc", "LD3 deis", "BNS", "S4S + PC"],
)
def test_gradients_of_every_parameter(build, schedule, fast_mode):
    solver = randomised(build(schedule), size=0.02)
    names = [name for name, _ in solver.named_parameters()]

    def table(*values):
        table = torch.func.functional_call(solver, dict(zip(names, values, strict=True)))
        return table.times, table.states, table.outputs

    values = [p.detach().clone().requires_grad_() for p in solver.parameters()]
    if isinstance(solver, BNS):  # away from the ends that times are kept between
        values[0] = torch.tensor([0.95, 0.7, 0.4, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table, values, atol=1e-6, rtol=1e-4, fast_mode=fast_mode)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GaussNewton(iterations=6), Adam(iterations=60)], ids=["gn", "adam"])
@pytest.mark.parametrize("name", SOLVERS)
def test_each_kind_learns_under_either_optimiser(name, config, pairs, validation):
    kind = SOLVERS[name]
    solver = kind.build(MODEL.schedule, START)
    records = list(fit(solver, MODEL, pairs, validation=validation, loss="l2", config=kind.training(config)))
    assert records[-1].best_loss < 0.8 * records[0].validation_loss


@pytest.mark.parametrize("name", SOLVERS)
def test_each_kind_comes_back_from_its_file(name, tmp_path):
    solver = randomised(SOLVERS[name].build(MODEL.schedule, START), size=0.01)
    table = solver().detach()
    solver_file.save(tmp_path / "s.json", solver, model=MODEL)
    artefact = solver_file.load(tmp_path / "s.json")
    assert artefact.entry(4).kind == type(solver).__name__
    again = artefact.table(4)
    torch.testing.assert_close(
        artefact.solver(4)().detach().unrolled(), table.unrolled(), rtol=1e-8, atol=1e-8
    )
    for part in ("times", "states", "outputs"):
        assert torch.equal(getattr(again, part), getattr(table, part))
    other = replace(MODEL, t_end=1e-2)
    with pytest.raises(ValueError, match="share schedule and t_end"):
        solver_file.save(tmp_path / "s.json", solver, model=other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ld3", "s4s-alt", "bns", "s4s-pc"])
def test_distilling_takes_the_kind_by_name_and_never_ships_worse(name, pairs, validation, tmp_path):
    def run(state):
        reports = distill(
            MODEL,
            pairs,
            validation,
            3,
            solver=name,
            search=StartSearch(candidates=2, steps=2),
            config=GaussNewton(iterations=2),
            state=state,
        )
        return [report for report in reports if isinstance(report, Distilled)][-1]

    result = run(tmp_path)
    assert result.loss <= result.best_classical_loss
    assert isinstance(result.solver, (Table, type(SOLVERS[name].build(MODEL.schedule, START))))
    assert run(tmp_path).loss == result.loss  # goes on from its state, which holds the kind's numbers


def test_wrong_kinds_are_refused_before_anything_is_measured(pairs, validation):
    with pytest.raises(ValueError, match="unknown solver 's4': did you mean 's4s'"):
        next(distill(MODEL, pairs, validation, 4, solver="s4"))
    with pytest.raises(ValueError, match="theory can be left out of gs only, got solver 'bns'"):
        next(distill(MODEL, pairs, validation, 4, solver="bns", theory=False))
    with pytest.raises(ValueError, match="S4S takes one step for each"):
        next(distill(MODEL, pairs, validation, 4, solver="s4s", search=StartSearch(start="heun/karras")))
    skewed = classical.ddim(VPLinear(), grids.log_snr(VPLinear(), 3, 1e-3))
    with pytest.raises(ValueError, match="weights of x_T"):
        S4S.from_table(VPLinear(), Table(skewed.times, 1.1 * skewed.states, skewed.outputs), 1e-3)
    with pytest.raises(ValueError, match="heun evaluates the network twice a step"):
        LD3(VPLinear(), 5, 1e-3, base="heun")


def test_what_a_kind_cannot_start_at_is_no_candidate():
    entries = [("heun", "karras", 0.1), ("ddim", "karras", 0.2), ("ddim", "log_snr", 0.3)]
    ranked = [
        RankedSolver(entry, entry.table(VPLinear()), torch.full((8,), loss))
        for entry, loss in ((Classical(s, g, 4, 1e-3), loss) for s, g, loss in entries)
    ]

    def candidates_of(name):
        return [classical.spec for classical in _best_starts(ranked, 4, SOLVERS[name])]

    assert candidates_of("s4s") == ["ddim/karras", "ddim/log_snr"]
    assert candidates_of("gs") == ["heun/karras", "ddim/log_snr"]
    assert candidates_of("ld3") == ["heun/karras", "ddim/log_snr"]


def test_where_the_formula_lasts_every_formula_enters_once():
    """LD3 keeps the formula and learns the times, from even steps of log-SNR on; at 4 calls UniPC's orders are one."""
    ranked = [
        RankedSolver(entry, entry.table(VPLinear()), torch.full((8,), float(place)))
        for place, entry in enumerate(
            Classical(s, g, 4, 1e-3)
            for s in ("unipc-2-bh1", "unipc-3-bh1", "ipndm-2", "ddim")
            for g in ("karras", "log_snr")
        )
    ]
    best = [classical.spec for classical in _best_starts(ranked, 3, SOLVERS["ld3"])]
    assert best == ["unipc-2-bh1/log_snr", "ipndm-2/log_snr", "ddim/log_snr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gs", "ld3"])
def test_a_start_has_the_best_numbers_of_all_its_rounds(pairs, validation, name, monkeypatch):
    """Steps of few pairs may lead away; what the short trainings reported is what the main one starts from."""
    step = GaussNewtonSteps.step

    def leads_away_later(self, *limit):
        loss = step(self, *limit)
        if self.iteration > 2:
            with torch.no_grad():
                self.solver.xi.add_(0.02)
        return loss

    monkeypatch.setattr(GaussNewtonSteps, "step", leads_away_later)
    search = StartSearch(screening_pairs=4, validation_pairs=16, candidates=2, steps=2)
    reports = distill(
        MODEL, pairs, validation, 3, search=search, solver=name, config=GaussNewton(iterations=0)
    )
    reports = list(reports)
    started = next(r for r in reports if isinstance(r, StartChoice))
    raced = [r for r in reports if isinstance(r, CandidateRound)]
    assert len(raced) == (4 if name == "gs" else 8)
    table = search.solver(started, MODEL.schedule, SOLVERS[name])().detach()
    loss = float(evaluate(MODEL, validation.subset(slice(0, 16)), table, l2).mean())
    assert loss == pytest.approx(min(r.loss for r in raced), rel=1e-9)


def test_the_kinds_of_gs_are_the_solver_itself():
    uniform = Classical("dpmpp-3m", "time_uniform", 4, 1e-3)
    for name, theory in (("gs", True), ("gs-free", False)):
        built = SOLVERS[name].build(VPLinear(), uniform)
        fresh = GeneralizedSolver(VPLinear(), 4, 1e-3, theory=theory)
        for a, b in zip(built.state_dict().values(), fresh.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert kind_by_name("gs", theory=False) is SOLVERS["gs-free"]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [AdamSteps, GaussNewtonSteps])
def test_times_and_coefficients_take_turns(steps, pairs):
    settings = {"iterations": 12, "alternate": 3}
    config = Adam(**settings) if steps is AdamSteps else GaussNewton(**settings)
    solver = S4S.from_table(MODEL.schedule, START.table(MODEL.schedule), MODEL.t_end)
    running = steps(solver, MODEL, pairs, l2, config)
    for turn in range(4):
        before = {name: p.detach().clone() for name, p in solver.named_parameters()}
        for _ in range(3):
            running.step()
        moved = {name for name, p in solver.named_parameters() if not torch.equal(p.detach(), before[name])}
        assert moved == ({"theta", "xi"} if turn % 2 == 0 else {"predictor"})


def test_a_kind_in_turns_takes_three_of_each_and_needs_both(pairs):
    kind = SOLVERS["s4s-alt"]
    assert kind.training(Adam(iterations=600)).alternate == 100
    assert kind.training(GaussNewton(iterations=3)).alternate == 1
    assert kind.training(Adam(alternate=7)).alternate == 7
    assert SOLVERS["s4s"].training(Adam()) == Adam()
    with pytest.raises(ValueError, match="both times and coefficients"):
        next(fit(LD3(MODEL.schedule, 3, MODEL.t_end), MODEL, pairs, config=GaussNewton(alternate=1)))
    with pytest.raises(ValueError, match="alternate must be from 0 to"):
        Adam(alternate=-1)


def test_a_gradient_that_overflowed_moves_no_start():
    noise, indices = torch.ones(2, 3), torch.tensor([0, 1])
    relaxed = RelaxedStarts(noise, 0.1, 0.25)
    start = relaxed.of(indices, noise)
    start.grad = torch.tensor([[1.0, float("inf"), 0.0], [1.0, 0.0, 0.0]])
    relaxed.move(indices, noise, start)
    assert not relaxed.offsets[0].any()
    assert relaxed.offsets[1].isfinite().all() and relaxed.offsets[1, 0] < 0


def test_relaxed_starts_stay_in_their_ball_and_go_downhill():
    noise, target = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 3, 4)
    relaxed, indices = RelaxedStarts(noise, 0.1, 0.25), torch.tensor([4, 1])
    reach, losses = 0.1 * 12**0.5, []
    for _ in range(12):
        start = relaxed.of(indices, noise[indices])
        loss = (start - target[indices]).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        relaxed.move(indices, noise[indices], start)
    assert all(b < a + 1e-5 for a, b in itertools.pairwise(losses))
    size = relaxed.offsets.flatten(1).norm(dim=1)
    assert size[[4, 1]].tolist() == pytest.approx([reach, reach], rel=1e-5)
    assert not relaxed.offsets[[0, 2, 3, 5]].any()
    # The nearest point of the ball to the target lies straight towards it.
    expected = -reach * noise[4] / noise[4].norm()
    torch.testing.assert_close(relaxed.offsets[4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_relaxed_training_fits_its_pairs_better_and_resumes_to_the_same_bits(pairs, validation, tmp_path):
    config = Adam(iterations=30, validate_every=10, relax=0.1)

    def run(settings, checkpoint=None, reports=None):
        solver = LD3(MODEL.schedule, 4, MODEL.t_end, base="ipndm-2", grid="time_quadratic")
        running = fit(
            solver,
            MODEL,
            pairs,
            validation=validation,
            loss="l2",
            config=settings,
            checkpoint=checkpoint,
        )
        records = list(itertools.islice(running, reports))
        running.close()
        return solver, records[-1]

    whole, expected = run(config, tmp_path / "whole.pt")
    run(config, tmp_path / "broken.pt", reports=3)
    resumed, last = run(config, tmp_path / "broken.pt")
    assert last == expected
    assert torch.equal(whole.theta, resumed.theta)
    _, strict = run(replace(config, relax=0.0))
    assert expected.train_loss < 0.7 * strict.train_loss
    with pytest.raises(ValueError, match="other settings"):
        run(replace(config, relax=0.2), tmp_path / "whole.pt")


def test_a_checkpoint_of_another_base_is_refused(pairs, validation, tmp_path):
    def run(base):
        solver = LD3(MODEL.schedule, 3, MODEL.t_end, base=base)
        config = GaussNewton(iterations=1)
        list(fit(solver, MODEL, pairs, validation=validation, config=config, checkpoint=tmp_path / "c.pt"))

    run("ddim")
    with pytest.raises(ValueError, match="other settings"):
        run("dpmpp-2m")
