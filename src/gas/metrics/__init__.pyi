from . import (
    coverage as coverage,
    distances as distances,
    frechet as frechet,
    intervals as intervals,
    kernel as kernel,
    paired as paired,
    statistics as statistics,
)
from .coverage import PRDC as PRDC, prdc as prdc
from .distances import (
    Distribution as Distribution,
    distribution as distribution,
    frechet_interval as frechet_interval,
)
from .frechet import (
    FeatureStatistics as FeatureStatistics,
    FrechetCriterion as FrechetCriterion,
    extract as extract,
    feature_statistics as feature_statistics,
    frechet_distance as frechet_distance,
)
from .intervals import (
    jackknife as jackknife,
    mean_interval as mean_interval,
    median_interval as median_interval,
    seed_interval as seed_interval,
)
from .kernel import KernelDistance as KernelDistance, kernel_distance as kernel_distance
from .paired import l1 as l1, mse as mse, psnr as psnr
