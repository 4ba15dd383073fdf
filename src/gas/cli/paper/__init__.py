"""``gas paper``: the setups, files and tables of arXiv 2510.17699.

These commands alone use :mod:`gas.paper`. The everyday commands reach its networks as ``--model preset:NAME`` and
``--model published:FILE``.
"""

from gas.cli.paper import convert, doctor, evaluate, pairs, reproduce, train

__all__ = ["convert", "doctor", "evaluate", "pairs", "reproduce", "train"]
