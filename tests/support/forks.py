"""Processes for signals, limits and shared work: forked, since imports take longer than most work of a test."""

import multiprocessing
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

import torch


def fork(function: Callable[..., object], *args: object) -> BaseProcess:
    """Start a function in a process of its own; it ends with the code of a ``SystemExit``, else with 0 or 1."""

    def run() -> None:
        torch.set_num_threads(1)  # the threads of the parent do not exist in a fork
        function(*args)

    process = multiprocessing.get_context("fork").Process(target=run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which wait
        process.start()
    return process


def _without_the_library(program: str, words: list[str], without: Sequence[str], output: str) -> None:
    warnings.simplefilter("ignore")
    sys.argv = ["-c", *words]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("gas", *without)]:
        del sys.modules[name]
    sys.modules |= dict.fromkeys(without)
    with open(output, "w") as sys.stdout:
        try:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        except Exception:
            traceback.print_exc(file=sys.stdout)
            raise SystemExit(1) from None


def run_fresh(program: str, *words: object, without: Sequence[str] = (), timeout: float = 120) -> str:
    """Run a program in a fork to which the library is new, though torch and whatever else is loaded are not.

    Packages named in ``without`` cannot be imported there.

    Returns:
        What it printed; a program that fails is a failed assertion.
    """
    with tempfile.NamedTemporaryFile("r") as output:
        process = fork(_without_the_library, program, list(map(str, words)), without, output.name)
        process.join(timeout)
        process.kill()
        assert process.exitcode == 0, output.read()
        return output.read()
