from . import (
    clip_score as clip_score,
    extractor as extractor,
    images as images,
    inception as inception,
    lpips as lpips,
    per_sample as per_sample,
    real as real,
    state as state,
    transformer as transformer,
)
from .clip_score import ClipScore as ClipScore
from .extractor import (
    EXTRACTORS as EXTRACTORS,
    Extractor as Extractor,
    extractor_by_name as extractor_by_name,
)
from .inception import Inception as Inception
from .lpips import LPIPS as LPIPS
