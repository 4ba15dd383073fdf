"""Learned solvers: lazy tables, each a small module whose ``forward()`` returns a table."""

from gas.learned.generalized import GeneralizedSolver
from gas.learned.s4s import S4S

__all__ = ["S4S", "GeneralizedSolver"]
