from . import evaluator as evaluator, sampler as sampler
from .evaluator import Comparison as Comparison, Yardstick as Yardstick, compare as compare
from .sampler import fresh as fresh, run as run
