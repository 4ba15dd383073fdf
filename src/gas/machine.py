"""Limits of this machine: processors and memory of its control groups, and how OpenMP threads wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

__all__ = ["group_available", "group_processors", "set_thread_defaults"]

# If any of these is set, the user has decided how threads wait.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_thread_defaults(environ: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Let waiting OpenMP threads sleep, and limit their number to the granted processor time.

    By default a thread that has finished its part of a loop spins until the others are done (GNU's for a millisecond
    or more, LLVM's and Intel's for 200 ms). Beside another program it occupies the processor that the last thread is
    waiting for, in each of the network's thousands of short loops. The user's settings take precedence. OpenMP reads
    them once, when torch loads it.

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
        # OpenMP counts the processors that it may run on, not a container's share of their time.
        environ["OMP_NUM_THREADS"] = str(max(1, int(granted)))


def _usable() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# File names in cgroup v2 and v1: limit, usage and droppable file cache of memory; quota and period of processors.
_UNIFIED = ("memory.max", "memory.current", "inactive_file")
_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_QUOTA, _OLD_QUOTA = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def group_available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process's control groups still allow; ``None`` where none has a limit.

    A group is bound by every group above it, so the tightest counts. File cache that the kernel would drop under
    pressure is not counted as used.

    Args:
        root: of the file system, for tests.

    References:
        Linux, ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
    """
    groups = _groups(root, "memory", _UNIFIED, _MEMORY)
    left = [known for group, names in groups if (known := _left(group, names)) is not None]
    return min(left, default=None)


def group_processors(root: Path = Path("/")) -> float | None:
    """Return how many processors' time this process's control groups allow; ``None`` where none has a quota.

    Args:
        root: of the file system, for tests.

    References:
        Linux, ``Documentation/admin-guide/cgroup-v2.rst`` and ``scheduler/sched-bwc.rst``.
    """
    groups = _groups(root, "cpu", _QUOTA, _OLD_QUOTA)
    quotas = [known for group, names in groups if (known := _quota(group, names)) is not None]
    return min(quotas, default=None)


def _groups(
    root: Path, controller: str, unified: tuple[str, ...], old: tuple[str, ...]
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the folders of this process's groups and of all above them, with the names of their files."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        kinds = [(mount, unified), (mount / "unified", unified)] if not controllers else []
        if controller in controllers.split(","):
            # One name is a link to the other where two controllers share a mount.
            kinds = [(mount / controller, old)]
        for base, names in kinds:
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                yield folder, names
                if folder == base:
                    break


def _left(group: Path, names: tuple[str, ...]) -> int | None:
    """Return the bytes that one group still allows; ``None`` without a limit (``max``) or without such files."""
    limit, usage, cache = names
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
