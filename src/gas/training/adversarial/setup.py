"""The adversarial setup of a training: discriminators, their weights, the criterion, and the training itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gas import distributed
from gas.arguments import MAX_ORDER_SEED, MAX_SEEDS, choice, integer, of_type
from gas.errors import Diverged, UserError
from gas.evaluation.sampler import sample_seeds
from gas.losses import Loss, loss_by_name
from gas.metrics.frechet import FrechetCriterion, extract, feature_statistics
from gas.models.protocol import Model, features_of
from gas.pairs.dataset import Pairs
from gas.table import Table, table_of
from gas.training.adam import Adam
from gas.training.adversarial.losses import Discriminator
from gas.training.adversarial.r3gan import CIFAR10, DIGITS, EMOJI, FFHQ64, MNIST, R3GANDiscriminator
from gas.training.loop import Criterion, FitRecord, fit
from gas.training.validation import evaluate

# Weight of the adversarial loss in units of the paired loss that GS ends with.
BALANCE = 10.0

# Weight of the gradient penalty: the paper's, for pretrained discriminators, and for one of random weights, which with
# 0.2 soon separates almost all samples; its gradient then adds noise (docs/explanation/critic.md).
PAPER_PENALTY, FRESH_PENALTY = 0.2, 2.0

# Samples that solvers are compared on. No teacher runs for them, and their seeds are far from any pair's.
CRITERION_SAMPLES = 1024
_FIRST_CRITERION_SEED = 2**41

# Ours: the solver has converged before the discriminator's term counts, so small steps of a well-averaged solver.
GAS = Adam(iterations=250, batch=24, learning_rate=2e-3, ema=0.98, validate_every=50)


@dataclass(frozen=True)
class FixedNoiseCriterion:
    """A criterion: a measure of a solver's samples of fresh noise, the same for every solver.

    A distance of distributions needs no pairs, so this noise costs no teacher and may be plenty: the more samples, the
    less chance decides.

    Args:
        model: whose denoiser to call.
        measure: samples ``(S, *)`` -> smaller is better, such as :class:`gas.metrics.FrechetCriterion`.
        samples: their number S.
        guidance: scale of classifier-free guidance.
        labelled: give a class-conditional model the label ``seed mod classes``.
    """

    model: Model
    measure: Callable[[Tensor], float]
    samples: int = CRITERION_SAMPLES
    guidance: float = 1.0
    labelled: bool = True

    @property
    def seeds(self) -> range:
        """Seeds of the noise."""
        return range(_FIRST_CRITERION_SEED, _FIRST_CRITERION_SEED + self.samples)

    def __call__(self, table: Table) -> float:
        """Return the measure of a solver's samples."""
        samples = sample_seeds(self.model, table, self.seeds, guidance=self.guidance, labelled=self.labelled)
        return self.measure(samples)


@dataclass(frozen=True)
class Adversary:
    """Adversarial training of one solver.

    The gradient of the paired loss vanishes where GS ends, so a discriminator moves the solver until the paired loss
    pushes back as hard. That loss falls by an order of magnitude from 2 calls to 4, and so does its gradient: a fixed
    weight that helps at 2 calls misleads at 4. Weights in units of the paired loss do not depend on its scale.

    Args:
        discriminators: makes fresh discriminators, one set a solver.
        criterion: chooses the best solver; see :class:`gas.metrics.FrechetCriterion` for why not the paired error.
        config: settings of Adam.
        pairing: of fakes and reals, as in :class:`gas.training.AdamSteps`.
        unit: of the discriminators' weights: ``"absolute"``, as the paper's w, or ``"paired"``, the mean paired loss
            of the initial solver on the validation pairs.

    Raises:
        ValueError: for another unit.
    """

    discriminators: Callable[[], Sequence[Discriminator]]
    criterion: Criterion
    config: Adam = GAS
    pairing: str = "independent"
    unit: Literal["absolute", "paired"] = "absolute"

    def __post_init__(self) -> None:
        of_type("discriminators", self.discriminators, Callable, "a function that makes discriminators")
        of_type("criterion", self.criterion, Callable, "a measure of a table, smaller being better")
        of_type("config", self.config, Adam, "a gas.Adam")
        choice("pairing", self.pairing, ("independent", "paired"))
        choice("unit", self.unit, ("absolute", "paired"))

    def weighted(self, paired_loss: float) -> list[Discriminator]:
        """Return fresh discriminators with absolute weights, for an initial solver of this paired loss."""
        scale = paired_loss if self.unit == "paired" else 1.0
        return [replace(each, weight=scale * each.weight) for each in self.discriminators()]

    def has_weight(self) -> bool:
        """Whether any discriminator has weight; otherwise this is GS training, and there is nothing to do."""
        return any(discriminator.weight > 0 for discriminator in self.discriminators())


@dataclass(frozen=True)
class AdversarialResult:
    """Network evaluations of :func:`fit_adversarial`, the criterion before and at best, and why it stopped early."""

    evaluations: int
    criterion: tuple[float, float] | None = None
    stopped: str = ""


def fit_adversarial(
    adversary: Adversary,
    solver: nn.Module,
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    loss: str | Loss = "l2",
    checkpoint: Path | None = None,
) -> Generator[FitRecord, None, AdversarialResult]:
    """Train a solver in place against discriminators; if training diverges, the solver stays at its best.

    Args:
        adversary: discriminators, criterion and settings.
        solver: as training without discriminators left it.
        model, pairs, validation, loss, checkpoint: as for :func:`gas.fit`.

    Yields:
        FitRecord: as :func:`gas.fit` does.
    """
    table = table_of(solver)
    spent = len(validation) * table.nfe
    result = AdversarialResult(spent)
    distance = loss_by_name(loss)
    start = float(evaluate(model, validation, table, distance).mean())
    try:
        for record in fit(
            solver,
            model,
            pairs,
            validation=validation,
            loss=loss,
            config=adversary.config,
            checkpoint=checkpoint,
            discriminators=adversary.weighted(start),
            pairing=adversary.pairing,
            criterion=adversary.criterion,
        ):
            criterion = (record.start_loss, record.best_loss)
            result = AdversarialResult(spent + record.evaluations, criterion)
            yield record
    except Diverged as error:
        return replace(result, stopped=str(error))
    return result


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
    samples: int = CRITERION_SAMPLES,
    seed: int = 0,
    precision: str = "float32",
) -> Adversary:
    """Return the adversary of a model of images or latents: one R3GAN discriminator of their size.

    Args:
        model: with ``features(x) -> (B, F)``, the space of the criterion.
        pairs: training pairs; the criterion is the distance to their teacher's samples.
        weight: w of the adversarial loss as in the paper, at least 0; by default ``balance`` decides.
        balance: the weight in units of the initial solver's paired loss, at least 0.
        objective: ``"relativistic"`` or ``"classic"``.
        pairing: ``"independent"`` or ``"paired"``.
        config: settings of Adam.
        learning_rate: of the discriminator. The paper's 1e-5 is for pretrained ones.
        warmup: iterations of the discriminator alone, fewer than all; by default two fifths of them.
        penalty: gamma of R1 and R2; by default the paper's 0.2 for a given ``network``, and 2 for a fresh one.
        steps: updates of the discriminator for one step of the solver.
        network: a discriminator to copy, for instance of ``load_discriminator``; by default one of random weights.
        samples: samples of fresh noise that the criterion measures.
        seed: of the discriminator's random weights.
        precision: of the discriminator, as in :class:`gas.Critic`.

    Raises:
        ValueError: for no pairs, a sample shape without a known discriminator, a model without features, or settings
            out of range.
    """
    integer("samples", samples, 2, MAX_SEEDS)
    choice("pairing", pairing, ("independent", "paired"))
    if len(pairs) == 0:
        raise UserError("a discriminator needs pairs to learn from, got none: make some with `gas pairs`")
    distributed.shard_slices(config.batch)
    make_network, features = _network_maker(model, network, seed), _required_features(model)
    warmup = _checked_warmup(2 * config.iterations // 5 if warmup is None else warmup, config.iterations)
    if penalty is None:
        penalty = FRESH_PENALTY if network is None else PAPER_PENALTY
    settings = {
        "objective": objective,
        "learning_rate": learning_rate,
        "steps": steps,
        "precision": precision,
    }
    settings |= {"weight": balance if weight is None else weight, "penalty": penalty, "warmup": warmup}

    def discriminators() -> list[Discriminator]:
        return [Discriminator("samples", make_network(), **settings)]

    with torch.no_grad():  # refuses settings out of range, and another shape, before any work
        discriminators()[0].logits(pairs.subset(slice(0, 1)).target.to(model.device), None)
    criterion = _frechet_criterion(model, pairs, features, samples)
    unit: Literal["absolute", "paired"] = "paired" if weight is None else "absolute"
    return Adversary(discriminators, criterion, config=config, pairing=pairing, unit=unit)


def _checked_warmup(warmup: int, iterations: int) -> int:
    if warmup >= iterations:
        raise UserError(f"warmup must be below the {iterations} iterations, got {warmup}")
    return warmup


def _frechet_criterion(
    model: Model, pairs: Pairs, features: Callable[[Tensor], Tensor], samples: int
) -> FixedNoiseCriterion:
    """Return the criterion of the Frechet distance to the teacher's samples."""
    reference = torch.cat([extract(features, batch.target) for batch in pairs.batches()])
    return FixedNoiseCriterion(
        model=model,
        measure=FrechetCriterion(features, feature_statistics(reference)),
        samples=samples,
        guidance=pairs.guidance,
        labelled=pairs.labels is not None,
    )


def _required_features(model: Model) -> Callable[[Tensor], Tensor]:
    features = features_of(model)
    if features is None:
        raise UserError(
            f"model {model.name} has no features(x) to measure distributions in: build a gas.Adversary of your own"
        )
    return features


def _network_maker(model: Model, network: nn.Module | None, seed: int) -> Callable[[], nn.Module]:
    """Return a function that makes copies of a network, or of one with random weights that fits the model's samples."""
    integer("seed", seed, 0, MAX_ORDER_SEED)
    sizes = {} if network is not None else _sizes(tuple(model.sample_shape))

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh_network = R3GANDiscriminator(**sizes) if network is None else copy.deepcopy(network)
        return fresh_network.to(model.device)

    return make


def _sizes(shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the sizes of a discriminator for these samples: the published ones, or else ours for their side.

    None of latents is published: those of 64 x 64 take FFHQ-64's sizes and random weights, as in arXiv 2510.17699.
    """
    published = {(3, 32, 32): CIFAR10, (3, 64, 64): FFHQ64}
    by_side = {8: DIGITS, 16: EMOJI, 32: MNIST, 64: FFHQ64}
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in by_side:
        raise UserError(
            f"no discriminator is known for samples of shape {'x'.join(map(str, shape))}, only for square ones of "
            f"side {', '.join(map(str, by_side))}: build a gas.Adversary with your own discriminators"
        )
    return published.get(shape, {**by_side[shape[1]], "in_channels": shape[0]})
