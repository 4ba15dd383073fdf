"""What a preset costs in time and memory: from one network evaluation, counted or measured, to whole trainings."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gas.errors import UserError
from gas.models.runtime import without_tf32
from gas.paper.presets import Objective, Preset
from gas.training.activation_checkpointing import saved_bytes
from gas.training.adversarial.losses import gradient_penalty, objective_by_name

__all__ = ["RATES", "Asked", "Total", "Unit", "asked", "counted", "measured", "parameters", "totals", "vgg"]

# Operations a second, in 10^12, that the paper's own times for GS on one H100 amount to: 58 to 63 by CIFAR-10's 30 to
# 60 minutes, 177 to 182 by ImageNet's 75 to 135. Others of the kind are taken to run as fast.
RATES = {"edm": 60.0, "ldm": 180.0, "sd": 180.0}

_Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Unit:
    """What one sample costs, in seconds and bytes.

    Attributes:
        source: ``"counted"`` (operations at a stated rate: an estimate) or ``"measured"`` on a device.
        where: the rate, or the device.
        forward: seconds of one network evaluation, a guided one being two.
        gradient: seconds of one with the gradient through it.
        loss: seconds of a perceptual loss of a pair with its gradient; 0 for losses of samples.
        critic: seconds of the critic's step and its part of the solver's, a pair.
        kept: bytes that one evaluation keeps for the gradient.
        kept_by_loss: bytes that a perceptual loss of a pair keeps.
        weights: bytes of the network and of the critic with its optimiser.
        parameters: of the network.
    """

    source: str
    where: str
    forward: float
    gradient: float
    loss: float
    critic: float
    kept: int
    kept_by_loss: int
    weights: int
    parameters: int


@dataclass(frozen=True)
class Total:
    """What one job costs.

    Attributes:
        job: ``"pairs"``, ``"gs"`` or ``"gas"``.
        nfe: of the student.
        evaluations: network evaluations of single samples.
        seconds: in all.
        peak: bytes, with every evaluation's graph kept; of pairs none is.
        flat: bytes with the graphs of three (``memory=flat``).
    """

    job: str
    nfe: int
    evaluations: int
    seconds: float
    peak: int
    flat: int


def totals(preset: Preset, unit: Unit, nfe: int) -> list[Total]:
    """Return the cost of a preset's pairs, GS and GAS at one NFE N.

    With P pairs, V for validation, I iterations of B pairs, a validation every E, and a teacher of M evaluations:

        pairs  (P + V) M forward
        GS     I B (N gradient + loss) + (1 + I / E) V (N forward + loss / 2)
        GAS    the same, and I B critic for each step that it takes
        memory weights + B (N kept + kept by the loss)

    Args:
        preset: the settings.
        unit: what one sample costs.
        nfe: of the student.
    """
    steps = preset.master(nfe).nfe
    jobs = [_pairs(preset, unit, nfe, steps, "gas" if preset.pairs_gas > preset.pairs else "gs")]
    for objective in ("gs", "gas"):
        config = preset.training("gas" if objective == "gas" else "gs")
        learned, checks = config.iterations * config.batch, 1 + config.iterations // config.validate_every
        critic = unit.critic * preset.critic_steps if objective == "gas" else 0.0
        seconds = learned * (nfe * unit.gradient + unit.loss + critic)
        seconds += checks * preset.validation * (nfe * unit.forward + unit.loss / 2)
        count = learned * 3 * nfe + checks * preset.validation * nfe
        graphs = (calls * unit.kept + unit.kept_by_loss for calls in (nfe, min(3, nfe)))
        peak, flat = (unit.weights + config.batch * graph for graph in graphs)
        jobs.append(Total(objective, nfe, count, seconds, peak, flat))
    return jobs


def _pairs(preset: Preset, unit: Unit, nfe: int, steps: int, objective: Objective) -> Total:
    count = len(preset.seeds(objective)) * steps
    return Total("pairs", nfe, count, count * unit.forward, unit.weights, unit.weights)


def counted(preset: Preset, rate: float | None = None) -> Unit:
    """Estimate what a sample costs by counting operations at the published sizes; nothing is computed.

    Args:
        preset: which.
        rate: operations a second in 10^12, a multiplication and an addition being two; by default :data:`RATES`.

    Raises:
        ValueError: for a rate that is not positive.
    """
    speed = RATES[preset.kind] if rate is None else rate
    if not speed > 0:
        raise UserError(f"tflops must be positive, got {rate}")
    operations, kept, sizes = _counts(preset)
    forward, gradient, loss, critic = (n / (speed * 1e12) for n in operations)
    return Unit("counted", f"{speed:g} TFLOP/s", forward, gradient, loss, critic, *kept, *sizes)


@functools.lru_cache(maxsize=8)
def _counts(preset: Preset) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]:
    """Operations, bytes kept, and sizes; the same whatever the rate."""
    work = _Works(preset, asked(preset, "meta"), torch.device("meta"), 1)
    operations = tuple(_operations(one) for one in work.all())
    if preset.kind == "edm":
        return operations, _kept(work), work.sizes()
    # Attention then takes its fused form, which keeps no matrix.
    with FakeTensorMode(allow_non_fake_inputs=True):
        kept = _kept(_Works(preset, asked(preset, "cpu"), torch.device("cpu"), 1))
    return operations, kept, work.sizes()


def measured(preset: Preset, device: str | torch.device, batch: int = 1, repeats: int = 1) -> Unit:
    """Measure what a sample costs on a device, in float32, with random weights of the published sizes.

    Args:
        preset: which.
        device: where to run.
        batch: samples at a time.
        repeats: runs after the first, which warms up; the fastest counts.
    """
    device = torch.device(device)
    work = _Works(preset, asked(preset, device), device, batch)
    with without_tf32():
        forward, gradient, loss, critic = (_seconds(one, device, repeats) / batch for one in work.all())
    loss *= work.features is not None  # else there is none to time
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    named = f"{where}, batches of {batch}"
    return Unit("measured", named, forward, gradient, loss, critic, *_kept(work), *work.sizes())


def _kept(work: _Works) -> tuple[int, int]:
    """Bytes that an evaluation and the loss keep of one sample for the gradient."""
    features, x = work.features, work.x[:1]
    if features is None:
        return saved_bytes(work.made.denoise, x, work.t), 0
    image = torch.zeros(1, 3, 224, 224, device=work.device)
    return saved_bytes(work.made.denoise, x, work.t), saved_bytes(
        lambda y, t: features(y) + 0 * t, image, work.t
    )


@dataclass(eq=False)
class _Works:
    """The four things whose cost is asked for, on a batch."""

    preset: Preset
    made: Asked
    device: torch.device
    batch: int

    def __post_init__(self) -> None:
        self.x = torch.zeros(self.batch, *self.made.shape, device=self.device)
        self.t = torch.tensor(0.5, device=self.device)
        with torch.device(self.device):
            self.critic = self.preset.critic_network(self.made.shape[0])
        self.features = vgg(self.device) if self.preset.loss == "lpips" else None

    def all(self) -> list[_Work]:
        """In the order of :class:`Unit`."""
        return [self.forward, self.gradient, self.loss, self.judge]

    def sizes(self) -> tuple[int, int]:
        """Bytes of the network and of the critic with its gradient and Adam's two averages; parameters."""
        own = parameters(self.made.network)
        return 4 * (own + 4 * parameters(self.critic)), own

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.made.denoise(self.x, self.t)

    def gradient(self) -> Tensor:
        answer = self.made.denoise(self.x.clone().requires_grad_(), self.t)
        answer.sum().backward()
        return answer

    def loss(self) -> Tensor:
        if self.features is None:
            return self.x
        image = torch.zeros(self.batch, 3, 224, 224, device=self.device)
        with torch.no_grad():
            self.features(image)
        seen: Tensor = self.features(image.requires_grad_())
        seen.sum().backward()
        return seen

    def judge(self) -> Tensor:
        """The critic's step on a fake and a real, with R1 and R2, and its word to the solver."""
        self.critic.requires_grad_(True)
        seen = [self.x.clone().requires_grad_() for _ in range(2)]
        logits = [self.critic(x) for x in seen]
        loss = objective_by_name(self.preset.objective)(*logits)[1].mean()
        for answer, x in zip(logits, seen, strict=True):
            loss = loss + self.preset.critic_penalty / 2 * gradient_penalty(answer, x).mean()
        loss.backward()
        self.critic.requires_grad_(False)
        with torch.no_grad():
            self.critic(self.x)
        self.critic(self.x.clone().requires_grad_()).sum().backward()
        return loss


class _Counter(TorchDispatchMode):
    """Adds up operations by torch's own formulas. Unlike its ``FlopCounterMode``, which follows modules by hooks on
    gradients, it can be under a gradient of gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += int(formula(*args, **(kwargs or {}), out_val=answer))
        return answer


def _operations(work: _Work) -> int:
    counter = _Counter()
    with counter:
        work()
    return counter.operations


def _seconds(work: _Work, device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(1 + max(1, repeats)):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


# Of EDM's published training script (arXiv 2206.00364, Table 7), VP: width, blocks and attention of DDPM++.
_EDM: dict[str, Any] = {
    "model_type": "SongUNet",
    "model_channels": 128,
    "num_blocks": 4,
    "attn_resolutions": [16],
}
_EDM |= {"img_channels": 3, "augment_dim": 9}
# Widths of the levels of CompVis's networks (arXiv 2112.10752, Tables 12 and 13), and of Stable Diffusion 1.
_LSUN, _CIN, _SD = (224, 448, 672, 896), (192, 384, 576, 960), (320, 640, 1280, 1280)


@dataclass(frozen=True, eq=False)
class Asked:
    """A preset's network of random weights, asked as the preset asks it.

    Attributes:
        network: frozen, in evaluation mode.
        shape: of a sample.
        denoise: ``(x, t) -> `` what the network answers, guided in a doubled batch where the preset guides.
    """

    network: nn.Module
    shape: tuple[int, ...]
    denoise: Callable[[Tensor, Tensor], Tensor]


def asked(preset: Preset, device: str | torch.device) -> Asked:
    """Build a preset's network at its published size; ``"meta"`` builds one without numbers.

    Raises:
        ModuleNotFoundError: where the network needs diffusers, without it.
    """
    with torch.device(device):
        made = _edm(preset) if preset.kind == "edm" else _latent(preset)
    made.network.eval().requires_grad_(False)
    return made


def _edm(preset: Preset) -> Asked:
    from gas.paper.edm import EDMNetwork

    factors = [2, 2, 2] if preset.size <= 32 else [1, 2, 2, 2]
    network = EDMNetwork("EDMPrecond", img_resolution=preset.size, channel_mult=factors, **_EDM)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = network(x, t.to(x).expand(len(x)))
        return answer

    return Asked(network, (3, preset.size, preset.size), denoise)


def _latent(preset: Preset) -> Asked:
    """Latent diffusion's or Stable Diffusion's U-Net, by diffusers."""
    from gas.paper.ldm import diffusers_class

    channels, side = (4, preset.size // 8) if preset.kind == "sd" else (3, preset.size // 4)
    told: dict[str, Any] = {"in_channels": channels, "out_channels": channels, "layers_per_block": 2}
    width, tokens = 0, 0
    if preset.kind == "sd":
        width, tokens = 768, 77
        places = [True, True, True, False]
        told |= {"block_out_channels": _SD, "cross_attention_dim": width, "attention_head_dim": 8}
    elif preset.guidance != 1:
        width, tokens = 512, 1
        places = [False, True, True, True]
        told |= {"block_out_channels": _CIN, "cross_attention_dim": width, "attention_head_dim": 1}
    else:
        places = [False, True, True, True]
        told |= {"block_out_channels": _LSUN, "attention_head_dim": 32}
    kind = "CrossAttn" if width else "Attn"
    told["down_block_types"] = [f"{kind if here else ''}DownBlock2D" for here in places]
    told["up_block_types"] = [f"{kind if here else ''}UpBlock2D" for here in reversed(places)]
    network: nn.Module = diffusers_class("UNet2DConditionModel" if width else "UNet2DModel")(**told)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        y = torch.cat([x, x]) if preset.guidance != 1 else x
        words = [torch.zeros(len(y), tokens, width, device=x.device)] if width else []
        answer: Tensor = network(y, (999 * t).to(y).expand(len(y)), *words).sample
        return torch.lerp(answer[len(x) :], answer[: len(x)], preset.guidance) if len(y) > len(x) else answer

    return Asked(network, (channels, side, side), denoise)


def vgg(device: str | torch.device) -> nn.Module:
    """Return the convolutions of VGG-16, which LPIPS asks twice a pair, with random weights."""
    layers: list[nn.Module] = []
    last = 3
    for width, count in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(last, width, 3, padding=1, device=device), nn.ReLU()]
            last = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def parameters(network: nn.Module) -> int:
    """Return how many numbers a network has learned."""
    return sum(math.prod(p.shape) for p in network.parameters())
