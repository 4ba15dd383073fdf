"""Learned solvers: lazy tables, each a small module whose ``forward()`` returns a table."""

from gas.learned.bns import BNS
from gas.learned.generalized import GeneralizedSolver
from gas.learned.ld3 import LD3
from gas.learned.registry import SOLVERS, Kind, kind_by_name
from gas.learned.s4s import S4S

__all__ = ["BNS", "LD3", "S4S", "SOLVERS", "GeneralizedSolver", "Kind", "kind_by_name"]
