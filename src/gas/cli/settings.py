"""What the options of ``gas train`` mean: an optimiser's settings, and an adversary's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gas.cli.presets import objective_of
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs
    from gas.training.adam import Adam
    from gas.training.adversarial.setup import Adversary
    from gas.training.gauss_newton import GaussNewton

__all__ = ["adversarial_settings", "adversary_of", "against_of", "config_of"]


def adversarial_settings(objective: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of GAS, or ``None`` for GS, which has none of them.

    Raises:
        ValueError: for another objective, settings of GAS without it, or two measures of one weight.
    """
    from gas.training.adversarial.setup import BALANCE, GAS

    named = [name for name, value in given.items() if value is not None]
    if objective_of(objective) == "gs":
        if named:
            raise UserError(
                f"--{named[0].replace('_', '-')} is a setting of --objective gas: add that or leave it out"
            )
        return None
    if given["weight"] is not None and given["balance"] is not None:
        raise UserError("--weight and --balance are two measures of one thing: leave one out")
    usual = {
        "weight": None,
        "balance": None if given["weight"] is not None else BALANCE,
        "critic": "relativistic",
        "pairing": "independent",
        "gas_iterations": GAS.iterations,
        "critic_weights": None,
        "critic_steps": 1,
    }
    return {**usual, **{name: given[name] for name in named}}


def adversary_of(
    model: Model,
    pairs: Pairs,
    settings: dict[str, Any],
    *,
    seed: int,
    memory: str,
    batch: int | None,
    precision: str,
) -> Adversary:
    """Return the adversary that :func:`adversarial_settings` describe."""
    from gas.training.adversarial.r3gan import load_discriminator
    from gas.training.adversarial.setup import adversary_for
    from gas.training.adversarial.updates import check_one_process

    check_one_process()
    weights = settings["critic_weights"]
    config = against_of(settings["gas_iterations"], seed, batch, memory=memory)
    return adversary_for(
        model,
        pairs,
        weight=settings["weight"],
        balance=settings["balance"] or 0.0,
        objective=settings["critic"],
        pairing=settings["pairing"],
        config=config,
        steps=settings["critic_steps"],
        network=None if weights is None else load_discriminator(weights),
        seed=seed,
        precision=precision,
    )


def against_of(iterations: int | None, seed: int, batch: int | None = None, **more: Any) -> Adam:
    """Return the settings of Adam against a critic: the usual ones, where others are not given."""
    from gas.training.adversarial.setup import GAS

    steps = GAS.iterations if iterations is None else iterations
    told = {"validate_every": min(GAS.validate_every, steps), "seed": seed, **more}
    return replace(GAS, iterations=steps, batch=GAS.batch if batch is None else batch, **told)


def config_of(
    method: str,
    loss: str,
    start: str,
    iterations: int | None,
    batch: int | None,
    learning_rate: float | None,
    relax: float | None,
    memory: str,
    seed: int,
) -> Adam | GaussNewton:
    """Return the optimiser's settings that a method has unless others are given.

    Raises:
        ValueError: for an unknown method, or a setting that it does not have.
    """
    from gas.losses import is_sum_of_squares, loss_by_name
    from gas.training.adam import PAPER, Adam
    from gas.training.distillation import FINISH
    from gas.training.gauss_newton import GaussNewton

    methods: dict[str, Adam | GaussNewton] = {
        "gauss-newton": FINISH if start == "best" else GaussNewton(),
        "adam": Adam(),
        "paper": PAPER,
    }
    if method == "auto":
        method = "gauss-newton" if is_sum_of_squares(loss_by_name(loss)) else "adam"
    given: dict[str, Any] = {
        "iterations": iterations,
        "batch": batch,
        "learning_rate": learning_rate,
        "relax": relax,
        "seed": seed,
    }
    if method != "gauss-newton":  # which keeps no graph
        given["memory"] = memory
    if method == "gauss-newton":
        for name in ("learning_rate", "relax"):
            if given.pop(name) is not None:
                raise UserError(f"gauss-newton has no {name}: choose --method adam or leave it out")
        if not is_sum_of_squares(loss_by_name(loss)):
            raise UserError(
                f"gauss-newton needs --loss l2, a sum of squares, got {loss}: choose --method adam"
            )
        given["largest"] = None if batch is None else max(batch, GaussNewton().largest)
    return replace(methods[method], **{name: value for name, value in given.items() if value is not None})
