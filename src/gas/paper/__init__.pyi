from . import (
    backbone as backbone,
    convert as convert,
    edm as edm,
    edm_networks as edm_networks,
    environment as environment,
    files as files,
    ldm as ldm,
    presets as presets,
    reproduction as reproduction,
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
