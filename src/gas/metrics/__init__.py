"""How far samples are: from the teacher one by one, and from data as a distribution."""

from gas.metrics.bootstrap import Bootstrap, bootstrap, seed_interval
from gas.metrics.coverage import PRDC, prdc
from gas.metrics.criterion import FrechetCriterion
from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance, merge
from gas.metrics.kernel import KernelDistance, kernel_distance
from gas.metrics.paired import l1, mean_interval, mse, psnr

__all__ = [
    "PRDC",
    "Bootstrap",
    "FeatureStatistics",
    "FrechetCriterion",
    "KernelDistance",
    "bootstrap",
    "extract",
    "feature_statistics",
    "frechet_distance",
    "kernel_distance",
    "l1",
    "mean_interval",
    "merge",
    "mse",
    "prdc",
    "psnr",
    "seed_interval",
]
