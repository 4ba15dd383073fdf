"""Leases: independent workers on one folder agree who makes which file, without messages and without a common clock.

Whoever makes file ``NAME`` first creates ``.NAME.lease-1``, which fails where it exists, and then renews its time of
modification. A worker that sees the same time for :data:`EXPIRY` seconds of its own clock takes the lease as dead and
creates ``.NAME.lease-2``. Only names and changes of times count, so a lease may be of any time, kind, size and content.

Leases save work; they protect nothing. Two workers that both believe in theirs make the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from gas.io import deferred_interrupts

# Seconds between renewals, and without one until a lease is dead: clients of NFS see new times up to 60 s late.
RENEWAL, EXPIRY = 20.0, 300.0
# Seconds between two looks at a folder where all has a live lease.
POLL = 5.0
_LEASE = re.compile(r"\.(.+)\.lease-([1-9]\d{0,8})")


class Lease:
    """The lease of a file, which a thread renews until :meth:`release`.

    Args:
        folder: of the file.
        name: of the file.
        generation: one above that of the dead lease of ``name``, 1 where there is none.

    Raises:
        FileExistsError: when another worker was first.
    """

    def __init__(self, folder: Path, name: str, generation: int) -> None:
        self.name, self._folder, self.generation = name, folder, generation
        self._path = folder / f".{name}.lease-{generation}"
        self._handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with contextlib.suppress(OSError):  # a note for people, without which a full disk can do
            os.write(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._released = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def is_superseded(self) -> bool:
        """Return whether another worker took this lease as dead, and has the next one or has released it."""
        return not self._is_ours() or os.path.lexists(
            self._folder / f".{self.name}.lease-{self.generation + 1}"
        )

    def release(self) -> None:
        """Delete the lease and the dead ones before it."""
        self._released.set()
        is_ours = self._is_ours()
        os.close(self._handle)
        if is_ours:
            discard_leases(self._folder, self.name, self.generation)

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL):
            with contextlib.suppress(OSError):  # the file system may come back before the lease expires
                if self._is_ours():
                    os.utime(self._path)

    def _is_ours(self) -> bool:
        """Return whether the lease is the file created here; the open handle keeps its number from another file."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._handle), os.lstat(self._path))
        return False


class Leases:
    """The leases of a folder, as one worker watches them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watched: dict[tuple[str, int], tuple[int, float]] = {}
        """Of a lease: its time of modification in ns, and this worker's clock when it first saw that time."""

    @contextlib.contextmanager
    def claim(self, names: Iterable[str]) -> Iterator[Lease | None]:
        """Hold the lease of the first name without a live one; where all have one, wait a moment and yield ``None``.

        Warns:
            UserWarning: names a dead lease that is superseded.

        Raises:
            OSError: when the folder cannot be written.
        """
        lease: Lease | None = None
        try:
            with deferred_interrupts():  # an interrupt finds no lease, or one that is released below
                lease = self._first(names)
            if lease is None:
                time.sleep(POLL)
            elif lease.generation > 1:
                dead = self._folder / f".{lease.name}.lease-{lease.generation - 1}"
                warnings.warn(
                    f"{dead} was not renewed for {EXPIRY:.0f} seconds: its work is done again", stacklevel=4
                )
            yield lease
        finally:
            if lease is not None:
                with deferred_interrupts():
                    lease.release()

    def _first(self, names: Iterable[str]) -> Lease | None:
        latest: dict[str, int] = {}
        for name, generation in sorted(_leases(self._folder)):
            latest[name] = generation
        for name in names:
            generation = latest.get(name, 0)
            if generation and not self._is_dead(name, generation):
                continue
            with contextlib.suppress(FileExistsError):
                return Lease(self._folder, name, generation + 1)
        return None

    def _is_dead(self, name: str, generation: int) -> bool:
        try:
            modified = os.lstat(self._folder / f".{name}.lease-{generation}").st_mtime_ns
        except FileNotFoundError:  # released a moment ago: free at the next look
            return False
        before, since = self._watched.get((name, generation), (None, 0.0))
        now = time.monotonic()
        if modified != before:
            self._watched[name, generation] = modified, now
            return False
        return now - since > EXPIRY


def discard_leases(folder: Path, name: str = "", last: int = 0) -> None:
    """Delete the leases of a file up to generation ``last``, or all of a folder."""
    for other, generation in sorted(_leases(folder)):
        if not name or (other == name and generation <= last):
            with contextlib.suppress(OSError):  # a folder, which no worker created
                os.unlink(folder / f".{other}.lease-{generation}")


def has_leases(folder: Path) -> bool:
    """Return whether a worker is at work in a folder, or was killed there."""
    return any(_leases(folder))


def _leases(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the file's name and the generation of every lease in a folder."""
    for entry in os.listdir(folder):
        if match := _LEASE.fullmatch(entry):
            yield match[1], int(match[2])
