"""What whole sessions and modules share."""

import functools
import gc
import sys

import pytest
from typer import testing

from support import quick, small_zoo

# Writing asserts anew takes a process ten seconds, so that modules are kept whatever PYTHONDONTWRITEBYTECODE says.
sys.dont_write_bytecode = False

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
    with quick.quick_gauss_newton():
        yield


@pytest.fixture(scope="module")
def few_classical_solvers():
    """Nine of the 75 classical solvers to rank: for modules where the best of any will do."""
    with quick.few_classical_solvers():
        yield


@pytest.fixture(scope="module")
def short_runs():
    """Starts chosen after one Gauss-Newton step: for modules where any choice will do."""
    with quick.short_runs():
        yield


@pytest.fixture(scope="module")
def small_digits(tmp_path_factory):
    """A small network by the name of digits: for modules where any will do."""
    with small_zoo.small_networks(tmp_path_factory.mktemp("zoo"), "digits"):
        yield
