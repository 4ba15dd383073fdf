from . import (
    experiment as experiment,
    methods as methods,
    pictures as pictures,
    report as report,
    runner as runner,
    store as store,
    tables as tables,
)
from .experiment import Budget as Budget, Experiment as Experiment
from .methods import (
    AdversarialMethod as AdversarialMethod,
    ClassicalMethod as ClassicalMethod,
    LearnedMethod as LearnedMethod,
    Method as Method,
    SolverResult as SolverResult,
    method_by_name as method_by_name,
)
from .report import Report as Report, ReportedResults as ReportedResults
from .runner import (
    TrainingReport as TrainingReport,
    run_experiment as run_experiment,
    run_method as run_method,
)
from .store import MethodResult as MethodResult, Store as Store, claim_folders as claim_folders
from .tables import MEASURES as MEASURES, Measure as Measure
