"""Shortcuts for tests in which any classical solver and any step down will do."""

import contextlib

import pytest

from gas.classical.registry import candidate_solvers
from gas.training.successive_halving import Candidate

# As many grids as there are candidates for the start, of which each is the best of a grid.
_SOLVERS, _GRIDS = ["ddim", "ipndm-3", "unipc-3-bh2"], ["log_snr", "time_quadratic", "time_uniform"]


@contextlib.contextmanager
def quick_gauss_newton():
    """Gauss-Newton that stops short of its model's minimum."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gas.training.inner_solve._STEPS", 4)
        yield


def _few(*args, solvers=(), grids=(), **more):
    chosen = [name for name in solvers if name in _SOLVERS] or solvers or _SOLVERS
    return candidate_solvers(*args, solvers=chosen, grids=grids or _GRIDS, **more)


@contextlib.contextmanager
def few_classical_solvers():
    """Nine of the 75 classical solvers to rank."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            "classical.registry",
            "training.distillation",
            "training.progress",
            "training.ranking",
        ):
            patch.setattr(f"gas.{module}.candidate_solvers", _few)
        yield


@contextlib.contextmanager
def short_runs():
    """Short runs of one Gauss-Newton step, which choose a start or the row that goes."""
    run = Candidate.short_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Candidate, "short_run", lambda self, steps, *rest: run(self, 1, *rest))
        yield
