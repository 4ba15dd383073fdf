"""The ``gas`` command. Heavy imports wait until a command runs, so that ``gas --help`` is quick."""

# The commands register themselves with the application when imported.
from gas.cli import (
    compare,
    demo,
    evaluate,
    export,
    inspect,
    pairs,
    paper,
    plan,
    sample,
    statistics,
    studio,
    train,
    zoo,
)
from gas.cli.app import app, main

__all__ = [
    "app",
    "compare",
    "demo",
    "evaluate",
    "export",
    "inspect",
    "main",
    "pairs",
    "paper",
    "plan",
    "sample",
    "statistics",
    "studio",
    "train",
    "zoo",
]
