"""Files of the published layouts, written by the tests with small networks: nothing here is downloaded."""

from __future__ import annotations

import collections
import json
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCE = "open({!r}, 'w')  # would leave a mark if anyone ran it"


class Reduced:
    """Pickled as a call of anything with anything."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


@contextmanager
def persistence() -> Iterator[types.ModuleType]:
    """The module that EDM's pickles name, while one is written; gone when it is read."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("the file's own function was called")

    parent, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {parent.__name__: parent, module.__name__: module}
    try:
        yield module
    finally:
        del sys.modules[parent.__name__], sys.modules[module.__name__]


def tree(module: types.ModuleType, network: nn.Module, kind: str, mark: Path, **state: Any) -> Reduced:
    """A module as ``torch_utils.persistence`` reduces it, its children likewise."""
    children = {
        name: None if child is None else tree(module, child, type(child).__name__, mark)
        for name, child in network._modules.items()
    }
    parts = {"_parameters": network._parameters, "_buffers": network._buffers, "_modules": children}
    meta = {"type": "class", "version": 6, "module_src": SOURCE.format(str(mark)), "class_name": kind}
    return Reduced(module._reconstruct_persistent_obj, ({**meta, "state": {**parts, **state}},))


def write_edm(path: Path, kind: str, network: nn.Module, kwargs: dict[str, Any], protocol: int = 4) -> Path:
    """Write ``{"ema": network}`` as EDM does; ``path`` with suffix ``.mark`` appears if its source text is run."""
    with persistence() as module:
        ema = tree(
            module,
            network,
            kind,
            path.with_suffix(".mark"),
            _init_args=(),
            _init_kwargs=kwargs,
            training=False,
        )
        path.write_bytes(pickle.dumps({"ema": ema}, protocol))
    return path


def write_r3gan(path: Path, critic: nn.Module) -> Path:
    """Write ``{"D": wrapper}`` as R3GAN does, the network proper under ``Model``."""
    wrapper = nn.Module()
    wrapper.Model = critic
    with persistence() as module:
        data = tree(module, wrapper, "Discriminator", path.with_suffix(".mark"))
        path.write_bytes(pickle.dumps({"G": None, "D": data, "training_set_kwargs": {"path": "x"}}))
    return path


@torch.no_grad()
def drawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter, those that start at zero included, so that none can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        value.copy_(0.2 * torch.randn(value.shape, generator=generator) + (0.9 if value.ndim == 1 else 0.0))
    return network.eval().requires_grad_(False)


def close(a: Tensor, b: Tensor, atol: float = 1e-10) -> bool:
    """Whether two tensors agree absolutely, relative to the larger's scale."""
    return bool((a - b).detach().abs().max() <= atol * max(1.0, float(b.detach().abs().max())))


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "generalized_solver.json").read_text())


def student(entry: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as the authors save it, from golden numbers in their own order."""
    pairs = zip(entry["c_diff"], entry["a_diff"], strict=True)
    parameters = [entry["mu_logit"], entry["t_couple"], *(row for pair in pairs for row in pair)]
    shadow = [torch.tensor(row, dtype=torch.float64) for row in parameters]
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow, "collected_params": None}
    return {"ema": ema, "model": collections.OrderedDict(), "optim": {}, "step": 10000}


def teachers(count: int = 7, shape: tuple[int, ...] = (3, 8, 8), **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    data = collections.defaultdict(list)
    data["noise"] = torch.randn(count, *shape, generator=generator)
    data["images"] = torch.randn(count, *shape, generator=generator)
    data["latents"] = data["condition"] = [None] * count
    data.update(changes)
    return data


def pickled(value: Any, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path
