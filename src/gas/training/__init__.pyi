from . import (
    activation_checkpointing as activation_checkpointing,
    adam as adam,
    adversarial as adversarial,
    batching as batching,
    distillation as distillation,
    elimination as elimination,
    gauss_newton as gauss_newton,
    importance as importance,
    initialization as initialization,
    inner_solve as inner_solve,
    judge as judge,
    judge_steps as judge_steps,
    lifting as lifting,
    linearization as linearization,
    loop as loop,
    plan as plan,
    price as price,
    progress as progress,
    ranking as ranking,
    scales as scales,
    trajectory_grid as trajectory_grid,
    validation as validation,
)
from .adam import PAPER as PAPER, Adam as Adam, AdamSteps as AdamSteps, RelaxedStarts as RelaxedStarts
from .distillation import (
    BestSoFar as BestSoFar,
    Distilled as Distilled,
    distill as distill,
    distill_family as distill_family,
)
from .elimination import Removal as Removal, distill_forwards as distill_forwards
from .gauss_newton import GaussNewton as GaussNewton, GaussNewtonSteps as GaussNewtonSteps
from .initialization import StartSearch as StartSearch
from .judge import distill_judge as distill_judge
from .judge_steps import JudgeAscent as JudgeAscent
from .lifting import (
    Lifted as Lifted,
    Lifting as Lifting,
    RecordedPairs as RecordedPairs,
    fit_lifted as fit_lifted,
    lift as lift,
)
from .loop import FitRecord as FitRecord, fit as fit
from .plan import TrainingPlan as TrainingPlan
from .price import Price as Price, measure_calls as measure_calls
from .ranking import best_classical as best_classical, rank_classical as rank_classical
from .scales import distill_scales as distill_scales
from .trajectory_grid import gits as gits
from .validation import evaluate as evaluate
