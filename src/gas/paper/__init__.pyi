from . import (
    backbone as backbone,
    compvis as compvis,
    convert as convert,
    edm as edm,
    edm_networks as edm_networks,
    environment as environment,
    files as files,
    ldm as ldm,
    presets as presets,
    reproduction as reproduction,
    results as results,
    student as student,
    tables as tables,
    teacher_set as teacher_set,
    training as training,
)
from .backbone import load_backbone as load_backbone, load_published as load_published
from .files import (
    PublishedFile as PublishedFile,
    find_files as find_files,
    find_measuring_files as find_measuring_files,
)
from .presets import PRESETS as PRESETS, Preset as Preset, preset_by_name as preset_by_name
from .reproduction import MeasuringRun as MeasuringRun, run_for as run_for
from .results import MeasuredResult as MeasuredResult, read_results as read_results
from .tables import (
    TABLES as TABLES,
    PaperFigure as PaperFigure,
    PaperTable as PaperTable,
    figures_of as figures_of,
    table_by_name as table_by_name,
)
from .training import (
    critic_for as critic_for,
    distillation_loss as distillation_loss,
    learn as learn,
    read_preset_pairs as read_preset_pairs,
    save_solver as save_solver,
    starting_solver as starting_solver,
)
