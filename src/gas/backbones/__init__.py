"""Pretrained models behind :class:`gas.model.Model`: pipelines, EDM's networks, CompVis's latent diffusion."""

from typing import TYPE_CHECKING

from gas.backbones.folder import open_pipeline
from gas.backbones.pipeline import PipelineModel, from_pipeline
from gas.backbones.prompts import read_prompts
from gas.backbones.published import open_model
from gas.lazy import submodules_of

__all__ = ["PipelineModel", "from_pipeline", "open_model", "open_pipeline", "read_prompts"]

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
