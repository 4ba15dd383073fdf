from . import evaluator as evaluator, sampler as sampler, solver_files as solver_files, spaces as spaces
from .evaluator import Evaluator as Evaluator, SolverMetrics as SolverMetrics
from .sampler import (
    sample_pairs as sample_pairs,
    sample_seeds as sample_seeds,
    teacher_pairs as teacher_pairs,
)
from .spaces import FeatureSpace as FeatureSpace, feature_space as feature_space
