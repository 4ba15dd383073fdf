"""Ownership of a command's outputs: marked folders, and locks against a second process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from gas.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where a second command on one output is not refused
    fcntl = None  # type: ignore[assignment]

MARKER = ".gas-solver"
LOCK = ".gas.lock"
WEIGHTS_VARIABLE = "GAS_WEIGHTS"
# Outputs that this process holds: a command may call another on the same output.
_held: set[Path] = set()
_TEXT = "gas-solver made this folder: it may overwrite and delete files that it wrote here.\n"
# In a folder that also has foreign files; followed by one name on each line.
_TEXT_OF_NAMES = "gas-solver writes into this folder: it may overwrite these entries.\n"
_MARKER_BYTES = 1 << 20


def claim(folder: str | Path, names: Sequence[str] | None = None) -> Path:
    """Mark a folder as gas-solver's, create it if need be, or refuse one with foreign files.

    Only files in a marked folder are ever overwritten or deleted without being named by the user. A link in place of
    the folder or of an entry would be written through, and is refused.

    Args:
        folder: new, empty, or marked by an earlier run.
        names: the entries that will be written into a folder of the user's, which may hold other files and be reached
            by a link. By default all entries of a folder that only gas-solver writes to.
    """
    folder = Path(folder)
    marker = folder / MARKER
    present = sorted(os.listdir(folder)) if folder.is_dir() else []
    entries = [name for name in present if name not in (MARKER, LOCK) and (names is None or name in names)]
    for path in (*([folder] if names is None else []), *(folder / name for name in entries), marker):
        if path.is_symlink():
            raise UserError(
                f"{path} is a link and would be written through: remove it, or name another output"
            )
    marked = _marked(marker)
    if marked is None:
        return folder
    if foreign := [name for name in entries if name not in marked]:
        raise UserError(
            f"{folder / foreign[0]} was not written by gas-solver (no {MARKER} beside it names it): move it away, "
            "or name another output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if names is None:
        marker.write_text(_TEXT)
    elif new := [name for name in names if name not in marked]:
        with marker.open("a", encoding="utf-8") as file:
            file.write("" if marked else _TEXT_OF_NAMES)
            file.writelines(f"{name}\n" for name in new)
    return folder


def _marked(marker: Path) -> set[str] | None:
    """Return the entries that a mark covers; ``None`` stands for all, no mark covers none."""
    from gas.io import read_text

    if not marker.is_file():
        return set()
    first, *names = read_text(marker, _MARKER_BYTES).splitlines() or [""]
    return set(names) if f"{first}\n" == _TEXT_OF_NAMES else None


def discard(folder: str | Path, pattern: str) -> None:
    """Delete files of a folder that :func:`claim` marked as a whole, and the folder itself if nothing else is left.

    Nothing is deleted behind a link. ``pattern`` is a regular expression that a whole file name must match.
    """
    folder = Path(folder)
    marker = folder / MARKER
    if folder.is_symlink() or marker.is_symlink() or _marked(marker) is not None:
        return
    for entry in list(os.scandir(folder)):
        if entry.is_file(follow_symlinks=False) and re.fullmatch(pattern, entry.name):
            os.unlink(entry.path)
    if os.listdir(folder) == [MARKER]:
        marker.unlink()
        folder.rmdir()


@contextlib.contextmanager
def scratch(folder: str | Path, pattern: str) -> Iterator[None]:
    """Claim a folder for resumable state; delete it afterwards, or after an error keep it if it holds any state.

    ``pattern`` is that of the state files, as for :func:`discard`.
    """
    claim(folder)
    try:
        yield
    except BaseException:
        discard(folder, "")
        raise
    discard(folder, pattern)


@contextlib.contextmanager
def hold(output: str | Path, work: str, *, folder: bool = False, shared: bool = False) -> Iterator[None]:
    """Lock an output against other processes; the operating system releases the lock when the process ends.

    Args:
        output: file or folder to be written.
        work: description of the work, shown to a process that is refused.
        folder: whether a new output will be a folder. A folder's lock lies in it, a file's beside it.
        shared: whether processes that also share it may hold it at the same time. They leave the lock file, but for
            a new folder that has nothing else.
    """
    target = Path(os.path.realpath(output))
    if target in _held:
        yield
        return
    folder = folder or target.is_dir()
    home = target if folder else target.parent
    absent = [path for path in (home, *home.parents) if not path.exists()]
    path = home / (LOCK if folder else f".{target.name}.lock")
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = _locked(path, output, shared)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}): name a place in another folder"
        ) from error
    _held.add(target)
    try:
        if handle is not None:
            since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            note = {"work": work, "process": os.getpid(), "host": socket.gethostname(), "since": since}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(note).encode(), 0)
        yield
    finally:
        _held.discard(target)
        if handle is not None:
            if not shared or (absent and _is_alone(handle, path)):
                path.unlink(missing_ok=True)  # while still locked, so that a waiting process opens a new file
            os.close(handle)
        for created in absent:  # a refused command leaves no empty folders behind
            with contextlib.suppress(OSError):
                created.rmdir()


def _is_alone(handle: int, path: Path) -> bool:
    """Return whether a shared lock is all that a folder holds, and now exclusive: as after a refused command."""
    with contextlib.suppress(OSError):
        if fcntl is not None and os.listdir(path.parent) == [path.name]:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.listdir(path.parent) == [path.name]
    return False


def _locked(path: Path, output: str | Path, shared: bool) -> int | None:
    """Open and lock a file; ``None`` on a system or file system without locks."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False)):
                    return handle
            os.close(handle)  # its process ended between the two calls and deleted the file
        except BlockingIOError:
            holder = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise UserError(f"{holder} is at work on {output}: wait for it, or name another output") from None
        except OSError:  # a file system without locks
            os.close(handle)
            return None


def _holder(note: bytes) -> str:
    """Return the holder of a lock in words."""
    from gas.io import parse_json

    try:
        holder = parse_json(note)
        host = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return f"{holder['work']} (process {int(holder['process'])}{host}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):  # it holds the lock, but has not written its note yet
        return "another process"


def weights_folder(given: Path | str | None = None) -> Path:
    """Return the folder of published weights: ``given``, ``GAS_WEIGHTS``, or ``~/.cache/gas-solver/weights``."""
    folder = given or os.environ.get(WEIGHTS_VARIABLE) or Path.home() / ".cache" / "gas-solver" / "weights"
    return Path(folder).expanduser()
