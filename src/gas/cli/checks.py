"""Checks of option values, made while the command line is read and before any model is loaded."""

from __future__ import annotations

import errno
import os
import pkgutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import typer

from gas.arguments import number
from gas.errors import UserError

# Published guidance scales are 1 to 20.
GUIDANCE = "[-1000, 1000]"
# torch's device types that run networks; others only pretend to compute, or need further packages.
_COMPUTING = ("cpu", "cuda", "mps", "xpu")
# File names have at most 255 bytes nearly everywhere; a temporary file beside the output needs some of them.
_LONGEST_NAME = 230


def option(help: str, *checks: Callable[[Any], object], names: Sequence[str] = (), **kwargs: Any) -> Any:
    """Return an option with its help, the checks of its value, and its names where they differ from the parameter's."""
    return typer.Option(*names, help=help, callback=_checked(*checks) if checks else None, **kwargs)


def argument(help: str, *checks: Callable[[Any], object], **kwargs: Any) -> Any:
    """Return an argument with its help and the checks of its value."""
    return typer.Argument(help=help, callback=_checked(*checks) if checks else None, **kwargs)


def _checked(*checks: Callable[[Any], object]) -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """Return an option's callback that refuses a value for which one of ``checks`` raises an error."""

    def callback(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        source = context.get_parameter_source(param.name or "")
        if context.resilient_parsing or source is None or source.name != "COMMANDLINE":
            return value
        for each in value if isinstance(value, (list, tuple)) else [value]:
            for check in checks:
                try:
                    check(each)
                except (UserError, OSError, ModuleNotFoundError) as error:
                    raise typer.BadParameter(
                        error_text(error), ctx=context, param_hint=_hint(param)
                    ) from None
        return value

    return callback


def _hint(param: typer.CallbackParam) -> str:
    """Return the option as people type it, or the argument's name."""
    return f"'{param.opts[0] if param.opts else param.name}'"


def is_in(name: str, interval: str) -> Callable[[Any], object]:
    """Return a check that a number lies in an interval, as :func:`gas.arguments.number` takes it."""
    return lambda value: number(name, value, interval)


def registered(kind: str, names: str | Collection[str], *more: str) -> Callable[[Any], object]:
    """Return a check that a name is known.

    Args:
        kind: of the name, for messages.
        names: the known names, or ``"module:attribute"`` of their registry, imported when it is needed.
        more: names that are known beside the registry's.
    """

    def check(name: str) -> None:
        from gas.registry import named

        known = pkgutil.resolve_name(names) if isinstance(names, str) else names
        named(kind, name, dict.fromkeys((*more, *known)))

    return check


def imported(path: str) -> Callable[[Any], object]:
    """Return the check at ``"module:function"``, imported when it is needed."""
    return lambda value: pkgutil.resolve_name(path)(value)


def listed(check: Callable[[Any], object], *, empty: bool = True) -> Callable[[Any], object]:
    """Return a check of every item of a comma-separated list, which may be ``empty``."""

    def check_items(text: str) -> None:
        parts = split_names(text)
        if not parts and (text or not empty):
            raise UserError(f"a comma-separated list of names is wanted, got {text!r}")
        if repeated := [part for part in dict.fromkeys(parts) if parts.count(part) > 1]:
            raise UserError(f"{repeated[0]!r} is listed twice: once is enough")
        for part in parts:
            check(part)

    return check_items


def split_names(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def existing_path(path: Path) -> None:
    """Refuse a path that does not exist or cannot be read."""
    path.stat()
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def existing_file(path: Path) -> None:
    """Refuse a path that is not a file."""
    existing_path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.is_file():
        raise UserError(f"{path} is no regular file")


def existing_folder(path: Path) -> None:
    """Refuse a path that is not a folder."""
    existing_path(path)
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def output_file(*suffixes: str) -> Callable[[Any], object]:
    """Return a check that a file can be written, with one of these suffixes if there are any."""

    def check(path: Path) -> None:
        if suffixes and path.suffix not in suffixes:
            choice = "one of " if len(suffixes) > 1 else ""
            raise UserError(f"the name must end in {choice}{', '.join(suffixes)}, got {str(path)!r}")
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file, and would be replaced by one: name another")
        _check_writable(path, path.parent)

    return check


def output_folder(path: Path) -> None:
    """Refuse a folder that cannot be created or written to."""
    if path.exists() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    _check_writable(path, path)


def _check_writable(path: Path, folder: Path) -> None:
    """Try to write at the path or its nearest parent: ``/proc``, for one, has permissions and cannot be written."""
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UserError(f"a name of {len(os.fsencode(path.name))} bytes is longer than file systems take")
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): name a place in another folder"
        ) from error


def check_device(device: str) -> None:
    """Refuse a device that does not exist, or that only pretends to compute, as torch's ``meta`` does.

    Raises:
        UserError: says why it cannot be used.
    """
    if device == "cpu":
        return
    import torch

    try:
        kind = torch.device(device).type
        if kind not in _COMPUTING:
            raise RuntimeError(f"networks do not run on {kind}")
        float(torch.ones((), device=device) + 1)
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(": ")[0].strip()
        raise UserError(
            f"device {device[:40]!r} cannot be used ({reason[:120]}): take cpu, cuda or mps"
        ) from error


def class_label(model: Any, label: int | None) -> None:
    """Refuse a class label that the model does not have."""
    if label is None:
        return
    if not model.classes:
        raise UserError(
            f"--label {label} is for models with classes, and {model.name} has none: leave it out"
        )
    if not 0 <= label < model.classes:
        raise UserError(f"--label must be from 0 to {model.classes - 1} for model {model.name}, got {label}")


def error_text(error: Exception) -> str:
    """Return an error's message; for a path that the system refused, the problem and its remedy."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error) or f"{type(error).__name__} without a message"
    advice = {
        errno.EEXIST: "is a file already, and a folder is wanted: name another",
        errno.ENOTDIR: "is under a file, and a folder is wanted: name another",
        errno.EISDIR: "is a folder, and a file is wanted: name one in it",
        errno.ENOENT: "does not exist",
        errno.EACCES: "may not be read or written: its permissions forbid it",
        errno.ENAMETOOLONG: "is a longer name than the file system takes",
    }
    name = str(error.filename)
    shown = name if len(name) <= 160 else f"{name[:60]}...{name[-60:]}"
    return f"{shown} {advice.get(error.errno or 0, f'cannot be used: {error.strerror}')}"
