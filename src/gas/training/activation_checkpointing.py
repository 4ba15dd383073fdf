"""Flat memory: network calls are made again in the backward pass instead of keeping what they computed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gas.denoise import Denoiser
from gas.machine import group_available

__all__ = ["MODES", "Recomputed", "available_bytes", "kept_calls", "saved_bytes"]

# How many calls each mode keeps the graph of, whatever the NFE; none is a mode that depends on it.
MODES: dict[str, int | None] = {"auto": None, "fast": None, "flat": 3, "least": 1}

# Share of the free memory that the graphs of kept calls may take.
_SHARE = 0.5


@dataclass
class Recomputed:
    """A denoiser whose first calls keep only their input for the backward pass, and are made again there.

    A gradient through such a call costs four forward calls in place of three; gradients are those of the stored
    graph. The calls to keep are a run's last: the backward pass is done with them, and has freed what they kept,
    before it makes the others again, one at a time. Keeping one therefore costs no memory at all.

    Args:
        denoise: deterministic, as frozen networks in evaluation mode are; its own weights get no gradient.
        again: how many calls are made again; by default all.

    References:
        Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """

    denoise: Denoiser
    again: int | None = None
    _made: int = field(default=0, init=False)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 as the denoiser does."""
        self._made += 1
        if not torch.is_grad_enabled() or (self.again is not None and self._made > self.again):
            return self.denoise(x, t)
        answer: Tensor = _MadeAgain.apply(self.denoise, x, t)  # type: ignore[no-untyped-call]
        return answer


class _MadeAgain(torch.autograd.Function):
    """One call, made without a graph, and with one when its gradient is asked for.

    :func:`torch.utils.checkpoint.checkpoint` builds the graph both times, so that gradients of weights are right too;
    here they are frozen. The first time no gradient is wanted, so that recorded CUDA graphs are replayed.
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
        wanted = context.needs_input_grad[1:]
        x, t = (
            saved.detach().requires_grad_(asked)
            for saved, asked in zip(context.saved_tensors, wanted, strict=True)
        )
        enabled, dtype = context.cast
        with torch.enable_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=enabled):
            answer = context.denoise(x, t)
        if not answer.requires_grad:  # as the answer at a fixed x_T, where the network is told no time
            return None, None, None
        asked = [part for part in (x, t) if part.requires_grad]
        found = iter(torch.autograd.grad(answer, asked, gradient, allow_unused=True))
        return None, *(next(found) if part.requires_grad else None for part in (x, t))


def saved_bytes(denoise: Denoiser, x: Tensor, t: Tensor) -> int:
    """Return how many bytes one call keeps for its backward pass, each storage counted once, weights not at all."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()  # a storage without numbers (meta) has no other address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        denoise(x.detach().requires_grad_(), t.detach().requires_grad_())
    return sum(kept.values())


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Return the free memory of a CUDA device, or what this machine and the process's container leave.

    Args:
        device: where the graph would lie.
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
    """What the machine can give without swapping: Linux's own estimate, which counts what its caches would yield."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not these names
        return 2**32


def kept_calls(mode: str, denoise: Denoiser, x: Tensor, t: Tensor, nfe: int) -> int:
    """Return how many of ``nfe`` calls to keep the graph of: for ``"auto"``, what half of the free memory holds.

    Args:
        mode: a name of :data:`MODES`.
        denoise: asked once, in mode ``"auto"``.
        x: a state ``(B, *)``.
        t: a time.
        nfe: network evaluations of the run.

    Returns:
        From 1 to ``nfe``.
    """
    kept = nfe if mode == "fast" else MODES[mode]
    if kept is None:
        kept = int(_SHARE * available_bytes(x.device) / max(1, saved_bytes(denoise, x, t)))
    return max(1, min(kept, nfe))
