"""The ``gas`` command. Heavy imports wait until a command runs, so that ``gas --help`` is quick."""

from gas.cli.app import app, main

__all__ = ["app", "main"]
