from . import (
    data as data,
    latent as latent,
    loading as loading,
    model as model,
    networks as networks,
    weights_file as weights_file,
)
from .loading import (
    card as card,
    guidance as guidance,
    load as load,
    names as names,
    pipeline as pipeline,
    solver_path as solver_path,
)
from .model import ZooModel as ZooModel
