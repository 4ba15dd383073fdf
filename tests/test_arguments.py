"""Wrong arguments of public constructors and functions: each is refused by a ValueError that names the argument."""

import math
from dataclasses import replace

import pytest
import torch

import gas
from gas import arguments
from gas.denoise import ClassifierFreeGuidance, DynamicThreshold, StaticThreshold
from gas.losses import PseudoHuber
from gas.training.initialization import StartSearch

SCHEDULE = gas.VPLinear()
TABLE = gas.Classical("ddim", "log_snr", 2, 1e-3).table(SCHEDULE)
NAN, INF, HUGE = math.nan, math.inf, 10**40
# What is no integer in range, whatever the range; and what is no finite number.
NO_INTEGERS = (1.5, "3", None, NAN, True, -5, HUGE, 1e20, 1j, [], torch.ones(2))
NO_NUMBERS = ("3", None, NAN, True, 1j, [], torch.ones(2))


def zero(x, t):
    return 0 * x


def model(**changes):
    return gas.OwnModel(**{"denoiser": zero, "schedule": SCHEDULE, "sample_shape": (2,), **changes})


def pairs_of(count=12, of=None):
    return gas.pairs.teach(model() if of is None else of, TABLE, range(count))


def fitted(**changes):
    solver = gas.GeneralizedSolver(SCHEDULE, 2, 1e-3)
    settings = {
        "solver": solver,
        "model": model(),
        "pairs": pairs_of(),
        "config": gas.GaussNewton(iterations=1),
    }
    return list(gas.fit(**{**settings, **changes}))


def critic(**changes):
    return gas.Critic(**{"name": "c", "network": torch.nn.Linear(2, 1), **changes})


def adversary(**changes):
    return gas.Adversary(**{"discriminators": list, "criterion": lambda table: 0.0, **changes})


def spec(**changes):
    return gas.PairsSpec(**{"seeds": range(4), "teacher": {}, **changes})


def classical(**changes):
    return gas.Classical(**{"solver": "ddim", "grid": "log_snr", "nfe": 4, "t_end": 1e-3, **changes})


INTEGERS = [
    *((gas.Adam, name) for name in ("iterations", "batch", "validate_every", "seed", "alternate")),
    *((gas.GaussNewton, name) for name in ("iterations", "batch", "validate_every", "seed", "alternate")),
    *((gas.GaussNewton, name) for name in ("largest", "budget")),
    *((StartSearch, name) for name in ("screening_pairs", "validation_pairs", "candidates")),
    *((critic, name) for name in ("steps", "warmup")),
    (classical, "nfe"),
    (model, "classes"),
    (spec, "shard"),
]
NUMBERS = [
    *((gas.Adam, name) for name in ("learning_rate", "clip", "ema", "relax", "relax_rate")),
    *((gas.GaussNewton, name) for name in ("growth", "forgetting", "damping", "outlier")),
    *((critic, name) for name in ("weight", "penalty", "learning_rate")),
    (classical, "t_end"),
    (model, "t_end"),
    (spec, "guidance"),
    (PseudoHuber, "c"),
    (lambda limit: StaticThreshold(zero, limit), "limit"),
    (lambda quantile: DynamicThreshold(zero, quantile), "quantile"),
    (lambda scale: ClassifierFreeGuidance(zero, torch.zeros(1), torch.zeros(1), scale), "scale"),
    (lambda guidance: model().bind(None, guidance), "guidance"),
    (lambda guidance: model(classes=3, null=3).bind(torch.zeros(1), guidance), "guidance"),
    (lambda rho: gas.grids.karras(SCHEDULE, 3, 1e-3, rho), "rho"),
    (lambda shift: gas.grids.flow_shifted(gas.Flow(), 3, 0.0, shift), "shift"),
]


@pytest.mark.parametrize(("make", "name"), INTEGERS)
def test_what_is_no_integer_in_range_is_refused_by_name(make, name):
    for value in NO_INTEGERS:
        if value is None and make is model:
            continue
        with pytest.raises(ValueError, match=name) as caught:
            make(**{name: value})
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("make", "name"), NUMBERS)
def test_what_is_no_number_is_refused_by_name(make, name):
    for value in NO_NUMBERS:
        if value is None and make is model:  # which leaves t_end to the schedule
            continue
        with pytest.raises(ValueError, match=name) as caught:
            make(**{name: value})
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("make", "wrong", "name"),
    [
        *(
            (model, {"sample_shape": shape}, "sample_shape")
            for shape in ((1.5,), (), 3, None, (0,), "ab", (2**50,))
        ),
        *((model, {name: 3}, name) for name in ("denoiser", "name", "weights", "decode", "schedule")),
        (model, {"null": 99}, "null"),
        (model, {"null": 1.5, "classes": 10}, "null"),
        (model, {"device": "nowhere"}, "device"),
        (gas.Adam, {"checkpointing": "x"}, "checkpointing"),
        (gas.Adam, {"checkpointing": 0}, "checkpointing"),
        (gas.Adam, {"decay": "x"}, "decay"),
        (gas.Adam, {"betas": (0.9,)}, "betas"),
        (gas.Adam, {"betas": 3}, "betas"),
        (gas.Adam, {"betas": (0.9, NAN)}, "betas"),
        (StartSearch, {"start": "x"}, "solver"),
        (StartSearch, {"start": 3}, "start"),
        (StartSearch, {"steps": 0}, "steps"),
        (classical, {"solver": 3}, "solver"),
        (classical, {"grid": None}, "grid"),
        (classical, {"nfe": 1001}, "nfe"),
        (spec, {"seeds": range(10**9)}, "seeds"),
        (spec, {"teacher": "ddim"}, "teacher"),
        (spec, {"labelled": 1}, "labelled"),
        (spec, {"decoded": "no"}, "decoded"),
        (critic, {"network": zero}, "network"),
        (critic, {"view": 3}, "view"),
        (critic, {"objective": 3}, "objective"),
        (critic, {"weight": INF}, "weight"),
        (critic, {"conditional": None}, "conditional"),
        (adversary, {"discriminators": 3}, "discriminators"),
        (adversary, {"criterion": 3}, "criterion"),
        (adversary, {"config": gas.GaussNewton()}, "config"),
        (adversary, {"pairing": "x"}, "pairing"),
        (adversary, {"unit": None}, "unit"),
        (fitted, {"keep": "x"}, "keep"),
        (fitted, {"keep": 3}, "keep"),
        (fitted, {"pairing": "x"}, "pairing"),
        (fitted, {"config": {}}, "config"),
        (fitted, {"loss": "x"}, "loss"),
        (fitted, {"loss": 3}, "loss"),
        (fitted, {"checkpoint": 3}, "checkpoint"),
        (fitted, {"solver": TABLE}, "solver"),
        (fitted, {"pairs": [1, 2]}, "pairs"),
        (fitted, {"validation": 3}, "validation"),
    ],
)
def test_wrong_values_are_refused_by_name(make, wrong, name):
    with pytest.raises(ValueError, match=name):
        make(**wrong)


def test_pairs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"pairs have samples of shape \(3,\), model own of \(2,\)"):
        fitted(pairs=pairs_of(of=model(sample_shape=(3,))))


def test_a_teacher_that_is_not_finite_is_refused():
    broken = model(denoiser=lambda x, t: x * NAN)
    with pytest.raises(ValueError, match="sample is not finite for seed 0"):
        pairs_of(of=broken)
    whole = pairs_of()
    target = whole.target.clone()
    target[1] = NAN
    pairs = replace(whole, target=target)
    with pytest.raises(ValueError, match="sample of seed 1 is not finite"):
        fitted(pairs=pairs)


@pytest.mark.parametrize("seed", [1.5, -1, True, "x", None])
def test_a_seed_is_an_integer_from_zero(seed):
    with pytest.raises(ValueError, match="a seed must"):
        model().noise([seed])


def test_values_of_numpy_and_torch_pass():
    import numpy as np

    assert arguments.integer("n", np.int64(3), 0, 5) == arguments.integer("n", torch.tensor(3), 0, 5) == 3
    assert arguments.number("x", np.float32(0.5), "[0, 1]") == arguments.number(
        "x", torch.tensor(0.5), "[0, 1]"
    )
    assert arguments.number("x", 1, "[0, 1]") == 1.0
    for outside in (0.0, 1.0, -INF):
        with pytest.raises(ValueError, match=r"x must lie in \(0, 1\)"):
            arguments.number("x", outside, "(0, 1)")
