"""Activation checkpointing: recompute network calls in the backward pass instead of storing their activations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gas.arguments import MAX_NFE, integer
from gas.denoise import Denoiser, branches_of, select_branches
from gas.errors import UserError
from gas.machine import group_available

# Of how many calls activations are stored: of all, of as many as fit, or of this number.
Checkpointing = Literal["none", "auto"] | int

# Share of the free memory that stored activations may take; the other half is for what comes beside them, such as the
# activations of a feature loss or a discriminator.
_SHARE = 0.5


def check_checkpointing(value: Any) -> Checkpointing:
    """Return ``value`` if it is ``"none"``, ``"auto"`` or a number of calls.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, str):
        return integer("checkpointing", value, 1, MAX_NFE)
    if value not in ("none", "auto"):
        raise UserError(f"checkpointing must be 'none', 'auto' or a number of calls, got {value!r}")
    mode: Checkpointing = value  # type: ignore[assignment]
    return mode


@dataclass
class Checkpointed:
    """A denoiser whose first calls store only their input, and are recomputed in the backward pass.

    A gradient through such a call costs four forward calls in place of three; gradients are those of the stored
    graph. The last calls of a run are the ones to store: the backward pass is done with them, and has freed their
    activations, before it recomputes the others, one at a time. Storing one call therefore costs no memory at all.

    Args:
        denoise: deterministic, as frozen networks in evaluation mode are; its own weights get no gradient.
        recomputed: number of calls to recompute; by default all.

    References:
        Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """

    denoise: Denoiser
    recomputed: int | None = None
    _calls: Iterator[int] = field(default_factory=count, repr=False)

    @property
    def branches(self) -> tuple[str, ...]:
        return branches_of(self.denoise)

    def select(self, *names: str) -> Checkpointed:
        return replace(self, denoise=select_branches(self.denoise, *names))

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 as the denoiser does."""
        call = next(self._calls)
        if not torch.is_grad_enabled() or (self.recomputed is not None and call >= self.recomputed):
            return self.denoise(x, t)
        prediction: Tensor = _RecomputedCall.apply(self.denoise, x, t)  # type: ignore[no-untyped-call]
        return prediction


class _RecomputedCall(torch.autograd.Function):
    """One call without a graph, and another with a graph in the backward pass.

    :func:`torch.utils.checkpoint.checkpoint` builds the graph both times, for the gradients of weights; frozen weights
    have none. As the first call needs no gradient, recorded CUDA graphs are replayed.
    """

    @staticmethod
    def forward(context: Any, denoise: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        context.denoise = denoise
        context.cast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        context.save_for_backward(x, t)
        return denoise(x, t)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, t = (
            saved.detach().requires_grad_(needed)
            for saved, needed in zip(context.saved_tensors, context.needs_input_grad[1:], strict=True)
        )
        enabled, dtype = context.cast
        with torch.enable_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=enabled):
            prediction = context.denoise(x, t)
        # Without a gradient: the prediction at a fixed x_T of a network that does not depend on time.
        if not prediction.requires_grad:
            return None, None, None
        inputs = [part for part in (x, t) if part.requires_grad]
        gradients = iter(torch.autograd.grad(prediction, inputs, gradient, allow_unused=True))
        return None, *(next(gradients) if part.requires_grad else None for part in (x, t))


def saved_bytes(denoise: Denoiser, x: Tensor, t: Tensor) -> int:
    """Return the bytes that one call stores for its backward pass; each storage counts once, weights do not count."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()  # a storage without numbers (meta) has no other address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        denoise(x.detach().requires_grad_(), t.detach().requires_grad_())
    return sum(sizes.values())


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Return the free memory of a CUDA device, or of this machine within the limits of the process's container.

    Args:
        device: where the activations are stored.
        root: of the file system, for tests.

    Returns:
        Bytes; 4 GiB where the system does not say.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    allowed, free = group_available(root), _machine_available(root)
    return free if allowed is None else min(free, allowed)


def _machine_available(root: Path) -> int:
    """Return the memory available without swapping: Linux's own estimate, which includes reclaimable caches."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not these names
        return 2**32


def stored_calls(checkpointing: Checkpointing, denoise: Denoiser, x: Tensor, t: Tensor, nfe: int) -> int:
    """Return of how many of ``nfe`` calls to store the activations, from 1 to ``nfe``.

    Args:
        checkpointing: ``"none"`` stores all; a number, so many; ``"auto"``, as many as half of the free memory holds.
        denoise: called once for ``"auto"``.
        x: a state ``(B, *)``.
        t: a time.
        nfe: network evaluations of the run.
    """
    if not isinstance(checkpointing, str):
        return min(checkpointing, nfe)
    if checkpointing == "none":
        return nfe
    calls = int(_SHARE * available_bytes(x.device) / max(1, saved_bytes(denoise, x, t)))
    return max(1, min(calls, nfe))
