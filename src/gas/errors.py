"""Exceptions: what a user can mend, and a training that diverged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gas.display import brief, error_text

__all__ = ["Diverged", "UserError", "explained", "requires"]


class UserError(ValueError):
    """An argument, a file or a command line that is wrong: the message names it, what came, and what to do.

    The command line shows the message alone, in one line; any other exception is a defect, and keeps its traceback.
    """


class Diverged(ArithmeticError):
    """Training produced a value that is not finite; the solver holds the best numbers seen before."""


@contextmanager
def requires(extra: str, purpose: str) -> Iterator[None]:
    """Turn a failed import, of a package that is missing or broken, into the advice to install an extra."""
    try:
        yield
    except Exception as error:  # a broken installation raises anything
        raise ModuleNotFoundError(
            f"{purpose} ({type(error).__name__}: {brief(error_text(error), 90)}): pip install 'gas-solver[{extra}]'"
        ) from error


# What reading the contents of a file raises.
_OF_CONTENTS = ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError


def is_of_machine(error: BaseException) -> bool:
    """Return whether an error is a lack of memory or permission, which says nothing of what a file holds."""
    import torch  # here, so that a wrong command line is refused without it

    return isinstance(error, (MemoryError, PermissionError, torch.OutOfMemoryError))


@contextmanager
def explained(subject: str, *, foreign: bool = False, advice: str = "") -> Iterator[None]:
    """Turn an error of what a file holds into one line, ``subject: its text``, and perhaps advice.

    Args:
        subject: the file, and what it should be.
        foreign: for errors of another library, which have no common class; a UserError passes as it is.
        advice: after the text.

    Raises:
        UserError: for errors of values, types, lookups and arithmetic; if ``foreign``, for any but a lack of memory or
            permission.
    """
    try:
        yield
    except Exception as error:
        passes = isinstance(error, UserError) if foreign else not isinstance(error, _OF_CONTENTS)
        if passes or is_of_machine(error):
            raise
        raise UserError(f"{subject}: {error_text(error)}{advice}") from error
