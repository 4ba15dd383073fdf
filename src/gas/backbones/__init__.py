"""Pretrained models of other libraries behind :class:`gas.model.Model`."""

from gas.backbones.folder import open_pipeline
from gas.backbones.pipeline import PipelineModel, from_pipeline
from gas.backbones.prompts import read_prompts

__all__ = ["PipelineModel", "from_pipeline", "open_pipeline", "read_prompts"]
