from . import (
    bns as bns,
    checks as checks,
    generalized as generalized,
    guidance as guidance,
    interpolation as interpolation,
    ld3 as ld3,
    registry as registry,
    s4s as s4s,
    times as times,
)
from .bns import BNS as BNS
from .checks import check_table_module as check_table_module
from .generalized import GeneralizedSolver as GeneralizedSolver
from .guidance import GuidanceBNS as GuidanceBNS
from .ld3 import LD3 as LD3
from .registry import SOLVERS as SOLVERS, Kind as Kind, kind_by_name as kind_by_name
from .s4s import S4S as S4S
