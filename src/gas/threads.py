"""How many threads a command computes with, and how they wait: settled before torch loads its OpenMP."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from gas.cgroup import group_processors

__all__ = ["set_thread_defaults"]

# Whoever has set one of these has decided how threads wait.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_thread_defaults(environ: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Let OpenMP's threads sleep while they wait, and start no more than the processors' time that is granted.

    By default a thread that has done its part of a loop spins until the others are done (GNU's for about a
    millisecond or more, LLVM's and Intel's for 200 ms). Beside another program, it spins on the processor that
    the last thread is waiting for, at every one of the network's thousands of short loops. Settings of the user's
    stand. OpenMP reads its settings once, when torch loads it.

    Args:
        environ: the environment to set them in.
        root: of the file system, for tests.

    References:
        OpenMP 5.2, section 21.8 (``OMP_WAIT_POLICY``); libgomp's ``GOMP_SPINCOUNT``; LLVM's ``KMP_BLOCKTIME``.
    """
    if not any(name in environ for name in _WAITING):
        environ["OMP_WAIT_POLICY"] = "PASSIVE"
        environ["KMP_BLOCKTIME"] = "0"  # LLVM's and Intel's spin whatever the policy; milliseconds
    granted = group_processors(root)
    if granted is not None and granted < _usable() and not any(name in environ for name in _COUNTS):
        # OpenMP counts the processors that it may run on, not the share of their time that a container has.
        environ["OMP_NUM_THREADS"] = str(max(1, int(granted)))


def _usable() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
