"""Processes for signals, limits and shared work: forked, since imports take longer than most work of a test."""

import multiprocessing
import warnings
from collections.abc import Callable
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
