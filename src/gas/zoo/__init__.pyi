from . import (
    classifier as classifier,
    data as data,
    latent as latent,
    loading as loading,
    model as model,
    unet as unet,
    weights_file as weights_file,
)
from .loading import card as card, load as load, names as names, pipeline as pipeline
from .model import ZooModel as ZooModel
