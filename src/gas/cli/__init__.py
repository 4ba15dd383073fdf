"""The ``gas`` command. Heavy imports wait until a command runs, so that ``gas --help`` is quick."""

# The commands register themselves with the application when imported.
from gas.cli import (
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    pairs,
    reproduce,
    sample,
    statistics,
    train,
    zoo,
)
from gas.cli.app import app, main

__all__ = [
    "app",
    "compare",
    "convert",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "main",
    "pairs",
    "reproduce",
    "sample",
    "statistics",
    "train",
    "zoo",
]
