"""The contract of a pretrained model: what every model has, and the abilities that only some have.

:class:`Model` is required everywhere. A model has an optional ability by having its attribute, and not ``None`` in it;
the functions below read them. Wrapped models (:class:`gas.models.WrappedModel`) pass attributes on dynamically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gas.arguments import number
from gas.denoise import ClassifierFreeGuidance, ConditionalDenoiser, Denoiser
from gas.errors import UserError
from gas.schedule import Schedule

if TYPE_CHECKING:
    from gas.metrics.frechet import FeatureStatistics


@runtime_checkable
class Model(Protocol):
    """A frozen diffusion or flow model, ready to be sampled.

    Attributes:
        name: for messages and solver files.
        schedule: its forward process.
        sample_shape: shape of one sample, without the batch.
        t_end: time that sampling ends at.
        classes: number of classes (or prompts, or other conditions) that labels select; 0 without any.
        device: where it samples.
    """

    @property
    def name(self) -> str: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def sample_shape(self) -> tuple[int, ...]: ...
    @property
    def t_end(self) -> float: ...
    @property
    def classes(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def fingerprint(self) -> Mapping[str, Any]:
        """Return name, weights' hash, prediction type and shape in plain JSON: what a solver was made for."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds, each independent of the others."""

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 without any condition."""

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes ``(B,)``, or the unconditional one for ``None``."""


def decoder_of(model: Model) -> Callable[[Tensor], Tensor] | None:
    """Return ``decode`` of a model of latents, from ``(B, *sample_shape)`` to images ``(B, C, H, W)`` in [-1, 1]."""
    return getattr(model, "decode", None)


@torch.no_grad()
def images_of(model: Model, samples: Tensor) -> Tensor:
    """Return samples on the model's device, decoded where it has a decoder."""
    decode, samples = decoder_of(model), samples.to(model.device)
    return samples if decode is None else decode(samples)


def features_of(model: Model) -> Callable[[Tensor], Tensor] | None:
    """Return ``features``, from samples on any device to ``(B, F)``, in which distributions are compared."""
    return getattr(model, "features", None)


def classifier_of(model: Model) -> nn.Module | None:
    """Return ``classifier``, from images ``(B, C, H, W)`` to logits, of a model or of the one that measures it."""
    measuring = getattr(getattr(model, "feature_extractor", None), "__self__", model)
    classifier: nn.Module | None = getattr(measuring, "classifier", None)
    return classifier


def reference_of(model: Model) -> FeatureStatistics | None:
    """Return ``reference``, the statistics of real data in the space of :func:`features_of`."""
    return getattr(model, "reference", None)


def conditions_of(model: Model) -> dict[str, Any]:
    """Return ``{"conditions": conditions_fingerprint()}`` where labels select prompts or observations, else nothing.

    It is the meaning of labels in plain JSON. Pairs record it; solver files do not depend on it.
    """
    fingerprint: Mapping[str, Any] = getattr(model, "conditions_fingerprint", dict)()
    return {"conditions": dict(fingerprint)} if fingerprint else {}


def prompts_of(model: Model) -> Sequence[str]:
    """Return ``prompts``, the i-th for label i, or none."""
    return getattr(model, "prompts", ())


def data_range_of(model: Model) -> float | None:
    """Return ``data_range``, largest minus smallest value of the data: 2 for images in [-1, 1]; latents have none."""
    data_range = getattr(model, "data_range", None)
    return None if data_range is None else float(data_range)


def precision_of(model: Model) -> str:
    """Return ``precision``, a name of :data:`gas.models.PRECISIONS`; ``"float32"`` by default."""
    return getattr(model, "precision", "float32")


def passes_of(model: Model, guidance: float) -> int:
    """Return the forward passes of the network in one prediction: guidance mixes two, or is an input of the network."""
    return 1 if guidance == 1.0 or model.fingerprint().get("guidance") == "input" else 2


def network_of(model: Model) -> nn.Module | None:
    """Return ``network``, the denoising network, which :class:`gas.OwnModel` calls ``weights``."""
    network = getattr(model, "network", getattr(model, "weights", None))
    return network if isinstance(network, nn.Module) else None


def decode_all(model: Model, samples: Sequence[Tensor]) -> Tensor:
    """Decode batches of samples into one batch of float16 on the CPU; refuse a model without decoder."""
    decode = decoder_of(model)
    if decode is None:
        raise UserError(f"model {model.name} has no decode(x), so its samples cannot be stored decoded")
    with torch.no_grad():
        return torch.cat([decode(x.to(model.device)).to("cpu", torch.float16) for x in samples])


# Weights hashed at once: 2 MB beside a network that may just fit.
_HASHED = 1 << 20


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of a network's state, names, shapes and values as float16: what identifies a model.

    Packed weights (torch's int8 layers) count with their dequantized values.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        for part in _flattened(value):
            shape = tuple(part.shape) if isinstance(part, Tensor) else part
            digest.update(f"{name} {shape} ".encode())
            if isinstance(part, Tensor):
                for chunk in part.detach().flatten().split(_HASHED):
                    digest.update(chunk.cpu().half().numpy())
    return digest.hexdigest()


def _flattened(value: Any) -> list[Any]:
    """The tensors and plain values of an entry of a network's state."""
    if isinstance(value, (tuple, list)):
        return [part for inner in value for part in _flattened(inner)]
    return [value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value]


def check_labels(labels: Tensor, classes: int, name: str) -> None:
    """Refuse labels outside ``[0, classes)``; ``name`` is the model's."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"label {int(wrong[0])} is out of range: {name} has {classes} classes or prompts")


def bind_labels(
    conditional: ConditionalDenoiser,
    labels: Tensor | None,
    *,
    classes: int,
    null: int | None,
    guidance: float,
    name: str,
    device: torch.device,
) -> Denoiser:
    """Return the denoiser for these classes ``(B,)``, guided unless ``guidance`` is 1, or the unconditional one.

    With labels and a null label it is a :class:`gas.denoise.ClassifierFreeGuidance`, which has branches. Guidance and
    ``labels=None`` need a null label.

    Args:
        conditional: ``denoise(x, t, labels)``.
        labels: classes in ``[0, classes)``, or ``None``.
        null: the label that means *no class*, if there is one.
        name: of the model, for messages.
    """
    number("guidance", guidance, "(-inf, inf)")
    if labels is None and guidance != 1.0:
        raise UserError(f"guidance {guidance:g} needs labels to guide towards, got none")
    if labels is not None:
        labels = torch.as_tensor(labels, dtype=torch.long, device=device)
        check_labels(labels, classes, name)
        if guidance == 1.0 and null is None:
            return lambda x, t: conditional(x, t, labels)
    if null is None:
        raise UserError(f"{name} has no null label, which guidance and sampling without a class need")
    empty = torch.tensor([null], device=device)
    if labels is None:
        return lambda x, t: conditional(x, t, empty.expand(len(x)))
    return ClassifierFreeGuidance(conditional, labels, empty, guidance)
