"""What a container leaves of a machine's memory: the limits of Linux control groups, versions 1 and 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["group_available"]

# Where each version keeps its groups, and what it calls limit, usage and the file cache that can be dropped at once.
_UNIFIED = ("memory.max", "memory.current", "inactive_file")
_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group_available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process's control groups still allow; ``None`` where none has a limit.

    A group is bound by every group above it, so the tightest counts. File cache that the kernel would drop under
    pressure is not counted as used.

    Args:
        root: of the file system, for tests.

    References:
        Linux, ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
    """
    left = [known for group, names in _groups(root) if (known := _left(group, names)) is not None]
    return min(left, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the folders of this process's groups and of all above them, with the names of their files."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        kinds = [(mount, _UNIFIED), (mount / "unified", _UNIFIED)] if not controllers else []
        if "memory" in controllers.split(","):
            kinds = [(mount / "memory", _MEMORY)]
        for base, names in kinds:
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                yield folder, names
                if folder == base:
                    break


def _left(group: Path, names: tuple[str, str, str]) -> int | None:
    """What one group still allows; ``None`` without a limit (``max``) or without such files."""
    limit, usage, cache = names
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(counts[cache])
    return max(0, most - max(0, used))
