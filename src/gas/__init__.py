"""gas-solver: learned few-step samplers for pretrained diffusion and flow models.

A solver is a table of numbers (:class:`gas.Table`); :func:`gas.sample` runs every one of them.
Names load when first used, so that ``import gas`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gas.lazy import submodules_of

if TYPE_CHECKING:
    from gas import (
        backbones,
        catalogue,
        classical,
        comparison,
        cuda_graphs,
        denoise,
        discriminator,
        features,
        grids,
        learned,
        losses,
        metrics,
        model,
        pairs,
        processes,
        report,
        schedule,
        tf32,
        zoo,
    )
    from gas.adversarial import Critic
    from gas.adversary import Adversary, adversary_for
    from gas.artefact import Artefact, load, save
    from gas.catalogue import Classical
    from gas.compare import compare
    from gas.distill import Distilled, distill
    from gas.family import distill_family
    from gas.fit import FitRecord, fit
    from gas.gits import gits
    from gas.integrations.diffusers.scheduler import GASScheduler
    from gas.learned import BNS, LD3, S4S, GeneralizedSolver
    from gas.model_checks import check_model
    from gas.optimizers import PAPER, Adam, Diverged, GaussNewton
    from gas.own import OwnModel
    from gas.pairs import Pairs, PairsSpec, read_pairs, write_pairs
    from gas.sample import sample, trajectory
    from gas.schedule import EDMasVP, Flow, Schedule, VPDiscrete, VPLinear
    from gas.start import evaluate, rank_classical
    from gas.stepper import Stepper
    from gas.table import Table

_HOMES = {
    "adversarial": ["Critic"],
    "adversary": ["Adversary", "adversary_for"],
    "artefact": ["Artefact", "load", "save"],
    "catalogue": ["Classical"],
    "compare": ["compare"],
    "distill": ["Distilled", "distill"],
    "family": ["distill_family"],
    "fit": ["FitRecord", "fit"],
    "gits": ["gits"],
    "integrations.diffusers.scheduler": ["GASScheduler"],
    "learned": ["BNS", "LD3", "S4S", "GeneralizedSolver"],
    "optimizers": ["PAPER", "Adam", "Diverged", "GaussNewton"],
    "model_checks": ["check_model"],
    "own": ["OwnModel"],
    "pairs": ["Pairs", "PairsSpec", "read_pairs", "write_pairs"],
    "sample": ["sample", "trajectory"],
    "schedule": ["EDMasVP", "Flow", "Schedule", "VPDiscrete", "VPLinear"],
    "start": ["evaluate", "rank_classical"],
    "stepper": ["Stepper"],
    "table": ["Table"],
}
_MODULES = [
    "backbones",
    "catalogue",
    "classical",
    "comparison",
    "cuda_graphs",
    "denoise",
    "discriminator",
    "features",
    "grids",
    "learned",
    "losses",
    "metrics",
    "model",
    "pairs",
    "processes",
    "report",
    "schedule",
    "tf32",
    "zoo",
]
# Diffusers loads a pipeline's scheduler from the module that the pipeline's index names, ``gas``, if that has this too.
_HIDDEN = {"SchedulerMixin": "integrations.diffusers.scheduler"}
_submodule = submodules_of(__name__)
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, *_MODULES])

# Set when first asked for: reading an installation's metadata takes longer than the rest of this module.
__version__: str


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"gas.{_HOME[name]}"), name)
    elif name in _HIDDEN:
        value = getattr(importlib.import_module(f"gas.{_HIDDEN[name]}"), name)
    elif name == "__version__":
        value = _version()
    else:
        value = _submodule(name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("gas-solver")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "unknown"


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps ``gas.sample`` and ``gas.fit`` the functions when the import system sets the modules of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
