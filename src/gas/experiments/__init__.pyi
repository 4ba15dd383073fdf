from . import (
    evaluator as evaluator,
    experiment as experiment,
    methods as methods,
    pictures as pictures,
    report as report,
    runner as runner,
    store as store,
    tables as tables,
)
from .evaluator import Ruler as Ruler
from .experiment import Budget as Budget, Setting as Setting
from .methods import (
    Adversarial as Adversarial,
    Contestant as Contestant,
    Learned as Learned,
    OnGrid as OnGrid,
    contestant_by_name as contestant_by_name,
)
from .report import Published as Published, Report as Report
from .runner import Training as Training, fill as fill
from .store import Cell as Cell, Store as Store, claim_folders as claim_folders
from .tables import MEASURES as MEASURES, Measure as Measure
