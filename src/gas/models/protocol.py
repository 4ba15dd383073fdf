"""What the library asks of a pretrained model: a denoiser with a schedule, a shape, noise and an identity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gas.arguments import number
from gas.denoise import ClassifierFreeGuidance, ConditionalDenoiser, Denoiser
from gas.errors import UserError
from gas.schedule import Schedule

__all__ = ["Model", "bind_labels", "conditions_of", "data_range_of", "decode_all", "weights_hash"]


@runtime_checkable
class Model(Protocol):
    """A frozen diffusion or flow model, ready to be sampled.

    Attributes:
        name: what people call it.
        schedule: its forward process.
        sample_shape: shape of one sample, without the batch.
        t_end: the time that sampling ends at.
        classes: number of classes it can be told; 0 when it takes none.
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
        """Estimate x_0 without any condition."""

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these classes ``(B,)``, or the unconditional one for ``None``."""


def conditions_of(model: Model) -> dict[str, Any]:
    """Return ``{"conditions": what labels mean}`` of a model that has conditions."""
    meaning: Mapping[str, Any] = getattr(model, "conditions_fingerprint", dict)()
    return {"conditions": dict(meaning)} if meaning else {}


def data_range_of(model: Model) -> float | None:
    """Return largest minus smallest value of a model's data, 2 for images in [-1, 1]; none where it has no range.

    Latents have none, and of its own data a model says it by an attribute ``data_range``.
    """
    data_range = getattr(model, "data_range", None)
    return None if data_range is None else float(data_range)


def decode_all(model: Model, samples: Sequence[Tensor]) -> Tensor:
    """Return what a model's ``decode(x)`` makes of batches of samples, as one batch of float16 on the CPU.

    Raises:
        ValueError: when the model has no decoder.
    """
    decode = getattr(model, "decode", None)
    if decode is None:
        raise UserError(f"model {model.name} has no decode(x), so its samples cannot be stored decoded")
    with torch.no_grad():
        return torch.cat([decode(x.to(model.device)).to("cpu", torch.float16) for x in samples])


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of a network's state, names, shapes and values as float16: what identifies a model.

    Weights that are packed into something else than a tensor (torch's own int8 layers) count by what they stand for.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        for part in _parts(value):
            shape = tuple(part.shape) if isinstance(part, Tensor) else part
            digest.update(f"{name} {shape} ".encode())
            if isinstance(part, Tensor):
                digest.update(part.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parts(value: Any) -> list[Any]:
    """The tensors and plain values of an entry of a network's state."""
    if isinstance(value, (tuple, list)):
        return [part for inner in value for part in _parts(inner)]
    return [value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value]


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
    """Return the denoiser for these classes ``(B,)``, guided where ``guidance`` is not 1, or the one for no class.

    Args:
        conditional: ``denoise(x, t, labels)``.
        labels: classes, or ``None`` for none.
        classes: how many there are.
        null: the label that means *no class*, if there is one.
        guidance: scale of classifier-free guidance.
        name: the model's, for messages.
        device: where it samples.

    Raises:
        ValueError: when a label is not in ``[0, classes)``, or guidance or no class is asked where there is no null.
    """
    number("guidance", guidance, "(-inf, inf)")
    if labels is None and guidance != 1.0:
        raise UserError(f"guidance {guidance:g} needs labels to guide towards, got none")
    if labels is not None:
        labels = torch.as_tensor(labels, dtype=torch.long, device=device)
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise UserError(f"label {int(wrong[0])} is out of range: {name} knows classes 0 to {classes - 1}")
        if guidance == 1.0:
            return lambda x, t: conditional(x, t, labels)
    if null is None:
        raise UserError(f"{name} was given no null label, which guidance and sampling without a class need")
    empty = torch.tensor([null], device=device)
    if labels is None:
        return lambda x, t: conditional(x, t, empty.expand(len(x)))
    return ClassifierFreeGuidance(conditional, labels, empty, guidance)
