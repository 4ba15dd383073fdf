"""Checks that a model is assembled correctly, by a few network evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gas.classical.dpmpp import ddim
from gas.denoise import ClassifierFreeGuidance, Denoiser, DiscreteTime, EDMDenoiser, FlowDenoiser
from gas.display import error_text
from gas.errors import UserError
from gas.grids.analytic import log_snr
from gas.models.conditions import take_rows
from gas.models.protocol import Model
from gas.models.seeds import labels_of_seeds, noise_of_seeds
from gas.sampling import sample
from gas.schedule import VPDiscrete

if TYPE_CHECKING:
    from gas.models.custom import OwnModel

# Training steps of a network whose schedule does not say.
_STEPS = 1000

# A network trained on steps 0 to M - 1 changes over [0, 1] by less than this share of its change over all steps ...
_SHARE = 0.2
# ... and by less than this share of its input noise. The second bound is needed as well: a network that takes t itself
# goes from data to noise over [0, 1], but may change without bound outside.
_CHANGE = 0.1

# Noise in a prediction near t = 1, as a regression slope: exact predictions have 0.1 for data of standard deviation 1,
# 0.28 for 1.7.
_SLOPE = 0.35


def layer_in_training(network: nn.Module) -> str:
    """Return the class of a dropout or batch norm layer in training mode, or the empty string."""
    for module in network.modules():
        is_random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if module.training and (is_random or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            return type(module).__name__
    return ""


def time_problem(model: OwnModel) -> str:
    """Return what is wrong with the unit of time that a network is given, or the empty string.

    Checks only networks inside the wrappers of :mod:`gas.denoise`, by at most four evaluations of one sample. One that
    looks steps up in an embedding and is given a float is refused.
    """
    wrappers, network = _unwrapped(model.denoiser)
    if not wrappers or any(isinstance(each, (EDMDenoiser, ClassifierFreeGuidance)) for each in wrappers):
        return ""
    steps = model.schedule.steps if isinstance(model.schedule, VPDiscrete) else _STEPS
    is_discrete, embeddings = isinstance(wrappers[-1], DiscreteTime), _embedding_sizes(model, network)
    if is_discrete and not embeddings:
        return ""
    remedy = "gas.denoise.DiscreteTime(network, schedule)"
    if isinstance(wrappers[-1], FlowDenoiser):
        remedy = f"lambda x, t: network(x, {steps} * t)"
    elif not isinstance(model.schedule, VPDiscrete):
        remedy += " with schedule = gas.VPDiscrete(alphas_cumprod)"
    rounded = remedy.replace("schedule)", "schedule, rounded=True)", 1)
    try:
        near = _predictions(model, wrappers[-1] if is_discrete else network, (model.t_end, 1.0))
    except Exception as error:
        reason = str(error)
        if not any(word in reason for word in ("indices", "Long", "integer")):
            return ""  # not about time: the first real call raises it
        raise UserError(
            f"{model.name} takes integer steps only ({reason[:60]}...): wrap it, {rounded}"
        ) from error
    if is_discrete:
        return ""
    try:
        far = _predictions(model, network, (steps / 2, steps - 1.0))
    except Exception:  # of any class: the network checks its time, so it does not take steps
        return ""
    if {steps, steps + 1} & (embeddings - {model.classes, model.classes + 1}):
        return (
            f"{model.name} has an nn.Embedding of {steps} steps but is given t in [0, 1]: wrap it, {rounded}"
        )
    change, reach = _rms(near[1] - near[0]), max(_rms(prediction - near[0]) for prediction in far)
    if change >= min(_SHARE * reach, _CHANGE * _rms(model.noise([0]))):
        return ""
    return (
        f"the outputs of {model.name} hardly change over t in [0, 1] (by {change:.2g}, over 0 to {steps - 1} by "
        f"{reach:.2g}): if it was trained on steps, wrap it, {remedy}"
    )


def check_model(model: Model, seeds: Sequence[int] = range(8)) -> list[str]:
    """Return the problems found in a model, a line each; an empty list when there are none.

    Takes about twenty network evaluations, of the noise and labels of ``seeds``. Predictions must have the shape, dtype
    and device of their input, be repeatable, finite and independent of the batch. The unit of time must be that of the
    network's training. Predictions near t = 1 must not contain their input noise. Samples must be plausible, and
    predicted as themselves from hardly any noise.
    """
    if len(seeds) < 2:
        raise UserError(f"seeds must be at least two, whose samples are compared, got {len(seeds)}")
    return list(_problems(model, list(seeds)))


@torch.no_grad()
def _problems(model: Model, seeds: list[int]) -> Iterator[str]:
    try:
        # A custom network is seen through its wrappers; others state their time themselves.
        if hasattr(model, "denoiser") and (problem := time_problem(cast("OwnModel", model))):
            yield problem  # the others would follow from it
            return
    except ValueError as error:
        yield str(error)
        return
    schedule, labels = model.schedule, labels_of_seeds(model.classes, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # binding warns of the time, which is checked above
        noise, bound = model.noise(seeds), model.bind(labels)

    def denoise(x: Tensor, t: Tensor, /) -> Tensor:
        return bound(x.clone(), t).clone()  # a network may work in place, or return one buffer

    # Hardly any signal, yet 1 / alpha is at most 10.
    t = schedule.inverse_half_log_snr(torch.tensor(0.1).log())
    sigma = float(schedule(t)[1])
    try:
        prediction = denoise(sigma * noise, t)
    except Exception as error:
        yield (
            f"the network fails on a batch of shape {tuple(noise.shape)}, that is sample_shape "
            f"{tuple(model.sample_shape)}: {type(error).__name__}: {error_text(error, 120)}"
        )
        return
    if (prediction.shape, prediction.dtype, prediction.device) != (noise.shape, noise.dtype, noise.device):
        wanted, got = (f"{tuple(x.shape)}, {x.dtype}, {x.device}" for x in (noise, prediction))
        yield f"predictions must have shape, dtype and device of x, {wanted}, got {got}"
        return
    for name, time in (("1", 1.0), ("the last time", model.t_end)):
        x = noise if time == 1.0 else noise * float(schedule(time)[1])
        if not bool(denoise(x, torch.tensor(time).double()).isfinite().all()):
            yield f"the prediction at t = {name} is not finite"
    if not _close(prediction, denoise(sigma * noise, t)):
        yield "two calls with one input differ: put the network into evaluation mode, without dropout or fresh noise"
    single = model.bind(None if labels is None else labels[:1])(sigma * noise[:1], t)
    if not _close(prediction[:1], single):
        yield "a prediction depends on its batch: use no batch statistics (BatchNorm in training mode)"
    yield from _prediction_problems(model, denoise, noise, prediction)


def _prediction_problems(model: Model, denoise: Denoiser, noise: Tensor, prediction: Tensor) -> Iterator[str]:
    """Problems of predictions at high noise, of samples, and of predictions from noised samples."""
    suspects = "predicted quantity (noise, velocity, x_0), its sign, or the direction of time"
    slope = float((prediction * noise).mean() / noise.square().mean())
    if abs(slope) > _SLOPE:
        yield (
            f"near t = 1 the prediction is {slope:.2g} times the noise, not about 0: check {suspects}; a network "
            "that is little trained shows it too"
        )
    schedule, t_end = model.schedule, max(model.t_end, model.schedule.t_min + 1e-3)
    x0 = sample(denoise, noise, ddim(schedule, log_snr(schedule, 12, t_end)))
    size, spread = _rms(x0), float(x0.std(0, correction=0).square().mean().sqrt())
    if not 1e-3 < size < 10:
        yield (
            f"samples have root mean square {size:.2g}, noise has 1: check {suspects}, the scale of the data; where "
            "alpha is near 0, gas.denoise.StaticThreshold(denoise, limit) bounds the prediction"
        )
        return
    fresh = noise_of_seeds(model.sample_shape, range(1000, 1000 + len(x0))).to(x0)
    middle = float(schedule.inverse_half_log_snr(0.0))
    for t, share in ((middle, 1.2), (t_end, 0.1)):
        alpha, sigma = (float(part) for part in schedule(t))
        error = _rms(denoise(alpha * x0 + sigma * fresh, torch.tensor(t, dtype=torch.float64)) - x0)
        if error > share * spread + (3 * sigma / alpha if t == t_end else 0.0):
            yield (
                f"samples with noise {sigma / alpha:.2g} added are predicted with error {error:.2g}: check {suspects}"
            )


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(a.abs().mean()) + 1e-6)


def _unwrapped(denoiser: Any) -> tuple[list[Any], Callable[..., Tensor]]:
    """The wrappers of :mod:`gas.denoise` around a network, outermost first, and the network."""
    wrappers = []
    while type(denoiser).__module__ == "gas.denoise":
        wrappers.append(denoiser)
        denoiser = denoiser.network if hasattr(denoiser, "network") else denoiser.denoise
    return wrappers, denoiser


def _embedding_sizes(model: OwnModel, network: Callable[..., Tensor]) -> set[int]:
    """The number of rows of every embedding table of a network."""
    parts = [part for part in (model.weights, network) if isinstance(part, nn.Module)]
    return {m.num_embeddings for part in parts for m in part.modules() if isinstance(m, nn.Embedding)}


def _predictions(model: OwnModel, network: Callable[..., Tensor], times: Sequence[float]) -> list[Tensor]:
    """The network's outputs for one input at several times; leaves the global random generators untouched."""
    x = model.noise([0])
    label = torch.zeros(1, dtype=torch.long, device=model.device)
    condition = [label] if model.classes else []
    if model.conditions is not None:
        condition = [take_rows(model.conditions, label, model.device)]
    with torch.no_grad(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        return [
            network(x.clone(), torch.full((1,), time).to(x), *condition).float().clone() for time in times
        ]
