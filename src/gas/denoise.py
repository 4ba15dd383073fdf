"""The denoiser interface, and wrappers that turn every kind of network into a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gas.arguments import number
from gas.errors import UserError
from gas.schedule import Schedule, VPDiscrete

__all__ = [
    "BranchedDenoiser",
    "ClassifierFreeGuidance",
    "ConditionalDenoiser",
    "Denoiser",
    "DiscreteTime",
    "DynamicThreshold",
    "EDMDenoiser",
    "FlowDenoiser",
    "GuidedNetwork",
    "NoiseDenoiser",
    "Rescale",
    "ScoreDenoiser",
    "StaticThreshold",
    "VelocityDenoiser",
    "ZeroStar",
    "branches_of",
    "call_preserving",
    "is_recorded",
    "select_branches",
]


class Denoiser(Protocol):
    """``denoise(x, t)``: data prediction of the shape and dtype of ``x`` ``(B, *)``; ``t`` a scalar float64 tensor."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor: ...


class BranchedDenoiser(Denoiser, Protocol):
    """A denoiser that is mixed from the predictions of named branches, each of which is one forward pass a sample."""

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches."""

    def select(self, *names: str) -> Denoiser:
        """Return the denoiser of K named branches, for ``(K B, *)``: B samples for each, in this order."""


class ConditionalDenoiser(Protocol):
    """A denoiser with a condition, whose tensors have the batch as their first dimension."""

    def __call__(self, x: Tensor, t: Tensor, condition: Any, /) -> Tensor: ...


# A user's network: ``network(x, t)``, with a condition ``network(x, t, condition)``. t has one value for each sample,
# ``(B,)``, on the device of x and in its dtype, or in float32 where that has fewer bits.
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class NoiseDenoiser:
    """For a network that predicts the noise: ``x_0 = (x - sigma_t eps(x, t)) / alpha_t``.

    Args:
        network: ``network(x, t) -> eps``.
        schedule: of the network's training. Where ``alpha_t = 0`` a noise prediction does not determine x_0.
    """

    network: Network
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        alpha, sigma = self.schedule(t)
        return (x - sigma * call_preserving(self.network, x, _per_sample(t, x), *condition)) / alpha


@dataclass(frozen=True)
class ScoreDenoiser:
    """For a network that predicts the score, ``s = grad_x log p_t(x)``: ``x_0 = (x + sigma_t^2 s(x, t)) / alpha_t``.

    References:
        Song et al., arXiv 2011.13456; Tweedie's formula: Efron, JASA 106 (2011).
    """

    network: Network
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        alpha, sigma = self.schedule(t)
        return (x + sigma**2 * call_preserving(self.network, x, _per_sample(t, x), *condition)) / alpha


@dataclass(frozen=True)
class VelocityDenoiser:
    """For a variance-preserving network that predicts ``v = alpha eps - sigma x_0``: ``x_0 = alpha x - sigma v``.

    References:
        Salimans and Ho, arXiv 2202.00512, appendix D.
    """

    network: Network
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        alpha, sigma = self.schedule(t)
        return alpha * x - sigma * call_preserving(self.network, x, _per_sample(t, x), *condition)


@dataclass(frozen=True)
class FlowDenoiser:
    """For a rectified-flow network that predicts ``v = eps - x_0``: ``x_0 = x - t v(x, t)``.

    References:
        Liu et al., arXiv 2209.03003, equation 1.
    """

    network: Network

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        return x - t * call_preserving(self.network, x, _per_sample(t, x), *condition)


@dataclass(frozen=True)
class EDMDenoiser:
    """For an EDM network ``D(y; sigma)`` of ``y = x_0 + sigma eps``, called with ``x / alpha``, ``sigma / alpha``.

    References:
        Karras et al., arXiv 2206.00364, equation 7 and Table 1 (``s(t) = alpha_t``).
    """

    network: Network
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        alpha, sigma = self.schedule(t)
        return self.network(x / alpha, _per_sample(sigma / alpha, x), *condition)


@dataclass(frozen=True)
class DiscreteTime:
    """Give a network its discrete training step, as a float, in place of t: ``(t - 1/M) M``, within ``[0, M - 1]``.

    A learned solver may evaluate slightly after t = 1 or before 1/M, where an embedding table has no entry.

    Args:
        network: ``network(x, step)``.
        schedule: of the M steps.
        rounded: give the nearest step as an integer, for a network that looks it up in an ``nn.Embedding``. States
            keep the noise level of their exact time, at most half a step from the network's.
    """

    network: Network
    schedule: VPDiscrete
    rounded: bool = False

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        step = self.schedule.network_time(t).clamp(0, self.schedule.steps - 1)
        return self.network(x, step.round().long() if self.rounded else step.to(t.dtype), *condition)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Guidance in one batched call, one network evaluation (NFE): ``d = d_null + scale (d_condition - d_null)``.

    On data predictions this equals the usual rule on noise predictions, since both are affine in each other. The
    branches are ``"unconditional"``, ``"conditional"`` and those of ``others``, which only tables evaluate.

    Args:
        denoise: a denoiser that takes a condition.
        condition: conditions ``(B, *)``.
        null: the empty condition, ``(B, *)`` or broadcastable to it.
        scale: 1 is the plain conditional model, whose prediction alone is evaluated, 0 the unconditional one.
        others: conditions of further branches by name, such as a negative prompt's, like ``null``.

    References:
        Ho and Salimans, arXiv 2207.12598, equation 6 with ``w = scale - 1``.
    """

    denoise: ConditionalDenoiser
    condition: Tensor
    null: Tensor
    scale: float
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number("scale", self.scale, "(-inf, inf)")

    @property
    def branches(self) -> tuple[str, ...]:
        return "unconditional", "conditional", *self.others

    def select(self, *names: str) -> Denoiser:
        conditions = {**self.others, "unconditional": self.null, "conditional": self.condition}

        def selected(x: Tensor, t: Tensor) -> Tensor:
            # Joined in every call, so that a recorded CUDA graph reads the conditions of each replay.
            joined = torch.cat([conditions[name].expand_as(self.condition) for name in names])
            return self.denoise(x, t, joined)

        return selected

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.scale == 1.0:
            return self.denoise(x, t, self.condition)
        both = self.select("conditional", "unconditional")(torch.cat([x, x]), t)
        size = x.shape[0]  # not len: a batch of any size can be traced
        return torch.lerp(both[size:], both[:size], self.scale)


@dataclass(frozen=True)
class GuidedNetwork:
    """A network guided by a rule on its outputs, such as :class:`Rescale`, for a denoiser of its kind: ``NoiseDenoiser(
    GuidedNetwork(network, condition, null, scale, Rescale()), schedule)``.

    The rules are not affine in the outputs. So they depend on what the network predicts, and no table can mix them from
    branches: a call is two forward passes. Arguments as for :class:`ClassifierFreeGuidance`.

    Args:
        network: ``network(x, t, condition)``.
        rule: ``(conditional, unconditional, scale, t) -> output``, of outputs ``(B, *)`` and times ``(B,)``.
    """

    network: Network
    condition: Tensor
    null: Tensor
    scale: float
    rule: Callable[[Tensor, Tensor, float, Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        conditions = torch.cat([self.condition, self.null.expand_as(self.condition)])
        conditional, unconditional = self.network(torch.cat([x, x]), torch.cat([t, t]), conditions).chunk(2)
        return self.rule(conditional, unconditional, self.scale, t)


@dataclass(frozen=True)
class Rescale:
    """Rescaled guidance: ``g = u + scale (c - u)``, ``phi g std(c) / std(g) + (1 - phi) g``, std of each sample.

    References:
        Lin et al., arXiv 2305.08891, section 3.4; 0.7 is theirs.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        number("phi", self.phi, "[0, 1]")

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float, t: Tensor) -> Tensor:
        guided, rest = torch.lerp(unconditional, conditional, scale), tuple(range(1, conditional.ndim))
        deviation = guided.std(rest, keepdim=True)
        ratio = conditional.std(rest, keepdim=True) / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)
        return guided * torch.lerp(torch.ones_like(ratio), ratio, self.phi)


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero*: ``s u + scale (c - s u)`` with ``s = <c, u> / |u|^2`` of each sample, and 0 at the first times.

    Args:
        zero_from: time of the network from which on its output is 0, which a flow starts at; ``inf`` never. For
            velocities of a flow alone: a noise prediction of 0 is a data prediction of ``x / alpha_t``.

    References:
        Fan et al., arXiv 2503.18886, section 4, for velocities; diffusers' guider applies it to noise predictions too.
    """

    zero_from: float = math.inf

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float, t: Tensor) -> Tensor:
        shape = [-1] + [1] * (conditional.ndim - 1)
        # The squares of a latent alone sum to more than float16 holds.
        wide = torch.promote_types(conditional.dtype, torch.float32)
        dot, square = (
            (unconditional.to(wide) * other).flatten(1).sum(1).reshape(shape)
            for other in (conditional, unconditional)
        )
        projection = (dot / square.clamp_min(torch.finfo(wide).tiny)).to(conditional.dtype)
        guided = torch.lerp(unconditional * projection, conditional, scale)
        return torch.where(t.reshape(shape) >= self.zero_from, torch.zeros_like(guided), guided)


@dataclass(frozen=True)
class StaticThreshold:
    """Clip the data prediction to ``[-limit, limit]``, the range of the data.

    For a noise prediction where hardly any signal is left (cosine schedules): ``1/alpha`` magnifies its error thousands
    of times there, and values out of range carry no information.
    """

    denoise: Callable[..., Tensor]
    limit: float = 1.0

    def __post_init__(self) -> None:
        number("limit", self.limit, "(0, inf)")

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        return self.denoise(x, t, *condition).clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold:
    """Clip each sample to the ``quantile`` of its absolute values (at least ``limit``), then scale back to ``limit``.

    References:
        Saharia et al., arXiv 2205.11487, section 2.3.
    """

    denoise: Callable[..., Tensor]
    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        number("quantile", self.quantile, "(0, 1]")
        number("limit", self.limit, "(0, inf)")

    def __call__(self, x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        d = self.denoise(x, t, *condition)
        size = d.abs().flatten(1).to(torch.promote_types(d.dtype, torch.float32))
        # By hand, as torch.quantile refuses more than 2^24 numbers.
        ordered, place = size.sort(dim=1).values, self.quantile * (size.shape[1] - 1)
        low, high = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        reach = torch.lerp(low, high, place % 1).clamp(min=self.limit)
        reach = reach.to(d.dtype).reshape(-1, *[1] * (d.ndim - 1))
        return torch.minimum(torch.maximum(d, -reach), reach) * (self.limit / reach)


def branches_of(denoise: Denoiser) -> tuple[str, ...]:
    """Return the branches of a :class:`BranchedDenoiser`, else none."""
    return getattr(denoise, "branches", ())


def select_branches(denoise: Denoiser, *names: str) -> Denoiser:
    """Return the denoiser of K named branches, for a batch ``(K B, *)`` of B samples for each."""
    branches = branches_of(denoise)
    for name in names:
        if name not in branches:
            has = ", ".join(branches) or "none: bind a model to labels, with a null label"
            raise UserError(f"the table evaluates the branch {name!r}, the denoiser has {has}")
    selected: Denoiser = denoise.select(*names)  # type: ignore[attr-defined]
    return selected


def is_recorded(x: Tensor) -> bool:
    """Return whether autograd records operations on a tensor."""
    return x.requires_grad and torch.is_grad_enabled()


def call_preserving(network: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    """Return ``network(x, *rest)`` without letting the network change ``x``, which it may do in place.

    It gets a copy. Where autograd records ``x`` it gets ``x`` itself, so that gradients are summed in the order of use,
    and a change is refused.
    """
    if not is_recorded(x):
        return network(x.clone(), *rest)
    version = x._version
    output = network(x, *rest)
    if x._version != version:
        raise UserError(
            "the network changed its input in place, which gradients flow through: let it work on a copy, x.clone()"
        )
    return output


def _per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Return the scalar time as one value for each sample, on the device of x."""
    t = t.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    return t.expand(x.shape[0])  # len(x) is a constant to a tracer
