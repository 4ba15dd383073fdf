"""EDM's published networks: preconditioned denoisers, read from their pickles or from safetensors."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.denoise import EDMDenoiser
from gas.display import contents
from gas.errors import UserError, explained
from gas.io import (
    check_sizes,
    parse_json,
    plain_json,
    read_safetensors,
    sha256,
    strip_prefix,
    write_safetensors,
)
from gas.models.custom import OwnModel
from gas.paper.edm_networks import DhariwalUNet, SongUNet
from gas.registry import named
from gas.schedule import EDMasVP
from gas.unpickle.allowed import Persistent
from gas.unpickle.loading import read_pickle, state_dict_of

_UNETS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
_DEFAULT_UNETS = {"EDMPrecond": "DhariwalUNet", "VPPrecond": "SongUNet", "VEPrecond": "SongUNet"}
# Arguments of the published constructors that a network in evaluation and float32 does not depend on.
_UNUSED = {"use_fp16", "dropout", "label_dropout"}
_SCALING = {"sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t", "model_type"}


class EDMNetwork(nn.Module):
    """Denoiser ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`` with the published names: ``model.*``.

    With ``r^2 = s^2 + s_d^2`` and the time ``t(s)`` of a level:

    | kind | c_skip | c_out | c_in | c_noise |
    |---|---|---|---|---|
    | ``EDMPrecond`` | ``s_d^2 / r^2`` | ``s s_d / r`` | ``1 / r`` | ``log(s) / 4`` |
    | ``VPPrecond`` | 1 | ``-s`` | ``1 / sqrt(s^2 + 1)`` | ``(M - 1) t(s)`` |
    | ``VEPrecond`` | 1 | ``s`` | 1 | ``log(s / 2)`` |

    Args:
        kind: preconditioning, of those above.
        label_dim: classes; 0 for none.
        kwargs: those of the published class: ``model_type``, and the sizes of :class:`SongUNet` or
            :class:`DhariwalUNet`.

    Raises:
        UserError: for a kind, an architecture or an argument that is not known.

    References:
        Karras et al., arXiv 2206.00364, equation 7 and Table 1.
    """

    def __init__(
        self, kind: str, *, img_resolution: int, img_channels: int, label_dim: int = 0, **kwargs: Any
    ) -> None:
        super().__init__()
        default = named("EDM preconditioning", kind, _DEFAULT_UNETS)
        self.kind, self.img_resolution, self.img_channels = kind, img_resolution, img_channels
        self.label_dim = label_dim
        self.has_null = label_dim > 0 and float(kwargs.get("label_dropout", 0)) > 0
        self.sigma_data = float(kwargs.get("sigma_data", 0.5))
        self.beta_d, self.beta_min = float(kwargs.get("beta_d", 19.9)), float(kwargs.get("beta_min", 0.1))
        self.steps = int(kwargs.get("M", 1000))
        least, most = self._noise_limits(float(kwargs.get("epsilon_t", 1e-5)))
        self.sigma_min, self.sigma_max = (
            float(kwargs.get("sigma_min", least)),
            float(kwargs.get("sigma_max", most)),
        )
        unet = named("EDM architecture", str(kwargs.get("model_type", default)), _UNETS)
        sizes = {name: value for name, value in kwargs.items() if name not in _UNUSED | _SCALING}
        with explained(f"{kind} of {unet.__name__} cannot be built"):
            self.model = unet(img_resolution, img_channels, img_channels, label_dim, **sizes)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict x_0 ``(B, C, H, W)`` of ``x_0 + sigma eps`` for levels ``(B,)``, computed in the weights' dtype.

        ``labels`` are classes ``(B,)``; ``label_dim``, as no labels, stands for none: all zeros in the one-hot vector.
        """
        dtype = next(self.model.parameters()).dtype
        *scales, c_noise = self.precondition(sigma.to(dtype))
        skip, out, scale = (c.reshape(-1, 1, 1, 1) for c in scales)
        one_hot = None
        if self.label_dim:
            if labels is None:
                labels = torch.full((len(x),), self.label_dim, device=x.device)
            one_hot = F.one_hot(labels, self.label_dim + 1)[:, : self.label_dim].to(dtype)
        y = x.to(dtype)
        prediction: Tensor = skip * y + out * self.model(scale * y, c_noise, one_hot)
        return prediction.to(x.dtype)

    def precondition(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``(c_skip, c_out, c_in, c_noise)``, each of the shape of ``s``."""
        ones = torch.ones_like(s)
        if self.kind == "EDMPrecond":
            r, d = torch.hypot(s, ones * self.sigma_data), self.sigma_data
            return (d / r) ** 2, s * d / r, 1 / r, s.log() / 4
        if self.kind == "VPPrecond":
            root = (self.beta_min**2 + 2 * self.beta_d * torch.log1p(s * s)).sqrt()
            return ones, -s, (s * s + 1).rsqrt(), (self.steps - 1) * (root - self.beta_min) / self.beta_d
        return ones, s, ones, (s / 2).log()

    def _noise_limits(self, epsilon: float) -> tuple[float, float]:
        """Return the noise levels that the published class supports by default."""
        if self.kind == "EDMPrecond":
            return 0.0, math.inf
        if self.kind == "VEPrecond":
            return 0.02, 100.0
        sigma = [math.sqrt(math.expm1(self.beta_d * t * t / 2 + self.beta_min * t)) for t in (epsilon, 1.0)]
        return sigma[0], sigma[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """A network as data: published class, its keyword arguments in plain JSON, and tensors by the published names.

    ``source`` is the file, for messages; ``card`` its provenance, in plain text.
    """

    kind: str
    init: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source: str
    card: Mapping[str, str]


def read_weights(path: str | Path) -> Weights:
    """Read a network from safetensors, or from a published pickle (its ``ema``), which is not executed.

    Raises:
        UserError: when the file is damaged, unsafe, or does not say what network it holds.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return _of_pickle(path)
    remedy = "make one with `gas paper convert edm.pkl OUT.safetensors`"
    with explained(f"{path} is no whole safetensors file of an EDM network ({remedy})"):
        tensors, card = read_safetensors(path)
        kind, init = card.pop("class_name", "EDMPrecond"), parse_json(card.pop("init_kwargs"), finite=False)
        if not isinstance(init, dict):
            raise UserError("init_kwargs is not an object")
    inner = strip_prefix(tensors, "net.") or tensors
    return Weights(kind=kind, init=init, tensors=inner, source=str(path), card=card)


def _of_pickle(path: Path) -> Weights:
    data = read_pickle(path)
    network = data.get("ema") if isinstance(data, Mapping) else None
    if not isinstance(network, Persistent):
        raise UserError(f"{path} has no network 'ema', EDM's averaged weights; it holds {contents(data)}")
    if network.init_args:
        raise UserError(f"{path}: its network was built with positional arguments, which no known file does")
    with explained(f"{path}: the arguments of its network are not plain"):
        init = plain_json(network.init_kwargs, finite=False)  # sigma_max
    return Weights(
        kind=network.class_name, init=init, tensors=state_dict_of(network), source=str(path), card={}
    )


def write_weights(weights: Weights, path: str | Path) -> Path:
    """Write a network to safetensors with its card in the metadata."""
    card = {**weights.card, "class_name": weights.kind, "init_kwargs": json.dumps(dict(weights.init))}
    if Path(weights.source).is_file() and "source_sha256" not in card:
        card |= {"source": Path(weights.source).name, "source_sha256": sha256(weights.source)}
    return write_safetensors(path, weights.tensors, card)


def build(weights: Weights) -> EDMNetwork:
    """Build the network of weights that were read, frozen, in evaluation mode and float32.

    Raises:
        UserError: when the weights are not those of the network that the file describes.
    """
    with explained(f"{weights.source} holds no EDM network that is known"):
        check_sizes({k: v for k, v in weights.init.items() if k != "sigma_max"})  # which may be infinite
        with torch.device("meta"):  # the constructor's random weights would be thrown away
            network = EDMNetwork(weights.kind, **weights.init)
        network.load_state_dict({k: v.float() for k, v in weights.tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def read(path: str | Path) -> EDMNetwork:
    """Read a network, as :func:`read_weights` and :func:`build` do."""
    return build(read_weights(path))


def load(
    path: str | Path, *, t_end: float = 1e-3, name: str | None = None, device: str | torch.device = "cpu"
) -> OwnModel:
    """Load a published EDM network as a model on the VP schedule that covers its noise range.

    ``sigma/alpha`` runs over 0.002 to 80, EDM's own range, where the network supports it. Class ``label_dim``
    means *no class*; only networks trained with label dropout have it, and can be guided.

    Raises:
        UserError: when the file is damaged, unsafe or holds another network, or ``t_end`` is out of range.
    """
    return model_of(read(path).to(device), t_end, name=name or Path(path).stem)


def model_of(network: EDMNetwork, t_end: float, *, name: str) -> OwnModel:
    """Return a network as a model, as :func:`load` does."""
    schedule = EDMasVP(t_end, max(0.002, network.sigma_min), min(80.0, network.sigma_max))

    def conditional(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return EDMDenoiser(functools.partial(network, labels=labels), schedule)(x, t)

    return OwnModel(
        conditional if network.label_dim else EDMDenoiser(network, schedule),
        schedule,
        (network.img_channels, network.img_resolution, network.img_resolution),
        name=name,
        t_end=t_end,
        classes=network.label_dim,
        null=network.label_dim if network.has_null else None,
        weights=network,
        data_range=2.0,  # images in [-1, 1]
        rebuild=functools.partial(model_of, network, name=name),
    )
