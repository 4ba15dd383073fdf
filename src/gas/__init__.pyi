from . import (
    archives as archives,
    arguments as arguments,
    checkpoint as checkpoint,
    classical as classical,
    compatibility as compatibility,
    denoise as denoise,
    display as display,
    distributed as distributed,
    errors as errors,
    evaluation as evaluation,
    experiments as experiments,
    features as features,
    grids as grids,
    integrations as integrations,
    io as io,
    learned as learned,
    losses as losses,
    machine as machine,
    metrics as metrics,
    model_folder as model_folder,
    models as models,
    pairs as pairs,
    paper as paper,
    pipelines as pipelines,
    plotting as plotting,
    references as references,
    registry as registry,
    residual as residual,
    sampling as sampling,
    schedule as schedule,
    solver_file as solver_file,
    solver_schema as solver_schema,
    studio as studio,
    table as table,
    training as training,
    unpickle as unpickle,
    workspace as workspace,
    zoo as zoo,
)
from .classical.registry import Classical as Classical
from .errors import Diverged as Diverged, UserError as UserError
from .evaluation.evaluator import Evaluator as Evaluator
from .integrations.diffusers.scheduler import GASScheduler as GASScheduler, SchedulerMixin as SchedulerMixin
from .learned import (
    BNS as BNS,
    LD3 as LD3,
    S4S as S4S,
    GeneralizedSolver as GeneralizedSolver,
    check_table_module as check_table_module,
)
from .models.checks import check_model as check_model
from .models.custom import OwnModel as OwnModel
from .pairs.dataset import Pairs as Pairs, read_pairs as read_pairs
from .pairs.fingerprint import PairsSpec as PairsSpec
from .pairs.teacher import write_pairs as write_pairs
from .references import citation as citation
from .residual import Residual as Residual
from .sampling import Stepper as Stepper, sample as sample, trajectory as trajectory
from .schedule import (
    EDMasVP as EDMasVP,
    Flow as Flow,
    Schedule as Schedule,
    VPDiscrete as VPDiscrete,
    VPLinear as VPLinear,
)
from .solver_file import Artefact as Artefact, load as load, save as save
from .table import Table as Table
from .training.adam import PAPER as PAPER, Adam as Adam
from .training.adversarial.losses import Critic as Critic
from .training.adversarial.setup import Adversary as Adversary, adversary_for as adversary_for
from .training.distillation import (
    Distilled as Distilled,
    distill as distill,
    distill_family as distill_family,
)
from .training.gauss_newton import GaussNewton as GaussNewton
from .training.loop import FitRecord as FitRecord, fit as fit
from .training.ranking import rank_classical as rank_classical
from .training.trajectory_grid import gits as gits
from .training.validation import evaluate as evaluate

__version__: str
