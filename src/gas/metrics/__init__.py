"""How far samples are: from the teacher one by one, and from data as a distribution."""

from gas.metrics.frechet import FeatureStatistics, extract, feature_statistics, frechet_distance, merge
from gas.metrics.paired import l1, mean_interval, mse, psnr

__all__ = [
    "FeatureStatistics",
    "extract",
    "feature_statistics",
    "frechet_distance",
    "l1",
    "mean_interval",
    "merge",
    "mse",
    "psnr",
]
