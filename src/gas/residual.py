"""Residuals: small networks that correct a row of a table by more than weighted sums of states and predictions."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gas.arguments import MAX_NFE, MAX_SEED, choice, integer
from gas.display import brief
from gas.errors import UserError

__all__ = ["MAX_NUMBERS", "Cost", "Residual"]

# A thousandth of the smallest published networks that solvers are learned for (CIFAR-10's has 56 million): beyond it a
# residual is a second network, and its file and time are no longer small beside one call of the first.
MAX_NUMBERS = 50_000
_KERNEL = 3
_LAYERS: tuple[Callable[..., Tensor], ...] = (
    functional.linear,
    *(
        partial(convolve, padding=_KERNEL // 2)
        for convolve in (functional.conv1d, functional.conv2d, functional.conv3d)
    ),
)


class Cost(NamedTuple):
    """Size of a residual: its parameters, and its multiply-adds for one sample."""

    numbers: int
    multiply_adds: int


class Residual(nn.Module):
    """The correction of one row of a :class:`gas.Table`: ``x_{n+1} += r(x_0, .., x_n, d_0, .., d_n)``.

    The inputs, each divided by its scale, are concatenated over channels; hidden layers end in SiLU; the result is
    multiplied by the last scale. The last layer is zero at first, so that a solver starts exactly at its table. The row
    fixes the time and the branch, so neither is an input.

    - ``"convolution"``, for samples ``(B, C, *sizes)`` of 1, 2 or 3 sizes: layers of 3 x .. x 3 convolutions with zero
      padding, for any sizes that ``patch`` divides. A patch p > 1 trades resolution for channels: p^k times as many, k
      the number of sizes, at 1/p of each size (pixel-unshuffle), hence p^k times fewer places to compute.
    - ``"token"``, for packed latents ``(B, T, C)`` and vectors ``(B, C)``: linear layers, the same for every token.

    Layers are computed in float32 at least, in the dtype of the inputs where that is wider, whatever autocast says.

    Args:
        form: ``"convolution"`` or ``"token"``.
        channels: C of the samples.
        states: number of states that it reads, the first ones: 1 reads x_0 alone, n + 1 all that row n has.
        outputs: number of predictions that it reads, the newest ones.
        width: channels of the hidden layers.
        layers: hidden layers.
        patch: side p of the patches of a convolution.
        scales: one number that each input is divided by, and last one that the result is multiplied by, as the root
            mean square of each over training samples; by default 1.
        dimensions: number of sizes k of a convolution's samples, 1 to 3.
        seed: of the hidden layers' first weights.

    Raises:
        UserError: when an argument is out of range, or there would be more than :data:`MAX_NUMBERS` parameters.

    >>> import gas
    >>> gas.Residual("convolution", channels=3, states=1, outputs=2, width=16).cost((3, 32, 32))
    Cost(numbers=4067, multiply_adds=4128768)
    """

    scales: Tensor

    def __init__(
        self,
        form: str,
        channels: int,
        states: int,
        outputs: int,
        width: int,
        layers: int = 2,
        patch: int = 1,
        scales: Tensor | Sequence[float] | None = None,
        *,
        dimensions: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.form = choice("form", form, ("convolution", "token"))
        self.channels = integer("channels", channels, 1, MAX_NUMBERS)
        self.states = integer("states", states, 0, MAX_NFE)
        self.outputs = integer("outputs", outputs, 0, MAX_NFE)
        self.width = integer("width", width, 1, MAX_NUMBERS)
        self.layers = integer("layers", layers, 1, 8)
        self.patch = integer("patch", patch, 1, 1 if form == "token" else 16)
        self.dimensions = 0 if form == "token" else integer("dimensions", dimensions, 1, 3)
        if not self.states + self.outputs:
            raise UserError("a residual reads at least one state or output, got states=0 and outputs=0")
        inside = self.channels * self.patch**self.dimensions
        sides = [(self.states + self.outputs) * inside, *[self.width] * self.layers, inside]
        shapes = [(new, old, *[_KERNEL] * self.dimensions) for old, new in itertools.pairwise(sides)]
        if (count := sum(math.prod(shape) + shape[0] for shape in shapes)) > MAX_NUMBERS:
            raise UserError(
                f"a residual may have {MAX_NUMBERS:,} numbers, got {count:,}: lower its width, layers or patch"
            )
        self.weights = nn.ParameterList(map(torch.zeros, shapes))
        self.biases = nn.ParameterList(torch.zeros(shape[0]) for shape in shapes)
        generator = torch.Generator().manual_seed(integer("seed", seed, 0, MAX_SEED))
        for weight in self.weights[:-1]:
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        # Of parameters: which versions of them, and these on the device and in the dtype of samples.
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[list[tuple[int, int]], list[Tensor]]] = {}
        self.register_buffer("scales", _checked_scales(scales, self.states + self.outputs + 1))

    def forward(self, states: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Return the correction, of the shape of a state, in float32 at least.

        Args:
            states: ``x_0, .., x_n``, each ``(B, *)``.
            outputs: ``d_0, .., d_n``, each of the shape of a state.

        Raises:
            UserError: when there are too few inputs, or they are not of the form.
        """
        if len(states) < self.states or len(outputs) < self.outputs:
            raise UserError(
                f"a residual of {self.states} states and {self.outputs} outputs got {len(states)} and {len(outputs)}"
            )
        inputs = [*states[: self.states], *outputs[len(outputs) - self.outputs :]]
        self._check(inputs[0].shape)
        dtype = reduce(torch.promote_types, (x.dtype for x in inputs), torch.float32)
        scales = self.scales.to(inputs[0].device, dtype).unbind()
        # Only where it is on: exporters to other runtimes have no autocast.
        device = inputs[0].device.type
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
            scaled = [x.to(dtype) / scale for x, scale in zip(inputs, scales, strict=False)]
            x = _to_patches(torch.cat(scaled, dim=1 if self.dimensions else -1), self.dimensions, self.patch)
            for n, (weight, bias) in enumerate(self._placed(x)):
                x = functional.silu(x) if n else x
                x = _LAYERS[self.dimensions](x, weight, bias)
            return _from_patches(x, self.dimensions, self.patch) * scales[-1]

    def _placed(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the weights and biases in the dtype and on the device of ``x``; copies of frozen ones are cached.

        A change of their values through ``.data`` alone is not seen: no tensor counts it.
        """
        parameters = [*self.weights, *self.biases]
        if any(p.requires_grad for p in parameters) or parameters[0].to(x) is parameters[0]:
            placed = [p.to(x) for p in parameters]
        else:
            versions = [(id(p), p.is_inference() or p._version) for p in parameters]
            copied, placed = self._copies.get((x.device, x.dtype), ([], []))
            if copied != versions:
                # Autograd cannot save tensors of inference mode, should a later call need it.
                with torch.inference_mode(False):
                    placed = [p.to(x) for p in parameters]
                self._copies[x.device, x.dtype] = versions, placed
        return list(zip(placed[: len(self.weights)], placed[len(self.weights) :], strict=True))

    def _check(self, shape: Sequence[int]) -> None:
        """Refuse samples ``(B, *)`` that are not of the form."""
        sizes = shape[2:]
        if self.form == "token":
            fits, wanted = (
                len(shape) in (2, 3) and shape[-1] == self.channels,
                f"(B, {self.channels}) or (B, T, {self.channels})",
            )
        else:
            fits = (
                len(sizes) == self.dimensions
                and shape[1] == self.channels
                and not any(s % self.patch for s in sizes)
            )
            wanted = f"(B, {self.channels}, ..) with {self.dimensions} sizes" + (
                f", multiples of {self.patch}" if self.patch > 1 else ""
            )
        if not fits:
            raise UserError(
                f"a residual of form {self.form} takes states {wanted}, got {brief(tuple(shape))}"
            )

    def cost(self, sample_shape: Sequence[int]) -> Cost:
        """Return the size: parameters, and multiply-adds for a sample of this shape, without the batch."""
        self._check((1, *sample_shape))
        places = math.prod(sample_shape) // self.channels // self.patch**self.dimensions
        return Cost(self.numbers, sum(weight.numel() for weight in self.weights) * places)

    @property
    def numbers(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def config(self) -> dict[str, Any]:
        """Return plain JSON that :meth:`from_config` builds the same residual from, but for its numbers."""
        names = ("form", "channels", "states", "outputs", "width", "layers")
        config = {name: getattr(self, name) for name in names}
        convolution = {"patch": self.patch, "dimensions": self.dimensions}
        return config | (convolution if self.form == "convolution" else {})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Residual:
        """Build a residual from its :meth:`config`; :meth:`load_state_dict` gives it its numbers.

        Raises:
            UserError: for unknown or missing names, and values out of range.
        """
        try:
            return cls(**config)
        except TypeError as error:
            raise UserError(f"a residual's config {brief(dict(config))} is not one: {error}") from error

    @classmethod
    def from_state(cls, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Residual:
        """Build a residual without gradient from its :meth:`config` and copies of the tensors of its ``state_dict``.

        Raises:
            UserError: when the tensors are of another residual.
        """
        residual = cls.from_config(config)
        shapes, wanted = (
            {name: tuple(x.shape) for name, x in part.items()} for part in (state, residual.state_dict())
        )
        if wrong := sorted(name for name in shapes.keys() | wanted if shapes.get(name) != wanted.get(name)):
            name = wrong[0]
            raise UserError(f"{brief(name)} has shape {shapes.get(name)}, its config says {wanted.get(name)}")
        residual.load_state_dict({name: x.detach().clone() for name, x in state.items()}, assign=True)
        return residual.requires_grad_(False)

    def frozen(self) -> Residual:
        """Return a copy without gradient."""
        return Residual.from_state(self.config(), self.state_dict())


def _checked_scales(scales: Tensor | Sequence[float] | None, count: int) -> Tensor:
    """Return ``(count,)`` positive scales, by default all 1."""
    if scales is None:
        return torch.ones(count)
    try:
        values = torch.as_tensor(scales, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        values = torch.zeros(0)
    if values.shape != (count,) or not bool((values.isfinite() & (values > 0)).all()):
        raise UserError(
            f"scales must be {count} positive numbers, one for each input and the result, got {brief(scales)}"
        )
    return values


def _to_patches(x: Tensor, dimensions: int, patch: int) -> Tensor:
    """Turn ``(B, C, *sizes)`` into ``(B, C p^k, *sizes / p)``, for two sizes as ``torch.pixel_unshuffle`` does."""
    if patch == 1:
        return x
    split: Tensor = x.unflatten(2, (-1, patch))
    for k in range(1, dimensions):
        split = split.unflatten(2 + 2 * k, (-1, patch))
    places = range(2, 2 + 2 * dimensions, 2)
    return split.permute(0, 1, *(k + 1 for k in places), *places).flatten(1, 1 + dimensions)


def _from_patches(x: Tensor, dimensions: int, patch: int) -> Tensor:
    """Undo :func:`_to_patches`."""
    if patch == 1:
        return x
    split: Tensor = x.unflatten(1, (-1, *[patch] * dimensions))
    joined = split.permute(0, 1, *(axis for k in range(dimensions) for axis in (2 + dimensions + k, 2 + k)))
    for k in range(dimensions):
        joined = joined.flatten(2 + k, 3 + k)
    return joined
