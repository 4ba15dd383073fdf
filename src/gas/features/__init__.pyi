from . import (
    extractor as extractor,
    images as images,
    inception as inception,
    judges as judges,
    lpips as lpips,
    per_sample as per_sample,
    real as real,
    transformer as transformer,
)
from .extractor import (
    EXTRACTORS as EXTRACTORS,
    Extractor as Extractor,
    extractor_by_name as extractor_by_name,
)
from .inception import Inception as Inception
from .lpips import LPIPS as LPIPS
from .per_sample import SampleMetric as SampleMetric
from .transformer import ClipScore as ClipScore
