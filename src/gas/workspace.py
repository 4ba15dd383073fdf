"""Folders and files that a command works on: which of them are its own, and who is at work on them."""

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
except ModuleNotFoundError:  # Windows, where two commands on one output are not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "MARKER", "WEIGHTS_VARIABLE", "claim", "discard", "hold", "scratch", "weights_folder"]

MARKER = ".gas-solver"
LOCK = ".gas.lock"
WEIGHTS_VARIABLE = "GAS_WEIGHTS"
# Outputs that this process is at work on: a command may call another's work on the same one.
_held: set[Path] = set()
_TEXT = "gas-solver made this folder: it may overwrite and delete files that it wrote here.\n"
# In a folder with files of others too; below it a name a line.
_TEXT_OF_NAMES = "gas-solver writes into this folder: it may overwrite these entries.\n"
_MARKER_BYTES = 1 << 20


def claim(folder: str | Path, names: Sequence[str] | None = None) -> Path:
    """Mark a folder as this project's, or refuse one that holds the files of somebody else.

    Whatever is overwritten or deleted later without being named by the user lies in a folder with such a mark.

    Args:
        folder: new, empty, or marked by an earlier run.
        names: the entries that will be written, in a folder that may hold other files beside them and may be
            reached by a link, as the user named it; by default every entry of a folder of our own choice.

    Returns:
        ``folder``, which exists and has the mark.

    Raises:
        ValueError: for a link in place of the folder or of an entry, which would be written through, and for
            entries that no mark is about: of a folder without a mark, or whose mark names others.
    """
    folder = Path(folder)
    if names is None and folder.is_symlink():
        raise UserError(f"{folder} is a link and would be written through: remove it, or name another output")
    marker = folder / MARKER
    present = sorted(os.listdir(folder)) if folder.is_dir() else []
    entries = [name for name in present if name not in (MARKER, LOCK) and (names is None or name in names)]
    links = [name for name in (*entries, MARKER) if (folder / name).is_symlink()]
    if links:
        raise UserError(
            f"{folder / links[0]} is a link and would be written through: remove it, or name another output"
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
    """Return the entries that a mark is about, none where there is no mark; ``None`` is every entry of the folder."""
    from gas.io import read_text

    if not marker.is_file():
        return set()
    first, *names = read_text(marker, _MARKER_BYTES).splitlines() or [""]
    return set(names) if f"{first}\n" == _TEXT_OF_NAMES else None


def discard(folder: str | Path, pattern: str) -> None:
    """Delete the files of a marked folder whose names match, and the folder if nothing else is left in it.

    Args:
        folder: that :func:`claim` marked as a whole; without the mark, or behind a link, nothing is deleted.
        pattern: a regular expression for the whole name of a file that this project writes there.
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
    """Have a folder of resumable state meanwhile: afterwards it goes, after an error it stays, if there is any state.

    Args:
        folder: as for :func:`claim`.
        pattern: of the names of files that are written there, as for :func:`discard`.

    Raises:
        ValueError: as :func:`claim` does.
    """
    claim(folder)
    try:
        yield
    except BaseException:
        discard(folder, "")
        raise
    discard(folder, pattern)


@contextlib.contextmanager
def hold(output: str | Path, work: str, *, folder: bool = False) -> Iterator[None]:
    """Be the only process at work on an output; the system ends the hold with the process, however that ends.

    Args:
        output: a file or folder that is to be written.
        work: what is done, for another process that is refused.
        folder: whether it will be a folder; one that exists is. Its lock lies in it, a file's beside it.

    Raises:
        ValueError: when another process is at work on it: which, and since when.
        OSError: when nothing can be written there, named by the output.
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
        handle = _locked(path, output)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from error
    _held.add(target)
    try:
        if handle is not None:
            note = {"work": work, "process": os.getpid(), "host": socket.gethostname()}
            os.ftruncate(handle, 0)
            os.pwrite(
                handle, json.dumps({**note, "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}).encode(), 0
            )
        yield
    finally:
        _held.discard(target)
        if handle is not None:
            path.unlink(missing_ok=True)  # while it is still held: whoever waits then opens another one
            os.close(handle)
        for made in absent:  # a command that was refused leaves no empty folders behind
            with contextlib.suppress(OSError):
                made.rmdir()


def _locked(path: Path, output: str | Path) -> int | None:
    """Return the open and locked file; ``None`` on a system or file system without locks."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                return handle
            os.close(handle)  # of a process that ended between the two calls and took its file away
        except BlockingIOError:
            told = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise UserError(f"{told} is at work on {output}: wait for it, or name another output") from None
        except OSError:  # a file system without locks
            os.close(handle)
            return None


def _is(path: Path, handle: int) -> bool:
    """Whether a path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(note: bytes) -> str:
    """Return who holds a lock, in words."""
    from gas.io import parse_json

    try:
        found = parse_json(note)
        where = "" if found["host"] == socket.gethostname() else f" on {found['host']}"
        return f"{found['work']} (process {int(found['process'])}{where}, since {found['since']})"
    except (ValueError, KeyError, TypeError):  # it has the lock, and not yet written its name
        return "another process"


def weights_folder(given: Path | str | None = None) -> Path:
    """Return the folder of published weights: ``given``, ``GAS_WEIGHTS``, or ``~/.cache/gas-solver/weights``."""
    folder = given or os.environ.get(WEIGHTS_VARIABLE) or Path.home() / ".cache" / "gas-solver" / "weights"
    return Path(folder).expanduser()
