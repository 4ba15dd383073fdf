"""Exceptions: what a user can mend, and a training that diverged."""

from __future__ import annotations

__all__ = ["Diverged", "UserError"]


class UserError(ValueError):
    """An argument, a file or a command line that is wrong: the message names it, what came, and what to do.

    The command line shows the message alone, in one line; any other exception is a defect, and keeps its traceback.
    """


class Diverged(ArithmeticError):
    """Training produced a value that is not finite; the solver holds the best numbers seen before."""
