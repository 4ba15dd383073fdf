"""Zoo files with drawn networks of a twentieth of the cost, for tests in which any smooth network will do."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn

from gas.zoo import loading
from gas.zoo.networks import EDMUNet
from gas.zoo.weights_file import WEIGHTS, read_weights, write_weights


def write_small(name: str, folder: Path) -> Path:
    """Write the file of a model of images: its card, classifier and statistics with a network nobody trained.

    Args:
        name: of the model.
        folder: to write to.
    """
    tensors, card = read_weights(WEIGHTS / f"{name}.safetensors")
    network = {**card["network"], "width": 8, "multipliers": [1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = EDMUNet(**network)
        for module in drawn.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # at zero, as some are, times and labels would change nothing
    rest = {key: value for key, value in tensors.items() if not key.startswith("network.")}
    weights = {f"network.{key}": value for key, value in drawn.state_dict().items()}
    return write_weights(folder / f"{name}.safetensors", rest | weights, {**card, "network": network})


@contextlib.contextmanager
def small_networks(folder: Path, *names: str):
    """Load small networks by the names of shipped models."""
    paths, usual = {name: write_small(name, folder) for name in names}, loading._path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_path", lambda name: paths.get(name) or usual(name))
        yield
