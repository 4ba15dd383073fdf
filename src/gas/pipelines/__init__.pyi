from . import (
    branches as branches,
    call as call,
    loading as loading,
    model as model,
    process as process,
    prompts as prompts,
    scheduler_config as scheduler_config,
)
from .loading import open_pipeline as open_pipeline
from .model import PipelineModel as PipelineModel, from_pipeline as from_pipeline
from .prompts import read_prompts as read_prompts
