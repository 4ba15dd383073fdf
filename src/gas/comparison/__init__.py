"""Solvers x NFE x measures under one budget: cells that are made once, kept on disk, and told in reports."""

from gas.comparison.cell import Cell
from gas.comparison.contestants import Adversarial, Contestant, Learned, OnGrid
from gas.comparison.grid import Training, fill
from gas.comparison.measures import MEASURES, Measure
from gas.comparison.report import Published, Report
from gas.comparison.roster import contestant_by_name
from gas.comparison.ruler import Ruler
from gas.comparison.setting import Budget, Setting
from gas.comparison.store import Store, claim_folders

__all__ = [
    "MEASURES",
    "Adversarial",
    "Budget",
    "Cell",
    "Contestant",
    "Learned",
    "Measure",
    "OnGrid",
    "Published",
    "Report",
    "Ruler",
    "Setting",
    "Store",
    "Training",
    "claim_folders",
    "contestant_by_name",
    "fill",
]
