"""Flat memory: network calls are made again in the backward pass instead of keeping what they computed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gas.denoise import Denoiser

__all__ = ["Recomputed", "available_bytes", "fits", "saved_bytes"]

# Share of the free memory that a graph may take before calls are recomputed instead.
_SHARE = 0.5


@dataclass(frozen=True)
class Recomputed:
    """A denoiser that keeps only its input for the backward pass, and is asked again there.

    Training memory then grows with NFE by one state a call, not by all the activations of a network; a
    gradient costs one more call (four in place of three). Gradients are those of the stored graph.

    Args:
        denoise: deterministic, as frozen networks in evaluation mode are.

    References:
        Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """

    denoise: Denoiser

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 as the denoiser does."""
        if not torch.is_grad_enabled():
            return self.denoise(x, t)
        answer: Tensor = checkpoint(self.denoise, x, t, use_reentrant=False, preserve_rng_state=False)
        return answer


def saved_bytes(denoise: Denoiser, x: Tensor, t: Tensor) -> int:
    """Return how many bytes one call keeps for its backward pass, each storage counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        denoise(x.detach().requires_grad_(), t.detach().requires_grad_())
    return sum(kept.values())


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a CUDA device, or of this machine; 4 GiB where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not these names
        return 2**32


def fits(denoise: Denoiser, x: Tensor, t: Tensor, nfe: int) -> bool:
    """Whether the graph of a run of ``nfe`` calls would leave half of the free memory free; asks once."""
    return nfe * saved_bytes(denoise, x, t) < _SHARE * available_bytes(x.device)
