"""Inception-v3 as the Frechet inception distance uses it, by the published names of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.display import error_text
from gas.errors import UserError
from gas.features.images import as_bytes, resize_as_tensorflow, rgb

_SIDE = 299
# Limits for weights of a file. The published network has 2,048 channels and kernels of 7, whose padding costs memory.
_WIDEST, _KERNEL = 4096, 7

# A branch is a chain of convolutions and poolings; a pair at its end is two convolutions side by side.
Branch = tuple[str | tuple[str, str], ...]


def _chain(name: str, count: int) -> Branch:
    return tuple(f"{name}_{k}" for k in range(1, count + 1))


_POOL: Branch = ("avg", "branch_pool")
_A = (("branch1x1",), _chain("branch5x5", 2), _chain("branch3x3dbl", 3), _POOL)
_B: tuple[Branch, ...] = (("branch3x3",), _chain("branch3x3dbl", 3), ("down",))
_C = (("branch1x1",), _chain("branch7x7", 3), _chain("branch7x7dbl", 5), _POOL)
_D: tuple[Branch, ...] = (_chain("branch3x3", 2), _chain("branch7x7x3", 4), ("down",))


def _last(pool: str) -> tuple[Branch, ...]:
    return (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        (*_chain("branch3x3dbl", 2), ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        (pool, "branch_pool"),
    )


# The published graph pools by the maximum in its last block, by the mean before.
_BLOCKS: dict[str, tuple[Branch, ...]] = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A),
    "Mixed_6a": _B,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C),
    "Mixed_7a": _D,
    "Mixed_7b": _last("avg"),
    "Mixed_7c": _last("max"),
}
_STEM: Branch = (
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "down",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
    "down",
)
_DOWN = (
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
)
_UNPADDED = (*_DOWN, "Conv2d_2a_3x3", "Conv2d_4a_3x3")
_POOLS = ("avg", "max", "down")


class Inception(nn.Module):
    """Maps images ``(B, 1 or 3, H, W)`` in [-1, 1] to the pooled features ``(B, 2048)`` of the published graph.

    Images become bytes first, are resized to 299 as TensorFlow 1 did, and scaled to [-1, 1): the steps of the
    published graph (2015-12-05), to which reference statistics belong. It differs from the classification network of
    the same name in how three of its blocks pool.

    Args:
        state: weights by the published names (``pt_inception-2015-12-05``): ``Mixed_5b.branch1x1.conv.weight`` and so
            on. The weights set the widths. The classifier's (``fc``) are not used.

    Raises:
        UserError: when a name is missing or unknown, or shapes do not fit.

    References:
        Szegedy et al., arXiv 1512.00567; Heusel et al., arXiv 1706.08500; names and pooling as in pytorch-fid.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        names = {name for name in state if not name.startswith(("fc.", "AuxLogits."))}
        wanted = {f"{unit}.{part}" for unit in _units() for part in _PARTS}
        if names != wanted:
            missing, unknown = sorted(wanted - names), sorted(names - wanted)
            problem = f"lacks {missing[0]}" if missing else f"has an unknown {unknown[0][:60]}"
            raise UserError(
                f"weights are not those of the published Inception (pt_inception-2015-12-05): {problem}, "
                f"{len(missing)} missing and {len(unknown)} unknown in all"
            )
        self.units = nn.ModuleDict({_key(unit): _Unit(unit, state) for unit in _units()})
        self.eval().requires_grad_(False)
        try:
            # The smallest image that does not vanish before the last block.
            self._pooled(torch.zeros(1, 3, 75, 75))
        except RuntimeError as error:
            raise UserError(f"shapes of the weights do not fit together: {error_text(error)}") from error

    def forward(self, x: Tensor) -> Tensor:
        x = resize_as_tensorflow(as_bytes(rgb(x.to(next(self.parameters()).device))), _SIDE)
        return self._pooled((x - 128) / 128)

    def _pooled(self, x: Tensor) -> Tensor:
        x = self._branch("", _STEM, x)
        for name, branches in _BLOCKS.items():
            x = torch.cat([self._branch(f"{name}.", branch, x) for branch in branches], dim=1)
        return x.mean(dim=(2, 3))

    def _branch(self, block: str, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, tuple):
                return torch.cat([self.units[_key(block + name)](x) for name in step], dim=1)
            x = _pool(step, x) if step in _POOLS else self.units[_key(block + step)](x)
        return x


class _Unit(nn.Module):
    """A convolution without bias, batch normalization in evaluation mode, and a ReLU."""

    def __init__(self, name: str, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        weight, *numbers = (state[f"{name}.{part}"].float() for part in _PARTS)
        small = weight.ndim == 4 and max(weight.shape[:2]) <= _WIDEST and max(weight.shape[2:]) <= _KERNEL
        if not small or any(value.shape != weight.shape[:1] for value in numbers):
            raise UserError(f"weights of {name} have shapes that do not belong together")
        self.weight = nn.Parameter(weight)
        self.scale, self.shift, self.mean, self.variance = (nn.Parameter(value) for value in numbers)
        self.stride = 2 if name in _DOWN else 1
        self.padding = (0, 0) if name in _UNPADDED else (weight.shape[2] // 2, weight.shape[3] // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return F.relu(F.batch_norm(x, self.mean, self.variance, self.scale, self.shift, eps=1e-3))


_PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def _pool(how: str, x: Tensor) -> Tensor:
    if how == "avg":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return F.max_pool2d(x, 3, stride=2) if how == "down" else F.max_pool2d(x, 3, stride=1, padding=1)


def _units() -> Sequence[str]:
    """Names of all convolutions, in order."""
    chains = [("", _STEM), *((f"{name}.", branch) for name, block in _BLOCKS.items() for branch in block)]
    names: list[str] = []
    for block, branch in chains:
        for step in branch:
            together = step if isinstance(step, tuple) else (step,)
            names += [block + name for name in together if name not in _POOLS]
    return names


def _key(name: str) -> str:
    return name.replace(".", "/")
