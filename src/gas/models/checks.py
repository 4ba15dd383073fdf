"""Whether a model is put together rightly: what can be seen by asking its network a few times."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gas.classical.dpmpp import ddim
from gas.denoise import ClassifierFreeGuidance, Denoiser, DiscreteTime, EDMDenoiser, FlowDenoiser
from gas.errors import UserError
from gas.grids.analytic import log_snr
from gas.models.conditions import take_rows
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds, noise_of_seeds
from gas.sampling import sample
from gas.schedule import VPDiscrete

if TYPE_CHECKING:
    from gas.models.custom import OwnModel

__all__ = ["changes_in_training", "check_model", "time_problem"]

# Training steps of a network whose schedule does not say.
_STEPS = 1000

# A network trained on steps 0 to M - 1 changes this much less over [0, 1] than over its steps ...
_SHARE = 0.2
# ... and by less than this much of the noise that it is asked at: what it predicts goes from data to noise over [0, 1],
# and a network that takes t as it is may change without bound outside.
_CHANGE = 0.1

# What an estimate near t = 1 may hold of its noise: exact ones hold 0.1 for data of standard deviation 1, 0.28 of 1.7.
_SLOPE = 0.35


def changes_in_training(network: nn.Module) -> str:
    """Return the name of a layer in training mode that answers otherwise than in evaluation, or the empty string."""
    for module in network.modules():
        is_random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if module.training and (is_random or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            return type(module).__name__
    return ""


def time_problem(model: OwnModel) -> str:
    """Return what is wrong with the time that a network is given, or the empty string where nothing shows.

    Only networks within the wrappers of :mod:`gas.denoise` are looked at, by at most four calls of one sample.

    Raises:
        ValueError: for a network that looks steps up in an embedding and is given a float.
    """
    wrappers, network = _unwrapped(model.denoiser)
    if not wrappers or any(isinstance(each, (EDMDenoiser, ClassifierFreeGuidance)) for each in wrappers):
        return ""
    steps = model.schedule.steps if isinstance(model.schedule, VPDiscrete) else _STEPS
    is_discrete, embeddings = isinstance(wrappers[-1], DiscreteTime), _embeddings(model, network)
    if is_discrete and not embeddings:
        return ""
    remedy = "gas.denoise.DiscreteTime(network, schedule)"
    if isinstance(wrappers[-1], FlowDenoiser):
        remedy = f"lambda x, t: network(x, {steps} * t)"
    elif not isinstance(model.schedule, VPDiscrete):
        remedy += " with schedule = gas.VPDiscrete(alphas_cumprod)"
    rounded = remedy.replace("schedule)", "schedule, rounded=True)", 1)
    try:
        near = _answers(model, wrappers[-1] if is_discrete else network, (model.t_end, 1.0))
    except Exception as error:
        reason = str(error)
        if not any(word in reason for word in ("indices", "Long", "integer")):
            return ""  # whatever it is, the first real call will raise it
        raise UserError(
            f"{model.name} takes integer steps only ({reason[:60]}...): wrap it, {rounded}"
        ) from error
    if is_discrete:
        return ""
    try:
        far = _answers(model, network, (steps / 2, steps - 1.0))
    except Exception:  # raised by a network that checks its time, which may do so by any exception
        return ""
    if {steps, steps + 1} & (embeddings - {model.classes, model.classes + 1}):
        return (
            f"{model.name} has an nn.Embedding of {steps} steps but is given t in [0, 1]: wrap it, {rounded}"
        )
    change, reach = _size(near[1] - near[0]), max(_size(answer - near[0]) for answer in far)
    if change >= min(_SHARE * reach, _CHANGE * _size(model.noise([0]))):
        return ""
    return (
        f"the answers of {model.name} hardly change over t in [0, 1] (by {change:.2g}, over 0 to {steps - 1} by "
        f"{reach:.2g}): if it was trained on steps, wrap it, {remedy}"
    )


def check_model(model: Model, seeds: Sequence[int] = range(8)) -> list[str]:
    """Return what looks wrong with a model, a line each; nothing, for one that is put together rightly.

    Asks the network some twenty times: are shape, dtype and device kept, answers repeatable, independent of the
    batch and finite; is the time given as the network was trained; is an estimate near t = 1 free of the noise that it
    was made from; and are samples plausible, and left alone where hardly any noise is left?

    Args:
        model: the model.
        seeds: a few, whose noise and labels are used.
    """
    return list(_problems(model, list(seeds)))


@torch.no_grad()
def _problems(model: Model, seeds: list[int]) -> Iterator[str]:
    from gas.models.custom import OwnModel

    try:
        if isinstance(model, OwnModel) and (problem := time_problem(model)):
            yield problem
    except ValueError as error:
        yield str(error)
        return
    schedule, labels = model.schedule, labels_of_seeds(model.classes, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what binding would warn of is in the list
        noise, bound = model.noise(seeds), model.bind(labels)

    def denoise(x: Tensor, t: Tensor, /) -> Tensor:
        return bound(x.clone(), t).clone()  # a network may work in place, or hand out one buffer

    t = schedule.inverse_half_log_snr(
        torch.tensor(0.1).log()
    )  # hardly any signal, yet 1 / alpha is no more than 10
    sigma = float(schedule(t)[1])
    estimate = denoise(sigma * noise, t)
    if (estimate.shape, estimate.dtype, estimate.device) != (noise.shape, noise.dtype, noise.device):
        wanted, got = (f"{tuple(x.shape)}, {x.dtype}, {x.device}" for x in (noise, estimate))
        yield f"answers must have shape, dtype and device of x, {wanted}, got {got}"
        return
    for name, x in {"1": noise, "the last time": noise * float(schedule(model.t_end)[1])}.items():
        if not bool(denoise(x, torch.tensor(1.0 if name == "1" else model.t_end).double()).isfinite().all()):
            yield f"the estimate at t = {name} is not finite"
    if _far(estimate, denoise(sigma * noise, t)):
        yield "the same question has two answers: put the network into evaluation mode, without dropout or fresh noise"
    alone = model.bind(None if labels is None else labels[:1])(sigma * noise[:1], t)
    if _far(estimate[:1], alone):
        yield "an answer depends on the batch that it is in: use no batch statistics (BatchNorm in training mode)"
    yield from _estimates(model, denoise, noise, estimate)


def _estimates(model: Model, denoise: Denoiser, noise: Tensor, estimate: Tensor) -> Iterator[str]:
    """What estimates of the data say of their wiring."""
    kind = "predicted quantity (noise, velocity, x_0), its sign, or the direction of time"
    slope = float((estimate * noise).mean() / noise.square().mean())
    if abs(slope) > _SLOPE:
        yield f"where hardly any signal is left the estimate is {slope:.2g} times the noise, not about 0: check {kind}"
    schedule, t_end = model.schedule, max(model.t_end, model.schedule.t_min + 1e-3)
    x0 = sample(denoise, noise, ddim(schedule, log_snr(schedule, 12, t_end)))
    size, spread = _size(x0), float(x0.std(0, correction=0).square().mean().sqrt())
    if not 1e-3 < size < 10:
        advice = "where alpha is near 0, gas.denoise.StaticThreshold(denoise, limit) bounds the estimate"
        yield f"samples have root mean square {size:.2g}, noise has 1: check {kind}, the scale of the data; {advice}"
        return
    fresh = noise_of_seeds(model.sample_shape, range(1000, 1000 + len(x0))).to(x0)
    middle = float(schedule.inverse_half_log_snr(0.0))
    for t, share in ((middle, 1.2), (t_end, 0.1)):
        alpha, sigma = (float(part) for part in schedule(t))
        error = _size(denoise(alpha * x0 + sigma * fresh, torch.tensor(t, dtype=torch.float64)) - x0)
        if error > share * spread + (3 * sigma / alpha if t == t_end else 0.0):
            yield f"samples that get noise {sigma / alpha:.2g} are estimated {error:.2g} off: check {kind}"


def _size(x: Tensor) -> float:
    """Root mean square."""
    return float(x.float().square().mean().sqrt())


def _far(one: Tensor, other: Tensor) -> bool:
    return not torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.abs().mean()) + 1e-6)


def _unwrapped(denoiser: Any) -> tuple[list[Any], Callable[..., Tensor]]:
    """The wrappers of :mod:`gas.denoise` around a network, outermost first, and the network."""
    wrappers = []
    while type(denoiser).__module__ == "gas.denoise":
        wrappers.append(denoiser)
        denoiser = denoiser.network if hasattr(denoiser, "network") else denoiser.denoise
    return wrappers, denoiser


def _embeddings(model: OwnModel, network: Callable[..., Tensor]) -> set[int]:
    """The sizes of all embedding tables of a network."""
    parts = [part for part in (model.weights, network) if isinstance(part, nn.Module)]
    return {m.num_embeddings for part in parts for m in part.modules() if isinstance(m, nn.Embedding)}


def _answers(model: OwnModel, network: Callable[..., Tensor], times: Sequence[float]) -> list[Tensor]:
    """What a network answers of one state at several times, without a trace in the random numbers."""
    x = model.noise([0])
    label = torch.zeros(1, dtype=torch.long, device=model.device)
    condition = [] if not model.classes else [label]
    if model.conditions is not None:
        condition = [take_rows(model.conditions, label, model.device)]
    with torch.no_grad(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        return [
            network(x.clone(), torch.full((1,), time).to(x), *condition).float().clone() for time in times
        ]
