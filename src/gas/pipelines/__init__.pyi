from . import (
    loading as loading,
    model as model,
    process as process,
    scheduler_config as scheduler_config,
    specs as specs,
)
from .loading import open_pipeline as open_pipeline, read_prompts as read_prompts
from .model import PipelineModel as PipelineModel, from_pipeline as from_pipeline
