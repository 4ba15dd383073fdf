from . import (
    data as data,
    latent as latent,
    model as model,
    networks as networks,
    weights_file as weights_file,
)
from .model import ZooModel as ZooModel, card as card, load as load, names as names, pipeline as pipeline
