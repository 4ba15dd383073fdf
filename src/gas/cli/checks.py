"""Checks of option values, made while the command line is read and before any model is loaded."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer

import gas
from gas.arguments import MAX_NFE

# Arguments of :func:`option` for an existing path, for guidance scales (published ones are 1 to 20) and for an NFE.
FILE: dict[str, Any] = {"exists": True, "dir_okay": False}
FOLDER: dict[str, Any] = {"exists": True, "file_okay": False}
GUIDANCE = {"min": -1000, "max": 1000}
NFE: dict[str, Any] = {"min": 1, "max": MAX_NFE}
MAX_SECONDS = 90 * 24 * 3600  # longer than any queue lets a job run
# torch's device types that run networks; others only pretend to compute, or need further packages.
_COMPUTING = ("cpu", "cuda", "mps", "xpu")


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
                except (gas.UserError, OSError, ModuleNotFoundError) as error:
                    hint = f"'{param.opts[0] if param.opts else param.name}'"  # as people type it
                    raise typer.BadParameter(error_text(error), ctx=context, param_hint=hint) from None
        return value

    return callback


def split_names(text: str) -> list[str]:
    """Return the names of a comma-separated list, which may be empty."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text and not names:
        raise gas.UserError(f"a comma-separated list of names is wanted, got {text!r}")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise gas.UserError(f"{repeated[0]!r} is listed twice: once is enough")
    return names


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as ``45s``, ``90m``, ``3h`` or ``1h30m``."""
    from pydantic import TypeAdapter, ValidationError  # late: help is quick without it

    try:
        seconds = TypeAdapter(timedelta).validate_strings(f"PT{text.upper()}").total_seconds()  # ISO 8601
    except ValidationError:
        seconds = 0
    if not 0 < seconds <= MAX_SECONDS:
        raise gas.UserError(
            f"a time as 90m, 3h or 1h30m is wanted, up to {MAX_SECONDS // 3600}h, got {text[:40]!r}"
        )
    return seconds


def output_file(*suffixes: str) -> Callable[[Any], object]:
    """Return a check of the name of a file to write, with one of these suffixes if there are any."""

    def check(path: Path) -> None:
        if suffixes and path.suffix not in suffixes:
            choice = "one of " if len(suffixes) > 1 else ""
            raise gas.UserError(f"the name must end in {choice}{', '.join(suffixes)}, got {str(path)!r}")
        if path.suffix == ".png":
            gas.plotting.require_matplotlib()
        if path.exists() and not path.is_file():
            raise gas.UserError(f"{path} is no regular file, and would be replaced by one: name another")

    return check


def check_device(device: str) -> None:
    """Refuse a device that does not exist, or that only pretends to compute, as torch's ``meta`` does."""
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
        raise gas.UserError(
            f"device {device[:40]!r} cannot be used ({reason[:120]}): take cpu, cuda or mps"
        ) from error


def error_text(error: BaseException) -> str:
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
