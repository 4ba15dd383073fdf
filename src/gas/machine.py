"""Limits of this machine: processors and memory of its control groups, and how OpenMP threads wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# If any of these is set, the user has decided how threads wait.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# File names in cgroup v2 and v1: limit, usage and droppable file cache of memory; quota and period of processors.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_QUOTA = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def set_thread_defaults(environ: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Let waiting OpenMP threads sleep, and limit their number to the granted processor time.

    By default a thread that has finished its part of a loop spins until the others are done (GNU's for a millisecond
    or more, LLVM's and Intel's for 200 ms). Beside another program it occupies the processor that the last thread is
    waiting for, in each of the network's thousands of short loops. The user's settings take precedence. OpenMP reads
    them once, when torch loads it. ``root`` is that of the file system, for tests.

    References:
        OpenMP 5.2, section 21.8 (``OMP_WAIT_POLICY``); libgomp's ``GOMP_SPINCOUNT``; LLVM's ``KMP_BLOCKTIME``.
    """
    if not any(name in environ for name in _WAITING):
        environ["OMP_WAIT_POLICY"] = "PASSIVE"
        environ["KMP_BLOCKTIME"] = "0"  # LLVM's and Intel's spin whatever the policy; milliseconds
    granted = group_processors(root)
    if granted is not None and granted < _usable() and not any(name in environ for name in _COUNTS):
        # OpenMP counts the processors that it may run on, not a container's share of their time.
        environ["OMP_NUM_THREADS"] = str(max(1, int(granted)))


def _usable() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def group_available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process's control groups still allow; ``None`` where none has a limit.

    A group is bound by every group above it, so the tightest counts. File cache that the kernel would drop under
    pressure is not counted as used.

    References:
        Linux, ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
    """
    left = [_left(group, *names) for group in _groups(root, "memory") for names in _MEMORY]
    return min((bytes_ for bytes_ in left if bytes_ is not None), default=None)


def group_processors(root: Path = Path("/")) -> float | None:
    """Return how many processors' time this process's control groups allow; ``None`` where none has a quota.

    References:
        Linux, ``Documentation/admin-guide/cgroup-v2.rst`` and ``scheduler/sched-bwc.rst``.
    """
    quotas = [_quota(group, names) for group in _groups(root, "cpu") for names in _QUOTA]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups and of all above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mount = root / "sys/fs/cgroup"
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        bases = [] if controllers else [mount, mount / "unified"]
        if controller in controllers.split(","):
            # One name is a link to the other where two controllers share a mount.
            bases = [mount / controller]
        for base in bases:
            group = base / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Return the bytes that one group still allows; ``None`` without a limit (``max``) or without such files."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(counts[cache])
    return max(0, most - max(0, used))


def _quota(group: Path, names: tuple[str, ...]) -> float | None:
    """Return the processors that one group allows; ``None`` without a quota (``max``, -1) or without such files."""
    try:
        quota, period = " ".join((group / name).read_text() for name in names).split()
        allowed = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return allowed if allowed > 0 else None
