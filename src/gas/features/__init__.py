"""Published feature spaces by name, with weights from disk: what official metrics compare images in."""

from gas.features.clip_score import ClipScore
from gas.features.extractor import EXTRACTORS, Extractor, extractor_by_name
from gas.features.inception import Inception
from gas.features.lpips import LPIPS

__all__ = ["EXTRACTORS", "LPIPS", "ClipScore", "Extractor", "Inception", "extractor_by_name"]
