"""The paper's training of a preset: GS on pairs, and GAS with its discriminator from the first step on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from gas.errors import UserError
from gas.learned.registry import kind_by_name
from gas.losses import Loss, loss_by_name
from gas.models.protocol import Model
from gas.pairs.dataset import Pairs, read_pairs
from gas.paper.files import need
from gas.paper.presets import Objective, Preset
from gas.registry import named
from gas.solver_file import save
from gas.training.adversarial.losses import Critic
from gas.training.initialization import named_start
from gas.training.loop import FitRecord, fit


def distillation_loss(preset: Preset, folder: Path, device: torch.device | str = "cpu") -> Loss:
    """Return the distillation loss of a preset; the networks of LPIPS are in the folder of weights."""
    if preset.loss != "lpips":
        return loss_by_name(preset.loss)
    files = need(preset, "loss", folder), need(preset, "loss weights", folder)
    from gas.features.lpips import LPIPS

    loss: Loss = LPIPS.read(*files).to(device).loss()
    return loss


def critic_for(preset: Preset, model: Model, folder: Path) -> Critic:
    """Return the discriminator that GAS starts from: the published one in the folder, or one of random weights.

    Raises:
        UserError: when it is of another size than the samples.
    """
    from gas.training.adversarial.r3gan import load_discriminator

    channels, side = model.sample_shape[0], model.sample_shape[-1]
    if preset.critic_file:
        network = load_discriminator(need(preset, "critic", folder))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(preset.seed)
            network = preset.critic_network(channels)
    if (network.in_channels, network.resolution) != (channels, side):
        input_size = f"{network.in_channels} x {network.resolution} x {network.resolution}"
        remedy = "file" if preset.critic_file else "critic_widths, critic_groups and critic_blocks"
        raise UserError(
            f"the critic of preset {preset.name} sees {input_size}, its samples are {channels} x {side} x {side}: "
            f"give it another {remedy}"
        )
    return Critic("samples", network.float().to(model.device), **preset.critic_settings())


def read_preset_pairs(
    preset: Preset, objective: Objective, model: Model, folder: Path
) -> tuple[Pairs, Pairs]:
    """Read teacher pairs: the first to train on, and the last of the folder, which may hold more, to validate on.

    The model is as the teacher ran it, ending at ``preset.teacher_t_end``.

    Raises:
        UserError: when there are too few pairs, or they have another model or guidance.
    """
    pairs = read_pairs(folder, model=model, hold=False)
    count, validation = preset.training_pairs(objective), preset.validation
    if len(pairs) < count + validation:
        raise UserError(
            f"{folder} has {len(pairs)} pairs, preset {preset.name} takes {count} and {validation} to validate on: "
            "make more, or change pairs, pairs_gas or validation by --set"
        )
    if pairs.guidance != preset.guidance:
        raise UserError(f"{folder} has guidance {pairs.guidance:g}, the preset {preset.guidance:g}")
    return pairs.view(slice(0, count)), pairs.view(slice(len(pairs) - validation, len(pairs)))


def starting_solver(preset: Preset, model: Model, nfe: int) -> nn.Module:
    """Return the solver to learn, at its start."""
    kind = kind_by_name(preset.solver)
    return kind.build(model.schedule, named_start(preset.start, nfe, preset.t_end))


def learn(
    solver: nn.Module,
    preset: Preset,
    objective: Objective,
    model: Model,
    pairs: tuple[Pairs, Pairs],
    folder: Path,
    *,
    checkpoint: Path | None = None,
) -> Iterator[FitRecord]:
    """Train a solver in place as the paper does (arXiv 2510.17699, equations 15 and 22); yield as :func:`gas.fit`.

    The solver ends as the best on the validation pairs or as the last, as ``keep`` and ``keep_gas`` say.

    Args:
        solver: from :func:`starting_solver`.
        objective: ``"gs"``, or ``"gas"``: against a discriminator, from the first step on.
        pairs: to train and to validate on.
        folder: of weights, for the discriminator's file.
        checkpoint: as for :func:`gas.fit`.
    """
    named("objective", objective, {"gs": None, "gas": None})
    critics = [critic_for(preset, model, folder)] if objective == "gas" else []
    yield from fit(
        solver,
        model,
        pairs[0],
        validation=pairs[1],
        loss=distillation_loss(preset, folder, model.device),
        config=kind_by_name(preset.solver).training(preset.training(objective)),
        checkpoint=checkpoint,
        discriminators=critics,
        pairing=preset.pairing,
        keep=preset.keep_gas if objective == "gas" else preset.keep,
    )


def save_solver(
    path: Path,
    solver: nn.Module,
    preset: Preset,
    objective: Objective,
    model: Model,
    pairs: tuple[Pairs, Pairs],
    record: FitRecord,
) -> None:
    """Write a learned solver with the preset's settings and what the training's last report measured."""
    training, validation = pairs
    nfe = solver().nfe
    save(
        path,
        {nfe: solver},
        model=model,
        guidance=training.guidance,
        teacher=training.teacher,
        loss=preset.loss,
        training={
            "preset": preset.name,
            **preset.settings(),
            "pairs": len(training),
            "validation": len(validation),
            "seeds": [int(training.seeds[0]), int(validation.seeds[-1]) + 1],
            "critic": preset.objective,
            "objective": objective,
        },
        starts={nfe: preset.start},
        measured={nfe: {"validation_loss": record.best_loss, "evaluations": float(record.evaluations)}},
    )
