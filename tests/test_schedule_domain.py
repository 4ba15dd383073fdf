"""The times that a schedule has: values within them, refusals outside, and where sampling may end."""

import math

import pytest
import torch

import gas
from gas.classical.registry import NAMED_GRIDS
from gas.grids.published import Levels
from gas.learned.interpolation import interpolated
from gas.schedule import EDMasVP, Flow, VPDiscrete, same_schedule
from gas.training.distillation import neighbor_grid
from support.solvers import SCHEDULES

INF, NAN = math.inf, math.nan


def cosine(steps):
    """The cosine schedule of arXiv 2102.09672, betas at most 0.999: hardly any signal is left at its end."""
    f = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2
    return VPDiscrete((f[1:] / f[:-1]).clamp(min=1e-3).cumprod(0))


COARSE = {
    "cosine-100": cosine(100),
    "cosine-10": cosine(10),
    "four": VPDiscrete([0.9, 0.5, 0.2, 0.01]),
    "two": VPDiscrete([0.99, 0.5]),
    "ddpm": VPDiscrete((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)),
    "zero-snr": VPDiscrete([*cosine(100).alphas_cumprod[:-1], 2**-24]),
}


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), *COARSE.values()], ids=[*SCHEDULES, *COARSE])
def test_within_its_times_every_value_of_a_schedule_has_a_meaning_and_no_time_lies_outside(schedule):
    first, last = schedule.t_min, min(schedule.t_max, 2.0)
    t = torch.linspace(first, last, 401, dtype=torch.float64)
    alpha, sigma = schedule(t)
    lam = schedule.half_log_snr(t)
    assert bool(((alpha >= 0) & (alpha <= 1) & (sigma >= 0) & (sigma <= 1)).all())
    assert bool((lam.diff() < 0).all()) and not bool(lam.isnan().any())
    inside = slice(1, -1) if schedule.t_max == 1 else slice(1, None)
    torch.testing.assert_close(schedule.inverse_half_log_snr(lam[inside]), t[inside], rtol=1e-9, atol=1e-12)
    assert schedule.t_min <= schedule.t_end < 1
    assert float(schedule.inverse_half_log_snr(INF)) == pytest.approx(first, abs=1e-15)
    latest = float(schedule.inverse_half_log_snr(-INF))
    assert latest == 1.0 if isinstance(schedule, Flow) else latest > 1e100
    outside = [first - 1e-3, -1.0, NAN, *([1.001, INF] if schedule.t_max == 1 else [])]
    for ask in (schedule, schedule.half_log_snr):
        for time in outside:
            for given in (time, torch.tensor([0.5, time], requires_grad=True)):
                with pytest.raises(ValueError, match=r"times of .* lie in \[.*\], 1 being noise, got"):
                    ask(given)


# Published grids are of one model's noise range.
GENERAL = {name: grid for name, grid in NAMED_GRIDS.items() if not isinstance(grid, Levels)}


@pytest.mark.parametrize("schedule", COARSE.values(), ids=COARSE)
@pytest.mark.parametrize("grid", GENERAL.values(), ids=GENERAL)
def test_grids_end_where_the_schedule_has_a_time(grid, schedule):
    """A coarse schedule, continued to t = 0 or 1e-3, would hold more signal than there is."""
    times = grid(schedule, 4, schedule.t_end)
    assert float(times[-1]) == schedule.t_end
    assert bool(torch.stack(schedule(times)).isfinite().all())
    assert bool(torch.isfinite(grid(schedule, 4, schedule.t_min)).all())
    with pytest.raises(
        ValueError, match=r"t_end must lie in \[.*, 1\), got .*; the usual one of VPDiscrete\("
    ):
        grid(schedule, 4, schedule.t_min * 0.99 - 1e-9)


def test_whatever_takes_an_end_refuses_one_that_is_no_time_of_the_schedule(tmp_path):
    """On 100 cosine steps alpha would be 1.0002 at t = 1e-3, and sigma NaN."""
    schedule = COARSE["cosine-100"]
    table = gas.classical.ddim(schedule, [1.0, 0.5, 0.1])
    takers = [
        lambda t_end: gas.OwnModel(lambda x, t: x, schedule, (2,), t_end=t_end),
        lambda t_end: gas.GeneralizedSolver(schedule, 4, t_end),
        lambda t_end: gas.GeneralizedSolver.from_table(schedule, table, t_end),
        lambda t_end: gas.LD3(schedule, 4, t_end),
        lambda t_end: gas.S4S(schedule, 4, t_end),
        lambda t_end: gas.BNS(schedule, 4, t_end),
        lambda t_end: gas.Classical("ddim", "log_snr", 4, t_end).table(schedule),
        lambda t_end: gas.Classical("ddim", f"1.0,0.5,{t_end!r}", 2, t_end).table(schedule),
        lambda t_end: gas.classical.unipc(schedule, [1.0, 0.5, t_end], 2),
    ]
    for take in takers:
        take(schedule.t_end)
        with pytest.raises(
            ValueError, match=r"t_end must lie in \[0\.00\d+, 1\), got 0\.001|times of VPDiscrete"
        ):
            take(1e-3)
    gas.save(tmp_path / "a.json", gas.GeneralizedSolver(schedule, 2, schedule.t_end))
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"t_end": 0.01', '"t_end": 0.001'))
    with pytest.raises(ValueError, match=r"t_end must lie in \["):
        gas.load(tmp_path / "a.json")


@pytest.mark.parametrize("schedule", COARSE.values(), ids=COARSE)
@pytest.mark.parametrize("early", [-1.0, -100.0])
def test_learned_solvers_never_ask_before_the_schedule_begins(schedule, early):
    for kind in (gas.GeneralizedSolver, gas.LD3, gas.S4S, gas.BNS):
        for end in (schedule.t_end, (schedule.t_min + schedule.t_end) / 2):
            solver = kind(schedule, 3, end)
            with torch.no_grad():
                (solver.times if kind is gas.BNS else solver.xi).fill_(early)
            table = solver()
            assert bool((table.times > schedule.t_min).all())


def test_the_usual_end_is_the_schedules_own():
    assert gas.OwnModel(lambda x, t: x, EDMasVP(t_end=2e-3), (2,)).t_end == 2e-3
    assert gas.OwnModel(lambda x, t: x, COARSE["cosine-100"], (2,)).t_end == 0.01
    assert gas.OwnModel(lambda x, t: x, Flow(), (2,)).t_end == 0.0
    assert gas.OwnModel(lambda x, t: x, gas.VPLinear(), (2,)).t_end == 1e-3


@pytest.mark.parametrize("schedule", COARSE.values(), ids=COARSE)
def test_grids_of_neighbours_interpolated_tables_and_pictures_stay_within_the_schedule(schedule, tmp_path):
    for t_end in (schedule.t_end, schedule.t_min + 1e-4):
        tables = {n: gas.classical.ddim(schedule, gas.grids.log_snr(schedule, n, t_end)) for n in (3, 6)}
        near = neighbor_grid(schedule, tables[3], 4, t_end)
        assert bool((near.diff() < 0).all()) and float(near[-1]) == t_end
        between = interpolated(schedule, tables[3], tables[6], 4, t_end)
        assert bool((between.times >= schedule.t_min).all())
    shown = [("ddim", tables[3].times.tolist(), [*tables[3].times.tolist(), t_end])]
    assert gas.plotting.times_plot(tmp_path / "t.png", shown, schedule)
    same = VPDiscrete(schedule.alphas_cumprod)
    assert same_schedule(schedule, same) and not same_schedule(schedule, gas.VPLinear())
