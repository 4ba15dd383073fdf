"""Schedules that need no gradient: published levels, the error bound's grid, and GITS on a teacher's trajectories."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import LinearConstraint, minimize

from gas import classical, grids
from gas.classical.registry import NAMED_GRIDS, Classical, format_times
from gas.errors import UserError
from gas.grids.dmn import dmn, error_bound, lagrange_weights
from gas.grids.published import PUBLISHED
from gas.losses import l2
from gas.models.runtime import WrappedModel
from gas.schedule import EDMasVP, Flow, VPDiscrete, VPLinear
from gas.training.trajectory_grid import cheapest_path, gits, jump_costs
from gas.training.validation import evaluate
from support.doubles import MIXTURE as MODEL, Mixture, taught


def stable_diffusion():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return VPDiscrete(torch.cumprod(1 - betas, 0))


# The first is a process of the noise range that the levels begin at: log(1 + 700^2) = (beta_0 + beta_1) / 2.
SCHEDULE_OF = {
    "ays-svd": VPLinear(0.1, 2 * np.log(1 + 700.0**2) - 0.1),
    "oss-flux": Flow(),
    "oss-wan": Flow(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_levels_are_where_the_grid_asks(name):
    schedule, levels = SCHEDULE_OF.get(name, stable_diffusion()), PUBLISHED[name]
    for nfe, listed in levels.lists.items():
        t = Classical("ddim", name, nfe, 1e-3).times(schedule)
        alpha, sigma = schedule(t)
        levels_of_grid = sigma if levels.flow else sigma / alpha
        assert levels_of_grid[1:-1].tolist() == pytest.approx(list(listed[1:]), rel=1e-6)
        assert (float(t[0]), float(t[-1]), len(t)) == (1.0, 1e-3, nfe + 1)


@pytest.mark.parametrize("name", [name for name, levels in PUBLISHED.items() if levels.between])
@pytest.mark.parametrize("nfe", [1, 2, 5, 13, 30])
def test_other_numbers_are_read_off_between_the_levels(name, nfe):
    schedule, levels = SCHEDULE_OF.get(name, stable_diffusion()), PUBLISHED[name]
    t = grids.as_grid(NAMED_GRIDS[name](schedule, nfe, 1e-3))
    assert len(t) == nfe + 1
    if nfe == 5:  # every second one of ten is a level itself; of twenty, every fourth
        alpha, sigma = schedule(t)
        levels_of_grid = sigma if levels.flow else sigma / alpha
        (listed,) = levels.lists.values()
        assert levels_of_grid[1:-1].tolist() == pytest.approx(list(listed[:: len(listed) // 5][1:]), rel=1e-6)


def test_align_your_steps_is_what_diffusers_prints():
    schedules = pytest.importorskip("diffusers.schedulers").AysSchedules
    for name, prefix in (
        ("ays-sd15", "StableDiffusion"),
        ("ays-sdxl", "StableDiffusionXL"),
        ("ays-svd", "StableDiffusionVideo"),
    ):
        assert [*PUBLISHED[name].lists[10], 0.0] == schedules[f"{prefix}Sigmas"]
    # The same grid as steps of a network of 1000, printed beside it: times agree to the rounding of levels.
    t = NAMED_GRIDS["ays-sd15"](stable_diffusion(), 10, 1e-3)
    steps = schedules["StableDiffusionTimesteps"]
    assert (t[:-1] * 1000 - 1).tolist() == pytest.approx(steps, abs=1.1)


@pytest.mark.parametrize(
    ("name", "schedule", "nfe", "message"),
    [
        (
            "ays-sd15",
            VPLinear(),
            10,
            "Stable Diffusion 1.5 needs noise from sigma/alpha = 14.615, got VPLinear",
        ),
        ("ays-sd15", Flow(), 10, "needs noise from"),
        ("oss-flux", VPLinear(), 10, "FLUX needs a rectified flow"),
        ("gits-sd15", None, 4, "is published for NFE 5, 6, 7, 8, got NFE 4"),
    ],
)
def test_a_published_grid_is_refused_where_it_means_nothing(name, schedule, nfe, message):
    with pytest.raises(ValueError, match=message):
        Classical("ddim", name, nfe, 1e-3).table(schedule or stable_diffusion())


def test_lagrange_weights_are_integrals_and_the_true_third_order_step():
    schedule = VPLinear()
    t = grids.time_quadratic(schedule, 6, 1e-3)
    lam, (_, sigma) = schedule.half_log_snr(t), schedule(t)
    for order in (1, 2, 3):
        nodes = [float(lam[3 - j]) for j in range(order)]
        for j, weight in enumerate(lagrange_weights(lam, 3, order).tolist()):

            def integrand(x, j=j, nodes=nodes):
                others = [node for i, node in enumerate(nodes) if i != j]
                return np.exp(x) * np.prod([(x - o) / (nodes[j] - o) for o in others])

            assert weight == pytest.approx(quad(integrand, lam[3], lam[4])[0], rel=1e-9)
    table = classical.dpmpp_corrected(schedule, t, order=3)
    row = table.outputs[3, 1:4].flip(0) / sigma[4]
    torch.testing.assert_close(row, lagrange_weights(lam, 3, 3), rtol=1e-9, atol=1e-9)


def test_the_bound_bounds():
    """Answers off by at most sigma^2/alpha move a sample of the bound's solver by no more than the bound."""
    lam = VPLinear().half_log_snr(grids.log_snr(VPLinear(), 3, 1e-3))
    error = torch.sigmoid(-2 * lam) / torch.sigmoid(2 * lam).sqrt()
    orders = [1, 2, 1]
    moved = []
    for signs in itertools.product([-1, 1], repeat=3):
        steps = [
            (lagrange_weights(lam, s, k) * torch.stack([signs[s - i] * error[s - i] for i in range(k)])).sum()
            for s, k in enumerate(orders)
        ]
        moved.append(abs(float(sum(steps))))
    bound = float(error_bound(lam))
    assert bound <= max(moved) * 3**0.5
    assert bound >= max(moved) / 2**0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:delta_grad == 0.0")
@pytest.mark.parametrize(
    ("schedule", "nfe"), [(VPLinear(), 3), (EDMasVP(1e-3), 5), (VPLinear(), 8)], ids=["vp-3", "edm-5", "vp-8"]
)
def test_dmn_is_as_good_as_the_authors_constrained_optimiser(schedule, nfe):
    start = schedule.half_log_snr(grids.log_snr(schedule, nfe, 1e-3))

    def bound(inner):
        inner = torch.tensor(inner, requires_grad=True)
        value = error_bound(torch.cat([start[:1], inner, start[-1:]])).log()
        return float(value.detach()), torch.autograd.grad(value, inner)[0].numpy()

    gaps = np.eye(nfe, nfe - 1) - np.eye(nfe, nfe - 1, -1)
    low = np.zeros(nfe)
    low[0], low[-1] = float(start[0]), -float(start[-1])
    optimum = minimize(
        bound,
        start[1:-1].numpy(),
        jac=True,
        method="trust-constr",
        constraints=[LinearConstraint(gaps, low + 1e-2, np.inf)],
        options={"maxiter": 300},
    )
    ours = schedule.half_log_snr(dmn(schedule, nfe, 1e-3))
    assert float(error_bound(ours).log()) <= optimum.fun + 0.02
    assert float(error_bound(ours)) < float(error_bound(start))


def test_dmn_is_a_grid_by_name_and_enters_no_race():
    for schedule, t_end in ((VPLinear(), 1e-3), (Flow(), 0.0)):
        t = Classical("unipc-3-bh2", "dmn", 5, t_end).times(schedule)
        assert torch.equal(t, dmn(schedule, 5, t_end))
        assert (float(t[0]), float(t[-1])) == (1.0, t_end)
    assert not set(grids.GRIDS) & {"dmn", *PUBLISHED}
    with pytest.raises(ValueError, match="power must be at least 1, got 0"):
        dmn(VPLinear(), 4, 1e-3, power=0)


@pytest.mark.parametrize("jumps", [1, 2, 3, 5])
@pytest.mark.parametrize("discount", [0.8, 1.0, 1.3])
def test_the_cheapest_path_is_the_cheapest_of_all(jumps, discount):
    def price(path, costs):
        return sum(discount**k * float(costs[i, j]) for k, (i, j) in enumerate(itertools.pairwise(path)))

    every = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), jumps - 1)]
    for seed in range(20):
        costs = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        costs[torch.ones(7, 7).tril().bool()] = torch.inf
        assert tuple(cheapest_path(costs, jumps, discount)) == min(every, key=lambda p: price(p, costs))


def test_jumps_along_a_straight_trajectory_cost_nothing():
    """All data at one point: the noise estimate never changes, and every Euler jump is exact."""

    class Point(Mixture):
        def denoise(self, x, t):
            return torch.full_like(x, 0.7)

    pairs = taught(range(4))
    costs = jump_costs(Point(), pairs, grids.karras(MODEL.schedule, 8, 1e-3), measure="distance")
    forward = torch.ones(9, 9).triu(1).bool()
    assert float(costs[forward].abs().max()) < 1e-3  # in x / alpha, which begins at 150
    assert costs[~forward].isinf().all()


@pytest.mark.parametrize("measure", ["distance", "deviation"])
def test_a_jump_costs_what_the_authors_say(measure):
    """Written out for one pair in the variance-exploding coordinates that the authors' code works in."""
    pairs, t = taught([3]), grids.karras(MODEL.schedule, 6, 1e-3)
    alpha, sigma = MODEL.schedule(t)
    rho, x, path, slopes = sigma / alpha, pairs.noise.double()[0] / alpha[0], [], []
    for n in range(7):
        path.append(x)
        if n < 6:
            slope = (x - MODEL.denoise(x[None] * alpha[n], t[n])[0]) / rho[n]
            slopes.append(slope)
            used = slope if n == 0 else 1.5 * slope - 0.5 * slopes[-2]
            x = x + (rho[n + 1] - rho[n]) * used

    def off(point):
        along = (path[0] - path[-1]) / (path[0] - path[-1]).norm()
        offset = point - path[-1]
        return float((offset - (offset @ along) * along).norm())

    costs = jump_costs(MODEL, pairs, t, order=2, measure=measure)
    for i, j in ((0, 1), (0, 4), (2, 5), (3, 6)):
        landed = path[i] + (rho[j] - rho[i]) * slopes[i]
        expected = float((landed - path[j]).norm()) if measure == "distance" else off(landed) - off(path[j])
        assert float(costs[i, j]) == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_a_run_that_is_not_finite_has_no_grid():
    class Diverging(WrappedModel):
        def bind(self, labels, guidance=1.0):
            return lambda x, t: x * float("nan")

    with pytest.raises(UserError, match=r"is not finite: choose other pairs$"):
        gits(Diverging(MODEL), taught(range(4)), 4, steps=8)


def test_gits_beats_the_usual_grids_for_the_jumps_it_counts():
    guides, held = taught(range(64)), taught(range(1000, 1064))
    t = gits(MODEL, guides, 6, steps=40, batch=40, measure="distance")
    assert torch.equal(t, gits(MODEL, guides, 6, steps=40, batch=40, measure="distance"))

    def loss(grid):
        table = Classical("ddim", grid, 6, MODEL.t_end).table(MODEL.schedule)
        return float(evaluate(MODEL, held, table, l2).mean())

    assert loss(format_times(t)) < 0.6 * min(loss(name) for name in ("log_snr", "karras"))
    fine = gits(MODEL, guides, 12, steps=12)
    assert torch.equal(fine, grids.karras(MODEL.schedule, 12, MODEL.t_end))


def test_gits_follows_a_flow_from_where_there_is_no_signal():
    model = Mixture(schedule=Flow())
    for measure in ("distance", "deviation"):
        t = grids.as_grid(gits(model, taught(range(8)), 4, steps=20, measure=measure))
        assert (len(t), float(t[0]), float(t[-1])) == (5, 1.0, 1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"nfe": 61}, "must be from 1 to 60, got 61"),
        ({"nfe": 4, "measure": "l3"}, "measure must be 'deviation' or 'distance', got 'l3'"),
        ({"nfe": 4, "discount": 0.0}, "discount must lie in"),
        ({"nfe": 4, "batch": 0}, "batch must be from 1 to"),
    ],
)
def test_gits_settings_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        gits(MODEL, taught(range(4)), **setting)
