"""What whole sessions and modules share."""

import functools
import gc

import pytest
from typer import testing

from gas.classical.registry import candidates

# Thousands of classes and tests live to the end of the session: looking through them for garbage took a third of it.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


# A runner builds all commands for each line, which takes longer than most lines.
testing._get_command = functools.cache(testing._get_command)


@pytest.fixture(scope="module")
def quick_gauss_newton():
    """Gauss-Newton that stops short of its model's minimum: for modules where any step down will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gas.training.inner_solve._STEPS", 4)
        yield


_FEW_SOLVERS, _FEW_GRIDS = ["ddim", "dpmpp-3m", "ipndm-3", "unipc-3-bh2"], ["log_snr", "time_quadratic"]


@pytest.fixture(scope="module")
def few_classical_solvers():
    """Eight of the 75 classical solvers to rank: for modules where the best of any will do."""

    def few(*args, solvers=(), grids=(), **more):
        chosen = [name for name in solvers if name in _FEW_SOLVERS] or solvers or _FEW_SOLVERS
        return candidates(*args, solvers=chosen, grids=grids or _FEW_GRIDS, **more)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("distillation", "initialization", "ranking"):
            patch.setattr(f"gas.training.{module}.candidates", few)
        yield
