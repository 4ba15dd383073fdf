"""What turns GS into GAS: critics of the right size, what they weigh, and what a solver is chosen by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gas.arguments import MAX_ORDER_SEED, MAX_SEEDS, callable_, integer, of_type, one_of
from gas.errors import UserError
from gas.evaluation.sampler import fresh
from gas.metrics.criterion import FrechetCriterion
from gas.metrics.frechet import extract, feature_statistics
from gas.models.protocol import Model, features_of
from gas.pairs.dataset import Pairs
from gas.table import Table
from gas.training.adam import Adam
from gas.training.adversarial.losses import Critic
from gas.training.loop import Criterion

__all__ = ["BALANCE", "GAS", "WATCHED", "Adversary", "Watched", "adversary_for"]

# Weight of the adversarial loss in units of the paired loss that GS ends with.
BALANCE = 10.0

# Weight of the critic's gradient penalty: the paper's, and for a critic of random weights.
PAPER_PENALTY, FRESH_PENALTY = 0.2, 2.0

# Samples that candidates are compared on. No teacher runs for them, and their seeds are far from any pair's.
WATCHED = 1024
_FIRST_WATCHED = 2**41

# Ours: the solver has converged before a critic speaks, so small steps of a well-averaged solver.
GAS = Adam(iterations=250, batch=24, learning_rate=2e-3, ema=0.98, validate_every=50)


@dataclass(frozen=True)
class Watched:
    """A criterion: a measure of a solver's samples of the same fresh noise throughout.

    A distance of distributions needs no pairs, so that this noise costs no teacher and may be plenty: the chance in
    what is chosen falls with the number of samples.

    Args:
        model: whose denoiser to ask.
        measure: samples ``(S, *)`` -> smaller is better, such as :class:`gas.metrics.FrechetCriterion`.
        samples: their number S.
        guidance: scale of classifier-free guidance.
        labelled: give a class-conditional model the label ``seed mod classes``.
    """

    model: Model
    measure: Callable[[Tensor], float]
    samples: int = WATCHED
    guidance: float = 1.0
    labelled: bool = True

    def __call__(self, table: Table) -> float:
        """Return the measure of a solver."""
        seeds = range(_FIRST_WATCHED, _FIRST_WATCHED + self.samples)
        return self.measure(fresh(self.model, table, seeds, guidance=self.guidance, labelled=self.labelled))


@dataclass(frozen=True)
class Adversary:
    """Adversarial training of one solver.

    The gradient of the paired loss vanishes where GS ends, so a critic moves the solver until the paired loss pushes
    back as hard. That loss falls by an order of magnitude from 2 calls to 4, and with it what pushes back: a fixed
    weight that helps at 2 calls leads astray at 4. Weights in units of the paired loss do not change with its scale.

    Args:
        critics: makes fresh critics, one set a solver.
        criterion: what the best solver is chosen by; see :class:`gas.metrics.FrechetCriterion` for why not by the
            paired error.
        config: settings of Adam.
        pairing: of fakes and reals, as in :class:`gas.training.AdamSteps`.
        unit: what the critics' weights are measured in: ``"absolute"``, as the paper's w; or ``"paired"``, the mean
            paired loss on the validation pairs of the solver as it comes.

    Raises:
        ValueError: for another unit.
    """

    critics: Callable[[], Sequence[Critic]]
    criterion: Criterion
    config: Adam = GAS
    pairing: str = "independent"
    unit: Literal["absolute", "paired"] = "absolute"

    def __post_init__(self) -> None:
        callable_("critics", self.critics, "a function that makes critics")
        callable_("criterion", self.criterion, "a measure of a table, smaller being better")
        of_type("config", self.config, Adam, "a gas.Adam")
        one_of("pairing", self.pairing, ("independent", "paired"))
        one_of("unit", self.unit, ("absolute", "paired"))

    def weighed(self, paired_loss: float) -> list[Critic]:
        """Return fresh critics with their weights as w, for a solver that comes with this paired loss."""
        scale = paired_loss if self.unit == "paired" else 1.0
        return [replace(critic, weight=scale * critic.weight) for critic in self.critics()]

    def speaks(self) -> bool:
        """Return whether any critic has weight; without, this is GS training and there is nothing to do."""
        return any(critic.weight > 0 for critic in self.critics())


def adversary_for(
    model: Model,
    pairs: Pairs,
    *,
    weight: float | None = None,
    balance: float = BALANCE,
    objective: Any = "relativistic",
    pairing: str = "independent",
    config: Adam = GAS,
    learning_rate: float = 3e-4,
    warmup: int | None = None,
    penalty: float | None = None,
    steps: int = 1,
    network: nn.Module | None = None,
    watched: int = WATCHED,
    seed: int = 0,
    precision: str = "float32",
) -> Adversary:
    """Return the adversary of a model whose samples are images or latents: one R3GAN critic of its own size.

    Args:
        model: with ``features(x) -> (B, F)``, the space of the criterion.
        pairs: of training; their teacher's samples are what the criterion takes for the truth.
        weight: w of the adversarial loss as in the paper, at least 0; by default it follows from ``balance``.
        balance: the same in units of the paired loss that the solver comes with, at least 0.
        objective: ``"relativistic"`` or ``"classic"``.
        pairing: ``"independent"`` or ``"paired"``.
        config: settings of Adam.
        learning_rate: of the critic. The paper's 1e-5 is for critics that were pretrained; these are not.
        warmup: iterations before the solver hears of the critic, fewer than there are; by default two fifths of them.
        penalty: gamma of R1 and R2; by default the paper's 0.2 for a critic that is given, and 2 for a fresh one, which
            else soon tells every sample apart, and asks for noise.
        steps: of the critic for one of the solver.
        network: a critic to start from, left as it is, for instance of ``load_discriminator``; by
            default one of random weights.
        watched: samples of fresh noise that the best solver is chosen on.
        seed: of the critic's first weights.
        precision: of the critic, as in :class:`gas.Critic`.

    Raises:
        ValueError: for no pairs, a shape no critic is known for, a model without features, or settings out of range.
    """
    from gas.training.adversarial.r3gan import R3GANDiscriminator

    integer("watched", watched, 2, MAX_SEEDS)
    integer("seed", seed, 0, MAX_ORDER_SEED)
    one_of("pairing", pairing, ("independent", "paired"))
    if len(pairs) == 0:
        raise UserError("a critic needs pairs to learn from, got none: make some with `gas pairs`")
    sizes = {} if network is not None else _sizes(tuple(model.sample_shape))
    features = features_of(model)
    if features is None:
        raise UserError(
            f"model {model.name} has no features(x) to measure distributions in: build a gas.Adversary of your own"
        )

    unheard = 2 * config.iterations // 5 if warmup is None else warmup
    if unheard >= config.iterations:
        raise UserError(f"warmup must be below the {config.iterations} iterations, got {unheard}")

    if penalty is None:
        penalty = FRESH_PENALTY if network is None else PAPER_PENALTY

    def critics() -> list[Critic]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = R3GANDiscriminator(**sizes) if network is None else copy.deepcopy(network)
        settings = {
            "objective": objective,
            "penalty": penalty,
            "learning_rate": learning_rate,
            "warmup": unheard,
            "steps": steps,
            "precision": precision,
        }
        told = balance if weight is None else weight
        return [Critic("samples", critic.to(model.device), told, **settings)]

    (first,) = critics()  # settings out of range, or another shape, are refused before any work
    with torch.no_grad():
        first.logits(pairs.subset(slice(0, 1)).target.to(model.device), None)
    seen = torch.cat([extract(features, some.target) for some in pairs.batches()])
    measure = FrechetCriterion(features, feature_statistics(seen))
    criterion = Watched(model, measure, watched, pairs.guidance, labelled=pairs.labels is not None)
    return Adversary(critics, criterion, config, pairing, "paired" if weight is None else "absolute")


def _sizes(shape: tuple[int, ...]) -> dict[str, Any]:
    from gas.training.adversarial import r3gan

    known = {
        (1, 8, 8): r3gan.DIGITS,
        (1, 32, 32): r3gan.MNIST,
        (4, 8, 8): {**r3gan.DIGITS, "in_channels": 4},
        (3, 32, 32): r3gan.CIFAR10,
        (3, 64, 64): r3gan.FFHQ64,
        (4, 64, 64): r3gan.latent(4),
    }
    if shape not in known:
        shapes = ", ".join("x".join(map(str, s)) for s in known)
        raise UserError(
            f"no critic is known for samples of shape {'x'.join(map(str, shape))} (only {shapes}): "
            "build a gas.Adversary with critics of your own"
        )
    return known[shape]
