from . import (
    checks as checks,
    conditions as conditions,
    custom as custom,
    protocol as protocol,
    runtime as runtime,
    seeds as seeds,
)
from .checks import check_model as check_model
from .custom import OwnModel as OwnModel
from .protocol import (
    Model as Model,
    bind_labels as bind_labels,
    conditions_of as conditions_of,
    data_range_of as data_range_of,
    decode_all as decode_all,
    weights_hash as weights_hash,
)
from .runtime import (
    PRECISIONS as PRECISIONS,
    QUANTIZATIONS as QUANTIZATIONS,
    Autocast as Autocast,
    CudaGraphs as CudaGraphs,
    PreciseModel as PreciseModel,
    SmallBatches as SmallBatches,
    WrappedModel as WrappedModel,
    allow_tf32 as allow_tf32,
    precise as precise,
    tf32_settings as tf32_settings,
    without_tf32 as without_tf32,
)
from .seeds import labels_of_seeds as labels_of_seeds, noise_of_seeds as noise_of_seeds
