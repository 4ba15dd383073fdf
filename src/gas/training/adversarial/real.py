"""GAS on real data alone: discriminators of real images, with no pairs and no paired loss."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gas.errors import UserError
from gas.evaluation.sampler import teacher_pairs
from gas.features.real import RealImages
from gas.models.protocol import Model, decoder_of
from gas.models.seeds import labels_of_seeds
from gas.pairs.dataset import Pairs, check_pairs
from gas.solver_file import Artefact
from gas.table import table_of
from gas.training.adversarial.setup import Adversary, fit_adversarial
from gas.training.distillation import Distilled, Report
from gas.training.initialization import check_file, reference_solver, start_without_pairs
from gas.training.loop import criterion_evaluations
from gas.zoo.data import mnist

# Seeds of the noise beside real images, and of the noise that classical solvers are ranked on: far from those of pairs.
_FIRST_SEED = 2**43

# Noises that the classical start is ranked on, with the samples of a classical solver of 20 evaluations.
_RANKED = 64


def unpaired(samples: Tensor, target: Tensor) -> Tensor:
    """Return a loss ``(B,)`` of zero, that keeps its graph: real images are no targets of any noise."""
    return 0 * samples.flatten(1).sum(1)


def real_pairs(model: Model, path: Path, guidance: float = 1.0) -> Pairs:
    """Return real images as the targets of unrelated noise, for a discriminator's reals and the criterion.

    Args:
        model: whose samples they are compared with.
        path: a folder of MNIST's IDX files, whose held-out images are left out and whose labels are taken; or a folder
            of pictures or an ``.npz`` (:class:`gas.features.real.RealImages`), with the labels ``seed mod classes``.
        guidance: scale that the model samples with.

    Raises:
        FileNotFoundError: when there is nothing.
        UserError: for a model of latents, unreadable files, or images of another size than the model's.
    """
    if decoder_of(model) is not None:
        raise UserError(
            f"--real {path}: model {model.name} samples latents, which real images are not: use --pairs"
        )
    labels: Tensor | None
    if list(path.glob("*-ubyte*")):
        images, labels = mnist(path).train
    else:
        images = torch.cat(list(RealImages(path).batches(256)))
        if model.sample_shape[0] == 1:
            images = images.mean(1, keepdim=True)  # of three equal channels
        labels = None
    if images.shape[1:] != torch.Size(model.sample_shape):
        sizes = ["x".join(map(str, shape)) for shape in (images.shape[1:], model.sample_shape)]
        raise UserError(
            f"--real {path} holds images of {sizes[0]}, model {model.name} makes {sizes[1]}: resize them"
        )
    seeds = range(_FIRST_SEED, _FIRST_SEED + len(images))
    if model.classes and labels is None:
        labels = labels_of_seeds(model.classes, seeds)
    recipe = {"guidance": guidance, "teacher": {}}
    return Pairs(
        seeds=torch.tensor(seeds),
        noise=model.noise(seeds).cpu(),
        target=images,
        labels=labels if model.classes else None,
        manifest={"recipe": recipe},
    )


def distill_real(
    model: Model,
    adversary: Adversary,
    reals: Pairs,
    nfe: int,
    *,
    start: Artefact | None = None,
    checkpoint: Path | None = None,
) -> Generator[Report, None, Distilled]:
    """Train a solver against discriminators of real images alone.

    Args:
        model: whose denoiser to call.
        adversary: of :func:`gas.adversary_for` with ``reals`` as its pairs, and a ``weight``: no paired loss gives it
            a unit. Its criterion is then the Frechet distance to these images, on fixed fresh noise.
        reals: real images (:func:`real_pairs`).
        nfe: network evaluations.
        start: solver file to start from; by default the best classical solver by its distance to the samples of a
            classical one with 20 evaluations.
        checkpoint: file of the resumable state.

    Yields:
        RankedSolver: of the classical solvers. StartChoice: once. FitRecord: while training, losses being the
        criterion. Distilled: last; where nothing came nearer, with the start.

    Raises:
        UserError: for no images, or a solver file of another use.
    """
    check_pairs(reals, model)
    if adversary.unit != "absolute":
        raise UserError(
            "an adversary of real data alone needs a weight: there is no paired loss to measure it in"
        )
    check_file(start, model, nfe, reals.guidance)
    teacher, seeds = reference_solver(model), range(_FIRST_SEED - _RANKED, _FIRST_SEED)
    reference = teacher_pairs(model, teacher, seeds, guidance=reals.guidance)
    choice, solver = yield from start_without_pairs(model, reference, nfe, start)
    spent = choice.evaluations + len(seeds) * teacher.nfe
    choice = replace(choice, evaluations=spent)
    yield choice
    initial, (train, rest) = table_of(solver), reals.split(1)
    outcome = yield from fit_adversarial(adversary, solver, model, train, rest, unpaired, checkpoint)
    before, after = outcome.criterion or (float("nan"), float("nan"))
    classical = before
    if start is not None:
        classical = float(torch.as_tensor(adversary.criterion(choice.best.table(model.schedule))).mean())
        spent += criterion_evaluations(adversary.criterion, nfe)
    training = {**adversary.config.config(), "objective": "gas", "real": len(reals)}
    result = Distilled(
        nfe=nfe,
        solver=solver if after < before else initial,
        start=choice.start,
        best_classical=choice.best,
        best_classical_loss=classical,
        loss=min(before, after),
        evaluations=spent + outcome.evaluations,
        stopped=outcome.stopped,
        criterion=outcome.criterion,
        measures={"start_loss": before},
        provenance={"guidance": reals.guidance, "loss": "frechet", "teacher": {}, "training": training},
    )
    yield result
    return result
