from . import (
    coverage as coverage,
    criterion as criterion,
    distances as distances,
    frechet as frechet,
    intervals as intervals,
    kernel as kernel,
    paired as paired,
    statistics as statistics,
)
from .coverage import PRDC as PRDC, prdc as prdc
from .criterion import FrechetCriterion as FrechetCriterion
from .distances import (
    Distribution as Distribution,
    distribution as distribution,
    frechet_interval as frechet_interval,
)
from .frechet import (
    FeatureStatistics as FeatureStatistics,
    extract as extract,
    feature_statistics as feature_statistics,
    frechet_distance as frechet_distance,
    merge as merge,
)
from .intervals import (
    Bootstrap as Bootstrap,
    bootstrap as bootstrap,
    jackknife as jackknife,
    seed_interval as seed_interval,
)
from .kernel import KernelDistance as KernelDistance, kernel_distance as kernel_distance
from .paired import l1 as l1, mean_interval as mean_interval, mse as mse, psnr as psnr
