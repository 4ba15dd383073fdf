from . import (
    backbone as backbone,
    compvis as compvis,
    convert as convert,
    cost as cost,
    edm as edm,
    edm_networks as edm_networks,
    environment as environment,
    files as files,
    ldm as ldm,
    presets as presets,
    published as published,
    results as results,
    student as student,
    tables as tables,
    teacher_set as teacher_set,
    training as training,
    weights as weights,
)
from .backbone import ending_at as ending_at, open_backbone as open_backbone
from .files import (
    File as File,
    Found as Found,
    find_files as find_files,
    find_measuring_files as find_measuring_files,
)
from .presets import PRESETS as PRESETS, Preset as Preset, preset_by_name as preset_by_name
from .published import open_model as open_model
from .results import Measured as Measured, read_results as read_results
from .tables import (
    TABLES as TABLES,
    Cell as Cell,
    PaperTable as PaperTable,
    figures_of as figures_of,
    table_by_name as table_by_name,
)
from .training import (
    critic_of as critic_of,
    learn as learn,
    loss_of as loss_of,
    paired as paired,
    solver_of as solver_of,
)
