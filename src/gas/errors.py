"""Exceptions."""

from __future__ import annotations

__all__ = ["Diverged"]


class Diverged(ArithmeticError):
    """Training produced a value that is not finite; the solver holds the best numbers seen before."""
