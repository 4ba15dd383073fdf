"""How far samples are: from the teacher one by one, and from data as a distribution."""

from typing import TYPE_CHECKING

from gas.lazy import submodules_of
from gas.metrics.bootstrap import Bootstrap, bootstrap, jackknife, seed_interval
from gas.metrics.coverage import PRDC, prdc
from gas.metrics.criterion import FrechetCriterion
from gas.metrics.distribution import Distribution, distribution, frechet_interval
from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance, merge
from gas.metrics.kernel import KernelDistance, kernel_distance
from gas.metrics.paired import l1, mean_interval, mse, psnr

__all__ = [
    "PRDC",
    "Bootstrap",
    "Distribution",
    "FeatureStatistics",
    "FrechetCriterion",
    "KernelDistance",
    "bootstrap",
    "distribution",
    "extract",
    "feature_statistics",
    "frechet_distance",
    "frechet_interval",
    "jackknife",
    "kernel_distance",
    "l1",
    "mean_interval",
    "merge",
    "mse",
    "prdc",
    "psnr",
    "seed_interval",
]

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
