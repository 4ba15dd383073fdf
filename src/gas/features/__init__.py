"""Published feature spaces by name, with weights from disk: what official metrics compare images in."""

from typing import TYPE_CHECKING

from gas.features.clip_score import ClipScore
from gas.features.extractor import EXTRACTORS, Extractor, extractor_by_name
from gas.features.inception import Inception
from gas.features.lpips import LPIPS
from gas.lazy import submodules_of

__all__ = ["EXTRACTORS", "LPIPS", "ClipScore", "Extractor", "Inception", "extractor_by_name"]

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
