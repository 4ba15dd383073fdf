"""Agreement with numbers read out of the published implementations."""

import json
from pathlib import Path

import pytest
import torch

from gas import classical, grids
from gas.learned.generalized import GeneralizedSolver
from gas.learned.s4s import S4S
from gas.schedule import EDMasVP, VPLinear
from support.solvers import scaled_linear

GOLDEN = Path(__file__).parents[1] / "golden"
GRID = {"time_uniform": grids.time_uniform, "logSNR": grids.log_snr, "time_quadratic": grids.time_quadratic}


def read(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def schedule_of(entry):
    kind = entry["schedule"]
    return VPLinear(kind["beta_0"], kind["beta_1"]) if kind["kind"] == "vp_linear" else scaled_linear()


def close(actual, expected, tolerance):
    expected = tensor(expected)
    return float((actual - expected).abs().max() / expected.abs().max()) < tolerance


def label(entry):
    keys = ("solver", "order", "variant", "spacing", "nfe")
    return "-".join(str(entry[k]) for k in keys if k in entry) + "-" + entry["schedule"]["kind"]


SCHEDULES = read("schedules")
SOLVERS = read("classical")
LEARNED = read("generalized_solver")


def test_the_files_are_complete():
    assert (len(SCHEDULES), len(SOLVERS), len(LEARNED)) == (4, 144, 5)


@pytest.mark.parametrize("entry", [e for e in SCHEDULES if e["schedule"]["kind"] != "edm_vp"])
def test_schedule(entry):
    schedule, t = schedule_of(entry), tensor(entry["t"])
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha, tensor(entry["alpha"]), rtol=0, atol=1e-10)
    torch.testing.assert_close(sigma, tensor(entry["sigma"]), rtol=0, atol=1e-10)
    lam = tensor(entry["half_log_snr"])
    torch.testing.assert_close(schedule.half_log_snr(t), lam, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        schedule.inverse_half_log_snr(lam), tensor(entry["inverse_t"]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("entry", [e for e in SCHEDULES if e["schedule"]["kind"] == "edm_vp"])
def test_edm_as_vp(entry):
    kind = entry["schedule"]
    schedule = EDMasVP(kind["t_eps"], kind["sigma_min"], kind["sigma_max"])
    linear = schedule.linear
    assert linear.beta_0 == pytest.approx(entry["beta_0"], abs=1e-10)
    assert linear.beta_1 - linear.beta_0 == pytest.approx(entry["beta_d"], abs=1e-10)
    alpha, sigma = schedule(tensor(entry["t"]))
    torch.testing.assert_close(sigma / alpha, tensor(entry["sigma_edm"]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("entry", SOLVERS, ids=label)
def test_classical_solver(entry):
    schedule, t, order = schedule_of(entry), tensor(entry["t"]), entry["order"]
    if entry["solver"] == "unipc":
        table = classical.unipc(
            schedule, t, order, entry["variant"], lower_order_final=entry["lower_order_final"]
        )
    else:
        table = {"dpmpp_multistep": classical.dpmpp, "ipndm": classical.ipndm}[entry["solver"]](
            schedule, t, order
        )
    assert close(table.unrolled(), entry["unrolled"], 1e-9)
    assert close(table.times, entry["eval_t"], 1e-9)


@pytest.mark.parametrize("entry", SOLVERS[::12], ids=label)
def test_grid(entry):
    t = GRID[entry["spacing"]](schedule_of(entry), entry["nfe"], entry["t_eps"])
    torch.testing.assert_close(t, tensor(entry["t"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "entry", LEARNED, ids=lambda e: f"{e['schedule']['kind']}-{e['nfe']}-{e['order']}-{e['theory']}"
)
def test_learned_solver(entry):
    schedule = schedule_of(entry)
    family = GeneralizedSolver if entry["theory"] else S4S
    names = ("mu_logit", "t_couple", "a_diff", "c_diff")
    solver = family.from_official(schedule, t_end=entry["t_eps"], **{name: entry[name] for name in names})
    with torch.no_grad():
        assert close(solver.t, entry["t"], 1e-12)
        assert close(solver().times, entry["eval_t"], 1e-12)
        assert close(solver.nominal().unrolled(), entry["unrolled"], 1e-9)


@pytest.mark.parametrize("entry", LEARNED, ids=lambda e: f"{e['nfe']}-{e['order']}-{e['theory']}")
def test_first_grid_of_a_learned_solver(entry):
    solver = GeneralizedSolver(schedule_of(entry), entry["nfe"], entry["t_eps"])
    with torch.no_grad():
        assert close(solver.t, entry["initial_t"], 1e-12)
        assert close(solver.theta, entry["initial_mu_logit"], 1e-9)
