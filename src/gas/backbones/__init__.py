"""Pretrained models behind :class:`gas.model.Model`: pipelines, EDM's networks, CompVis's latent diffusion."""

from gas.backbones.folder import open_pipeline
from gas.backbones.pipeline import PipelineModel, from_pipeline
from gas.backbones.prompts import read_prompts
from gas.backbones.published import open_model

__all__ = ["PipelineModel", "from_pipeline", "open_model", "open_pipeline", "read_prompts"]
