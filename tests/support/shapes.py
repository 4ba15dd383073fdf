"""Shapes and dtypes of the mathematical core as types, which ``tests/laws`` checks at every call."""

import inspect
import sys
from types import FunctionType, ModuleType

import torch
from beartype import beartype
from jaxtyping import Float, Float64, jaxtyped
from torch import Tensor

from gas.classical.rows import Grid
from gas.denoise import (
    DynamicThreshold,
    EDMDenoiser,
    FlowDenoiser,
    NoiseDenoiser,
    StaticThreshold,
    VelocityDenoiser,
)
from gas.grids import analytic
from gas.schedule import EDMasVP, Flow, VPDiscrete, VPLinear
from gas.table import Table
from gas.training import linearization

# Times may be numbers and of any real dtype; results are float64 of their shape.
TIME = float | int | Float[Tensor, "*t"]
LEVEL = Float64[Tensor, "*t"] | Float64[Tensor, ""]
GRID = Float64[Tensor, "{nfe}+1"]
STATE = Float[Tensor, "batch *x"]
STEPS = Float64[Tensor, "{self.nfe} {len(self.corrected)}+{self.nfe}"]
UNROLLED = Float64[Tensor, "{self.nfe}+1 {self.nfe}+1"]
COUNT = "({table.nfe}*({table.nfe}+5))//2"  # numbers of a folded table
TANGENTS = Float[Tensor, f"{COUNT} batch *x"]
NODE = Float64[Tensor, " nodes"]

SCHEDULE = {
    "__call__": {"t": TIME, "return": tuple[LEVEL, LEVEL]},
    "half_log_snr": {"t": TIME, "return": LEVEL},
    "inverse_half_log_snr": {"lam": TIME, "return": LEVEL},
}
DENOISER = {"__call__": {"x": STATE, "t": Float64[Tensor, ""], "return": STATE}}

#: Argument and result types of functions, by the class or module that has them.
CORE: dict[type | ModuleType, dict[str, dict[str, object]]] = {
    **dict.fromkeys((VPLinear, VPDiscrete, EDMasVP, Flow), SCHEDULE),
    **dict.fromkeys((NoiseDenoiser, VelocityDenoiser, FlowDenoiser, EDMDenoiser), DENOISER),
    **dict.fromkeys((StaticThreshold, DynamicThreshold), DENOISER),
    Table: {"steps": {"return": STEPS}, "unrolled": {"return": UNROLLED}},
    Grid: {"__init__": {"t": NODE, "alpha": NODE, "sigma": NODE, "lam": NODE}},
    analytic: {name: {"return": GRID} for name in analytic.GRIDS},
    linearization: {
        "numbers": {"table": Table, "return": Float64[Tensor, COUNT]},
        "linearize": {
            "x": STATE,
            "table": Table,
            "return": tuple[STATE, TANGENTS, int],
        },
        "normal_equations": {"x": STATE, "target": STATE, "return": linearization.Normal},
    },
    linearization.Normal: {
        "__init__": {
            "losses": Float64[Tensor, " batch"],
            "weights": Float64[Tensor, " batch"],
            "gradient": Float64[Tensor, " p"],
            "curvature": Float64[Tensor, "p p"],
        }
    },
}


def checked(function: FunctionType, types: dict[str, object]) -> FunctionType:
    """Return a copy of a function that refuses arguments and results of other shapes or dtypes."""
    plain = inspect.unwrap(function)  # torch.no_grad hides the names of arguments
    copy = FunctionType(
        plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    copy.__kwdefaults__, copy.__annotations__ = plain.__kwdefaults__, types
    copy = jaxtyped(copy, typechecker=beartype)
    return copy if plain is function else torch.no_grad()(copy)


def check_core(patch) -> None:
    """Replace every function of :data:`CORE`, wherever it was imported to, with its checked copy."""
    for package in [m for n, m in sys.modules.items() if n.partition(".")[0] == "gas"]:
        for name in {name for functions in CORE.values() for name in functions} & set(dir(package)):
            getattr(package, name)  # which a lazy package stores at first use: not the copy, which would stay
    for owner, functions in CORE.items():
        for name, types in functions.items():
            function = getattr(owner, name)
            copy = checked(function, types)
            patch.setattr(owner, name, copy)
            for module in [m for m in sys.modules.values() if isinstance(m, ModuleType)]:
                if isinstance(owner, ModuleType) and vars(module).get(name) is function:
                    patch.setattr(module, name, copy)
