"""Ways to move a solver's numbers: Adam for any loss, Gauss-Newton for sums of squares."""

from gas.optimizers.adam import PAPER, Adam, AdamSteps
from gas.optimizers.diverged import Diverged
from gas.optimizers.gauss_newton import GaussNewton, GaussNewtonSteps
from gas.optimizers.relaxed import RelaxedStarts

__all__ = ["PAPER", "Adam", "AdamSteps", "Diverged", "GaussNewton", "GaussNewtonSteps", "RelaxedStarts"]
